"""The Python interface: `pasta` for namespaces, `passt` for virtual machines, `connection` for what both share."""
