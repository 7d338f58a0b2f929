"""What the guest needs before and beside UDP, as pure functions: a packet in, frames out.

Frames are complete Ethernet frames, checksums computed, without virtio-net header.
"""
