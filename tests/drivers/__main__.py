"""Run the checks of all drivers, or those that the command line names.

Each module beside this one is a driver, by its name, and holds its checks in `DRIVER`.
"""

import sys
from importlib import import_module
from pkgutil import iter_modules

from tests.support.drivers.checks import main

HERE = "tests.drivers"
NAMES = sorted(module.name for module in iter_modules(import_module(HERE).__path__) if module.name != "__main__")

if __name__ == "__main__":
    sys.exit(main({name: import_module(f"{HERE}.{name}").DRIVER for name in NAMES}))
