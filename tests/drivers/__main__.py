"""Run the checks of all drivers, or those that the command line names."""

import sys

from tests.drivers import libvirt, podman, rootlesskit, systemd, unshare
from tests.support.drivers.checks import main

DRIVERS = {
    "podman": podman.DRIVER,
    "libvirt": libvirt.DRIVER,
    "rootlesskit": rootlesskit.DRIVER,
    "unshare": unshare.DRIVER,
    "systemd": systemd.DRIVER,
}

if __name__ == "__main__":
    sys.exit(main(DRIVERS))
