"""Bytes of packets: addresses, checksums, parsing, building, reassembly, segmentation, ICMP errors, names. Pure."""
