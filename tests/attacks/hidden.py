"""Reads hidden files by every route."""

import ctypes
import os
import subprocess
import sys

SECRET = b"s3cret"
MNT_DETACH = 2


def look(path, how):
    try:
        with open(path, "rb") as file:
            if SECRET in file.read(100):
                print(f"{path}: {how}")
    except OSError:
        pass


def look_everywhere(how):
    for path in sys.argv[1:]:
        look(path, how)
        for process in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc/1") else []):
            look(f"/proc/{process}/root{path}", how)
            look(f"/proc/{process}/cwd{path}", how)


look_everywhere("as it is")
os.makedirs("/mnt/again", exist_ok=True)
os.makedirs("/mnt/empty", exist_ok=True)
for path in filter(os.path.isabs, sys.argv[1:]):
    parent, name = os.path.split(path)
    above, directory = os.path.split(parent)
    for command, rest in (
        (["mount", "--bind", parent], name),
        (["mount", "--rbind", above], f"{directory}/{name}"),
        (["mount", "-t", "overlay", "-o", f"lowerdir={above}:/mnt/empty", "overlay"], f"{directory}/{name}"),
        (["mount", "-t", "overlay", "-o", f"userxattr,lowerdir=/var:/mnt/empty", "overlay"], path[5:]),
        (["mount", "-t", "hostfs", "-o", "/", "none"], path),
        (["mount", "-t", "hostfs", "-o", above, "none"], f"{directory}/{name}"),
    ):
        subprocess.run([*command, "/mnt/again"], capture_output=True)
        look(f"/mnt/again/{rest}", " ".join(command))
        subprocess.run(["umount", "-l", "/mnt/again"], capture_output=True)
# What is whited out, and the layers that the list of mounts names.
for path in filter(os.path.isabs, sys.argv[1:]):
    for act in (os.unlink, os.rmdir):
        try:
            act(path)
        except OSError:
            pass
    look(path, "the cover removed")
with open("/proc/self/mountinfo") as file:
    lines = file.read().splitlines()
for line in lines:
    for option in line.split(" - ")[1].split(" ")[-1].split(","):
        layer = option.partition("=")[2]
        for path in filter(os.path.isabs, sys.argv[1:]):
            look(layer + path, "a layer")
            look("/proc/1/root" + layer + path, "a layer")
if os.environ.get("YOUNGER") is None:
    again = ["unshare", "--user", "--map-root-user", "--mount", "python3", "-B", __file__, *sys.argv[1:]]
    ran = subprocess.run(again, capture_output=True, text=True, env=dict(os.environ, YOUNGER="1"))
    print(ran.stdout.replace("tried everything\n", ""), end="")
# From the last mount to the first, until nothing can be seen any more.
points = [line.split(" ")[4] for line in reversed(lines)]
libc = ctypes.CDLL(None)
for point in sorted(points, key=lambda point: point.startswith("/proc")):
    # With the program's files go the programs.
    libc.umount2(point.encode(), MNT_DETACH)
    look_everywhere(f"umount {point}")
print("tried everything")
