"""Checks with real drivers, one script for each; the ordinary run collects none. See docs/drivers.md."""
