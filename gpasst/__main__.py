"""``python -m gpasst``."""

import sys

from gpasst.cli import main

sys.exit(main())
