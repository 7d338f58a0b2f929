"""Packets as bytes: addresses, checksums, parsing, building, reassembly, segmentation, ICMP errors, names. Pure."""
