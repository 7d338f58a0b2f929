"""The link, which carries the guest's frames: a tap device or a stream socket to qemu, and the capture of its frames."""
