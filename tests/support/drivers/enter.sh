# Make the tree $1 the root of this mount namespace, print the number of this process, and become the program that the
# other arguments name.
#
# unshare(1) starts it with namespaces of its own. pivot_root, since a process in a chroot may make no user
# namespace (EPERM, user_namespaces(7)). The devices are made anew, so that no mode of the machine's own changes.
set -e

# The shell itself opens this, in the /proc of whoever started it: the number is one that nsenter there understands.
read -r pid rest </proc/self/stat

mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mkdir -p old
pivot_root . old

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
install -d -m 700 -o driver -g driver /run/user/1000

mount -t tmpfs -o mode=755 tmpfs /dev
mkdir /dev/net /dev/pts /dev/shm
while read -r name major minor; do
    mknod -m 666 "/dev/$name" c "$major" "$minor"
done <<END
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
net/tun 10 200
fuse 10 229
END
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=tty devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ln -s pts/ptmx /dev/ptmx
ln -s /proc/self/fd /dev/fd

umount -l /old
# podman warns of a root that is not shared.
mount --make-rshared /

echo "$pid"
shift
exec "$@"
