"""Fuzz the targets of `tests.support.fuzz`: see `tests.support.fuzz.runner`."""

from __future__ import annotations

import sys

from tests.support.fuzz.runner import main

sys.exit(main(sys.argv[1:]))
