"""The link of the guest's frames: a tap device or a stream socket to qemu, and the capture of what crosses it."""
