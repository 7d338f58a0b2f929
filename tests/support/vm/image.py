"""What a guest boots: a Debian kernel, and an initramfs made for the run.

The kernel is looked for below a folder laid out as Debian's packages are, with `boot/vmlinuz-VERSION` and
`lib/modules/VERSION`: the one that the environment variable `GPASST_TEST_KERNEL` names, otherwise the system itself.
A package need not be installed for that; `.ci/run` merely unpacks one. The tests cannot do so themselves, since nothing
leaves the namespaces that they run in.
"""

from __future__ import annotations

import lzma
import os
import stat
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.need import need

KERNEL = "GPASST_TEST_KERNEL"  # environment variable: the folder that holds boot and lib/modules
SOURCES = Path(__file__).parent
# A module comes after those that it uses. Debian builds them as modules; others may build them in.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
)
FOLDERS = ("bin", "dev", "etc", "modules", "proc", "run", "sys", "tmp")
PROGRAM_INTERPRETER = 3  # PT_INTERP, ELF: only dynamically linked programs have one


@dataclass(frozen=True, slots=True)
class Image:
    """What qemu is given.

    :ivar qemu: path of qemu.
    :ivar kernel: path of the kernel.
    :ivar initramfs: path of the first file system.
    """

    qemu: str
    kernel: Path
    initramfs: Path


def build(folder: Path) -> Image:
    """Make what a guest boots in `folder`, or skip the test by what is missing."""
    qemu = need("qemu-system-x86_64")
    backends = subprocess.run([qemu, "-netdev", "help"], capture_output=True, text=True, check=True).stdout
    if "stream" not in backends.split():
        pytest.skip("needs qemu 7.2 or later, for -netdev stream")
    return Image(qemu, *boot_files(folder, Path(os.environ.get(KERNEL, "/"))))


def boot_files(folder: Path, root: Path) -> tuple[Path, Path]:
    """Make the initramfs in `folder`; return the paths of a kernel and of the initramfs.

    :param root: the folder that holds boot and lib/modules.
    """
    kernel, modules = _kernel(root)
    busybox = need("busybox")
    if _is_dynamic(Path(busybox).read_bytes()):
        pytest.skip("needs a static busybox: package busybox-static")
    files: dict[str, tuple[int, bytes]] = dict.fromkeys(FOLDERS, (stat.S_IFDIR | 0o755, b""))
    for name, content in (
        ("init", (SOURCES / "init.sh").read_bytes()),
        ("bin/lease", (SOURCES / "lease.sh").read_bytes()),
        ("bin/busybox", Path(busybox).read_bytes()),
        ("bin/udptool", _udptool(folder)),
    ):
        files[name] = stat.S_IFREG | 0o755, content
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        files.setdefault(f"bin/{applet}", (stat.S_IFLNK | 0o777, b"busybox"))
    for name, content in modules.items():
        files[f"modules/{name}"] = stat.S_IFREG | 0o644, content
    files["modules/order"] = stat.S_IFREG | 0o644, "".join(f"{name}\n" for name in modules).encode()
    initramfs = folder / "initramfs"
    initramfs.write_bytes(_archive(files))
    return kernel, initramfs


def _kernel(root: Path) -> tuple[Path, dict[str, bytes]]:
    """Find a kernel; give its path and the modules that it needs, in the order of loading."""
    missing = f"{root / 'boot'} has no kernel"
    # The newest comes last.
    for kernel in sorted((root / "boot").glob("vmlinuz-*"), reverse=True):
        folder = root / "lib/modules" / kernel.name.partition("-")[2]
        found = {path.name.partition(".")[0]: path for path in folder.glob("kernel/**/*.ko*")}
        try:
            built_in = {Path(line).stem for line in (folder / "modules.builtin").read_text("ascii").split()}
            modules = {f"{name}.ko": _read(found[name]) for name in MODULES if name not in built_in}
        except (OSError, KeyError) as error:
            missing = f"{kernel}: {error!r}"
            continue
        if os.access(kernel, os.R_OK):
            return kernel, modules
        missing = f"{kernel} is not readable"
    pytest.skip(f"needs a kernel for guests, in the folder that {KERNEL} names: {missing}")


def _read(module: Path) -> bytes:
    """Give a module's content. Other compressions than Debian's are treated as missing."""
    if module.suffix == ".xz":
        return lzma.decompress(module.read_bytes())
    if module.suffix != ".ko":
        raise KeyError(module.name)
    return module.read_bytes()


def _is_dynamic(program: bytes) -> bool:
    (table,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    return any(
        struct.unpack_from("<I", program, table + index * size)[0] == PROGRAM_INTERPRETER for index in range(count)
    )


def _udptool(folder: Path) -> bytes:
    """Compile the guest's own program."""
    program = folder / "udptool"
    command = [need("gcc"), "-O1", "-static", "-Wall", "-Wextra", "-Werror", "-o", str(program)]
    done = subprocess.run([*command, str(SOURCES / "udptool.c")], capture_output=True, text=True)
    if "cannot find -lc" in done.stderr or "stdio.h" in done.stderr:
        pytest.skip("needs a static C library: package libc6-dev")
    assert done.returncode == 0, done.stderr
    return program.read_bytes()


def _archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """Pack files, by name with mode and content, as the kernel wants it: cpio in its "newc" form."""
    parts = bytearray()
    for number, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        # inode, mode, user, group, links, time, size, device twice as major and minor, length of the name, checksum
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        parts += b"070701" + b"".join(b"%08X" % field for field in fields)
        parts += name.encode() + b"\0"
        parts += bytes(-len(parts) % 4)
        parts += content
        parts += bytes(-len(parts) % 4)
    return bytes(parts)
