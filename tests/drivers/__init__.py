"""The drivers that are checked, one in each module. Run them with `python -m tests.drivers`; see docs/drivers.md."""
