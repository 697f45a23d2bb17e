"""Types into every terminal that can be found."""

import fcntl
import glob
import os

TIOCSTI = 0x5412
# Devices only: to open a pipe may wait for ever.
places = ["/dev/tty", "/dev/console", *glob.glob("/dev/pts/[0-9]*"), *glob.glob("/proc/[0-9]*/fd/[012]")]
opened = [0, 1, 2]
for place in places:
    try:
        opened.append(os.open(place, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY))
    except OSError:
        pass
for terminal in opened:
    for byte in b"echo typed\n":
        try:
            fcntl.ioctl(terminal, TIOCSTI, bytes([byte]))
        except OSError:
            pass
print("tried everything")
