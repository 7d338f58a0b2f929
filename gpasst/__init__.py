"""User-mode networking for namespaces and virtual machines, as a gevent proxy."""

__version__ = "0.1.0"
