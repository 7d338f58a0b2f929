"""Packets as bytes: addresses, checksums, parsing, building, cuts, changes, reassembly, ICMP errors, names; pure."""
