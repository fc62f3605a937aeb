"""One QEMU, over QMP."""
