"""Looks for processes of the host, and for its namespaces: its number of one, then the links."""

import ctypes
import os
import sys

pid, namespaces = int(sys.argv[1]), sys.argv[2:]
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
PIDFD_OPEN = 434
SETNS = 308

for process in filter(str.isdigit, os.listdir("/proc")):
    for name in ("user", "mnt", "pid", "net", "ipc", "uts"):
        link = f"/proc/{process}/ns/{name}"
        try:
            if os.readlink(link) in namespaces:
                print(f"{link} is the host's")
            opened = os.open(link, os.O_RDONLY)
        except OSError:
            continue
        os.close(opened)
# A number that exists inside as well is another process.
if not os.path.exists(f"/proc/{pid}"):
    try:
        os.kill(pid, 0)
        print("the host's process can be signalled")
    except OSError:
        pass
    if libc.ptrace(PTRACE_SEIZE, pid, None, None) == 0:
        print("the host's process can be traced")
    if libc.syscall(PIDFD_OPEN, pid, 0) >= 0:
        print("the host's process can be held")
try:
    os.kill(-1, 0)
except OSError:
    pass
# The parent of all is the init, whose root and parent's namespaces are the machine's.
for name in ("pid", "user", "mnt"):
    opened = os.open(f"/proc/1/ns/{name}", os.O_RDONLY)
    NS_GET_PARENT, NS_GET_USERNS = 0xB702, 0xB701
    for request in (NS_GET_PARENT, NS_GET_USERNS):
        parent = libc.ioctl(opened, request)
        if parent >= 0 and os.readlink(f"/proc/self/fd/{parent}") in namespaces:
            print(f"{name}: the host's namespace can be had")
            if libc.syscall(SETNS, parent, 0) == 0:
                print(f"{name}: and entered")
print("tried everything")
