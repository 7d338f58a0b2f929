"""Real drivers of pasta and passt in a system tree of their own, and what their checks share.

A driver is a program that starts pasta or passt by itself: podman, libvirt, rootlesskit. `tree` makes the system that
it runs in, `checks` runs a table of checks and reports them. A module of `tests/drivers` holds the table of one
driver.
"""
