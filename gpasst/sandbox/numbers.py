"""The numbers of the system calls of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl of Linux 6.1)."""

from __future__ import annotations

_TABLE = """
read 0, write 1, open 2, close 3, stat 4, fstat 5, lstat 6, poll 7, lseek 8, mmap 9, mprotect 10, munmap 11, brk 12,
rt_sigaction 13, rt_sigprocmask 14, rt_sigreturn 15, ioctl 16, pread64 17, pwrite64 18, readv 19, writev 20, access
21, select 23, sched_yield 24, mremap 25, madvise 28, dup 32, dup2 33, getpid 39, socket 41, connect 42, accept 43,
sendto 44, recvfrom 45, sendmsg 46, recvmsg 47, shutdown 48, bind 49, listen 50, getsockname 51, getpeername 52,
setsockopt 54, getsockopt 55, execve 59, exit 60, wait4 61, kill 62, fcntl 72, ftruncate 77, chdir 80, unlink 87,
readlink 89, gettimeofday 96, ptrace 101, getuid 102, getgid 104, setuid 105, setgid 106, geteuid 107, getegid 108,
setresuid 117, setresgid 119, sigaltstack 131, personality 135, pivot_root 155, chroot 161, mount 165, umount2 166,
init_module 175, gettid 186, time 201, futex 202, restart_syscall 219, clock_gettime 228, clock_getres 229,
clock_nanosleep 230, exit_group 231, epoll_wait 232, epoll_ctl 233, kexec_load 246, waitid 247, add_key 248,
request_key 249, keyctl 250, openat 257, newfstatat 262, unlinkat 263, readlinkat 267, faccessat 269, pselect6 270,
ppoll 271, unshare 272, set_robust_list 273, splice 275, epoll_pwait 281, timerfd_create 283, timerfd_settime 286,
accept4 288, eventfd2 290, epoll_create1 291, dup3 292, pipe2 293, perf_event_open 298, recvmmsg 299, sendmmsg 307,
setns 308, process_vm_readv 310, process_vm_writev 311, finit_module 313, getrandom 318, bpf 321, execveat 322,
userfaultfd 323, membarrier 324, statx 332, rseq 334, io_uring_setup 425, io_uring_enter 426, io_uring_register 427,
pidfd_open 434, openat2 437, faccessat2 439, epoll_pwait2 441
"""

X86_64 = {name: int(number) for name, number in (entry.split() for entry in _TABLE.split(","))}
"""By the names that `gpasst.sandbox.calls` uses."""
