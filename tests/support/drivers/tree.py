"""A system tree of a later Debian, in which real drivers start gpasst in pasta's and passt's place.

Theory of operation: `build` makes the tree with debootstrap and apt-get, once; a stamp in it states what it was made
from, and a tree with another stamp is made anew. Its packages and gpasst's dependencies come from the machine's package
sources, so `build` runs before the network is left. It then installs gpasst from this source tree, each time.

`enter` starts a holder, which makes the tree its root (`enter.sh`) in namespaces of its own and becomes their first
process: one that only reaps, or systemd. Programs join these namespaces with nsenter, as an ordinary user or as root;
whatever is left of them ends with the holder. They share the network namespace of whoever calls.
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
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path

from tests.support import ready
from tests.support.drivers.recipes import recipe

ROOT = Path(__file__).resolve().parents[3]
SUITE = "trixie"  # Debian 13; the podman of Debian 12 knows no pasta
PACKAGES = (
    *("podman", "crun", "conmon", "catatonit", "uidmap", "buildah"),
    *("netavark", "aardvark-dns", "nftables"),
    *("libvirt-clients", "libvirt-daemon", "libvirt-daemon-driver-qemu", "qemu-system-x86"),
    *("rootlesskit", "systemd", "dbus"),
    *("busybox-static", "curl", "dnsmasq-base", "iproute2", "passt", "python3", "python3-venv"),
)
KERNEL_PACKAGE = "linux-image-cloud-amd64"  # depends on the package of the newest one
SOURCES = ("gpasst", "pyproject.toml", "setup.cfg", "README.md", "LICENSE")  # what a wheel is built from
USER, UID = "driver", 1000
VENV = "opt/gpasst"
HELPERS = "opt/helpers"  # the folder in which drivers look for the programs "pasta" and "passt"
KERNEL = "opt/kernel"  # what virtual machines boot, laid out as the package is
GPASST, ORIGINAL = "gpasst", "pasta"
PROGRAMS = ("pasta", "passt")
RESOLVER = "127.0.0.53"
APPLETS = ("cat", "ip", "nslookup", "sh", "true")
STAMP = "opt/stamp"
INSTALL = f"""\
export DEBIAN_FRONTEND=noninteractive
apt-get install --quiet --yes --no-install-recommends {" ".join(PACKAGES)}
image=$(apt-cache depends {KERNEL_PACKAGE} | awk '$1 == "Depends:" && !seen++ {{ print $2 }}')
cd /tmp
apt-get download --quiet "$image"
dpkg-deb --extract "$image"_*.deb /{KERNEL}
rm "$image"_*.deb
ln -s usr/lib /{KERNEL}/lib
apt-get clean
"""
# As init of the PID namespace it inherits the daemons that end; libvirt waits until nothing is left of them.
REAPER = ("catatonit", "-P")
PATIENCE = 60.0  # seconds until a program of a driver counts as hanging; each takes less than one
# Beside the recipe's: no system to log to, and no groups that a user may manage.
CONTAINERS = 'events_logger = "file"\ncgroup_manager = "cgroupfs"\n'
ENVIRONMENT = {
    "HOME": f"/home/{USER}",
    "USER": USER,
    "XDG_RUNTIME_DIR": f"/run/user/{UID}",
    "PATH": f"/{HELPERS}:/usr/bin:/usr/sbin",
    "LANG": "C.UTF-8",
}


class Tree:
    """A tree that a holder has entered.

    :param root: folder of the tree.
    :param holder: number of the process that holds its namespaces.
    :param namespaces: options of nsenter(1) for those that its programs join.
    """

    def __init__(self, root: Path, holder: int, namespaces: Sequence[str]) -> None:
        self.root = root
        self.holder = holder
        self.namespaces = namespaces

    def _command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--target={self.holder}", *self.namespaces, "--", *argv]

    def _as_user(self, *argv: str) -> list[str]:
        become = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups")
        environment = ("env", "-i", *(f"{name}={value}" for name, value in ENVIRONMENT.items()))
        return self._command(*become, *environment, *argv)

    def run(self, *argv: str, root: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a program in the tree, as the ordinary user or as root; its standard output and error are kept.

        :raises subprocess.TimeoutExpired: if it has not ended after `PATIENCE` seconds.
        """
        return subprocess.run(
            self._command(*argv) if root else self._as_user(*argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def popen(self, *argv: str, root: bool = False) -> subprocess.Popen[str]:
        """Start a program in the tree, with pipes for its standard input and output."""
        command = self._command(*argv) if root else self._as_user(*argv)
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def serve(self, *argv: str) -> None:
        """Start a service in the tree as root; it ends with the tree."""
        subprocess.Popen(self._command(*argv), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        ready.until(lambda: " ".join(argv) in self.commands(), f"{argv[0]} started")

    def resolve(self, name: str, address: str) -> None:
        """Start a resolver at `RESOLVER` that knows one name."""
        self.serve(
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--pid-file=",
            f"--listen-address={RESOLVER}",
            f"--address=/{name}/{address}",
        )

    @property
    def home(self) -> Path:
        """The ordinary user's home, as seen from outside the tree."""
        return self.root / "home" / USER

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
    :param helper: what the drivers find under the names in `PROGRAMS`: `GPASST`, or `ORIGINAL` for Debian's.
    :raises subprocess.CalledProcessError: if a package cannot be had.
    """
    settings = ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    requirements = settings["options"]["install_requires"].split("\n")[1:]
    stamp = "\n".join((SUITE, INSTALL, *requirements, Path(__file__).with_name("enter.sh").read_text()))
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
    _call("debootstrap", "--variant=minbase", SUITE, tree)
    # By apt-get, since debootstrap unpacks systemd before what it pre-depends on is configured. Whatever the packages
    # start ends with the PID namespace.
    (tree / KERNEL).mkdir()
    alone = ("unshare", "--pid", "--fork", "--kill-child", f"--mount-proc={tree}/proc")
    _call(*alone, "chroot", tree, "sh", "-ec", INSTALL)
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
    for old in (home, tree / "var/log/journal"):
        shutil.rmtree(old, ignore_errors=True)
    home.mkdir()
    os.chown(home, UID, UID)
    shutil.rmtree(helpers, ignore_errors=True)
    if helper == GPASST:
        _call("chroot", tree, "env", f"PATH=/{VENV}/bin:/usr/bin", "sh", "-ec", recipe("Links", "sh"))
    else:
        helpers.mkdir()
        for name in PROGRAMS:
            (helpers / name).symlink_to(f"/usr/bin/{name}")
    (tree / "etc/containers/containers.conf").write_text(recipe("podman and buildah", "toml") + CONTAINERS)
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
def _cgroup() -> Iterator[Path]:
    """Make a control group, the root of those that a manager in a tree makes; end with none of them left."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    (folder, *_) = (Path(mount[1]) for mount in mounts if mount[2] == "cgroup2")
    made = Path(tempfile.mkdtemp(prefix="gpasst-drivers-", dir=folder))
    try:
        yield made
    finally:
        for inner, _, _ in os.walk(made, topdown=False):
            _await_empty(Path(inner))
            os.rmdir(inner)


def _await_empty(cgroup: Path) -> None:
    # The last processes have been killed, and leave it in their own time.
    events = cgroup / "cgroup.events"
    ready.until(lambda: "populated 0" in events.read_text(encoding="ascii"), f"no process in {cgroup}")


@contextmanager
def enter(root: Path, init: Sequence[str] = REAPER) -> Iterator[Tree]:
    """Enter a tree, and end all its programs afterwards.

    :param root: what `build` returned.
    :param init: the first process. One that is not `REAPER` has control groups to manage.
    """
    with ExitStack() as stack:
        namespaces = ["--mount", "--pid", "--uts", "--ipc"]
        move = ""
        if init != REAPER:
            # A namespace of control groups begins where the process is.
            move = f"echo 0 >{stack.enter_context(_cgroup())}/cgroup.procs; "
            namespaces.append("--cgroup")
        # The keeper ends with this process, however that ends.
        script = f'{move}exec unshare {" ".join(namespaces)} --fork --kill-child sh "$@"'
        enter_script = str(Path(__file__).with_name("enter.sh"))
        command = ["setpriv", "--pdeathsig=KILL", "sh", "-c", script, "sh", enter_script, str(root), *init]
        keeper = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        )
        assert keeper.stdout is not None
        try:
            line = keeper.stdout.readline()
            assert line, "the tree cannot be entered; the reason is above"
            yield Tree(root, int(line), namespaces)
        finally:
            keeper.kill()
