"""A system tree of a later Debian, in which real drivers start gpasst in pasta's place.

Theory of operation: `build` makes the tree with debootstrap, once; a stamp in it states what it was made from, and a
tree with another stamp is made anew. Its packages and gpasst's dependencies come from the machine's package sources, so
`build` runs before the network is left. It then installs gpasst from this source tree, each time.

`enter` starts a holder, which makes the tree its root (`enter.sh`) in mount and PID namespaces of its own and sleeps.
Programs join these namespaces with nsenter, as an ordinary user; whatever is left of them ends with the holder. They
share the network namespace of whoever calls.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SUITE = "trixie"  # Debian 13; the podman of Debian 12 knows no pasta
PACKAGES = (
    *("podman", "crun", "conmon", "catatonit", "uidmap", "buildah"),
    *("netavark", "aardvark-dns", "nftables"),
    *("busybox-static", "dnsmasq-base", "iproute2", "passt", "python3", "python3-venv"),
)
SOURCES = ("gpasst", "pyproject.toml", "setup.cfg", "README.md", "LICENSE")  # what a wheel is built from
USER, UID = "driver", 1000
VENV = "opt/gpasst"
HELPERS = "opt/helpers"  # the folder in which drivers look for a program "pasta"
PROGRAMS = {"gpasst": f"/{VENV}/bin/gpasst", "pasta": "/usr/bin/pasta"}
RESOLVER = "127.0.0.53"
APPLETS = ("cat", "ip", "nslookup", "sh", "true")
STAMP = "opt/stamp"
PATIENCE = 60.0  # seconds until a program of a driver counts as hanging; each takes less than one
CONTAINERS = f"""\
[engine]
helper_binaries_dir = ["/{HELPERS}", "/usr/lib/podman", "/usr/libexec/podman"]
events_logger = "file"
cgroup_manager = "cgroupfs"
"""
ENVIRONMENT = {
    "HOME": f"/home/{USER}",
    "USER": USER,
    "XDG_RUNTIME_DIR": f"/run/user/{UID}",
    "PATH": "/usr/bin:/usr/sbin",
    "LANG": "C.UTF-8",
}


class Tree:
    """A tree that a holder has entered.

    :param root: folder of the tree.
    :param holder: number of the process that holds its namespaces.
    """

    def __init__(self, root: Path, holder: int) -> None:
        self.root = root
        self.holder = holder

    def _command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--target={self.holder}", "--mount", "--pid", "--", *argv]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the tree as the ordinary user; its standard output and error are kept.

        :raises subprocess.TimeoutExpired: if it has not ended after `PATIENCE` seconds.
        """
        become = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups")
        environment = ("env", "-i", *(f"{name}={value}" for name, value in ENVIRONMENT.items()))
        return subprocess.run(
            self._command(*become, *environment, *argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def serve(self, *argv: str) -> None:
        """Start a service in the tree as root; it ends with the tree."""
        subprocess.Popen(self._command(*argv), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def commands(self) -> list[str]:
        """Return the command lines of the programs that run in the tree; a zombie has none."""
        namespace = os.readlink(f"/proc/{self.holder}/ns/pid")
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    if os.readlink(folder / "ns/pid") == namespace:
                        found.append((folder / "cmdline").read_text().replace("\0", " ").strip())
                except OSError:
                    continue  # it has ended
        return [command for command in found if command]


def build(folder: Path, helper: str) -> Path:
    """Return the folder of a tree with this gpasst, made in `folder` unless it is there.

    :param folder: where trees are kept.
    :param helper: what the drivers find under the name "pasta": a key of `PROGRAMS`.
    :raises subprocess.CalledProcessError: if a package cannot be had.
    """
    settings = ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    requirements = settings["options"]["install_requires"].split("\n")[1:]
    stamp = "\n".join((SUITE, *PACKAGES, *requirements, Path(__file__).with_name("enter.sh").read_text()))
    tree = folder / SUITE
    if not (tree / STAMP).exists() or (tree / STAMP).read_text() != stamp:
        shutil.rmtree(tree, ignore_errors=True)
        _bootstrap(tree, requirements)
        (tree / STAMP).write_text(stamp)
    _install(tree)
    _settle(tree, helper)
    return tree


def _call(*command: str | Path) -> None:
    # Standard output is for figures.
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=True)


def _bootstrap(tree: Path, requirements: Sequence[str]) -> None:
    tree.mkdir(parents=True)
    _call("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, tree)
    _call("chroot", tree, "apt-get", "clean")
    # With the ranges of subordinate numbers that rootless containers need.
    _call("chroot", tree, "useradd", "--create-home", f"--uid={UID}", "--shell=/bin/sh", USER)
    _call("chroot", tree, "python3", "-m", "venv", f"/{VENV}")
    (version,) = (tree / VENV / "lib").glob("python3.*")
    # By the machine's own pip, which is set up for its package index.
    wheels = [f"--python-version={version.name.removeprefix('python')}", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory(dir=tree / "opt") as wheelhouse:
        _call(sys.executable, "-m", "pip", "download", "--quiet", *wheels, f"--dest={wheelhouse}", *requirements)
        _pip(tree, *(f"/opt/{Path(wheelhouse).name}/{name}" for name in os.listdir(wheelhouse)))


def _pip(tree: Path, *arguments: str) -> None:
    _call("chroot", tree, f"/{VENV}/bin/pip", "install", "--quiet", "--isolated", "--no-index", "--no-deps", *arguments)


def _install(tree: Path) -> None:
    """Install gpasst from a copy of its sources, since a build folder beside them may hold modules that are gone."""
    with tempfile.TemporaryDirectory(dir=tree / "opt") as folder:
        source = Path(folder, "source")
        source.mkdir()
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, source)
        _call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", source)
        (wheel,) = Path(folder).glob("*.whl")
        _pip(tree, "--force-reinstall", f"/{wheel.relative_to(tree)}")


def _settle(tree: Path, helper: str) -> None:
    """Write what the drivers read, and forget what the last run left in the user's home."""
    helpers, home = tree / HELPERS, tree / "home" / USER
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    os.chown(home, UID, UID)
    helpers.mkdir(exist_ok=True)
    (helpers / "pasta").unlink(missing_ok=True)
    (helpers / "pasta").symlink_to(PROGRAMS[helper])
    (tree / "etc/containers/containers.conf").write_text(CONTAINERS)
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").write_text(f"nameserver {RESOLVER}\n")
    with tarfile.open(tree / "opt/image.tar", "w") as image:
        image.add(tree / "usr/bin/busybox", "bin/busybox")
        # For programs of the tree, whose /usr a container mounts.
        links = {"lib": "usr/lib", "lib64": "usr/lib64", **{f"bin/{name}": "busybox" for name in APPLETS}}
        for name, target in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            image.addfile(link)
        for name in ("usr", "etc", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            image.addfile(directory, BytesIO())


@contextmanager
def enter(root: Path) -> Iterator[Tree]:
    """Enter a tree, and end all its programs afterwards.

    :param root: what `build` returned.
    """
    script = Path(__file__).with_name("enter.sh")
    # The keeper ends with this process, however that ends.
    command = [
        "setpriv",
        "--pdeathsig=KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        str(script),
        str(root),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        try:
            line = keeper.stdout.readline()
            assert line, "the tree cannot be entered; the reason is above"
            yield Tree(root, int(line))
        finally:
            keeper.kill()
