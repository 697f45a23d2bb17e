"""Makes system calls that no step needs; each has to be refused before it looks at its arguments."""

import ctypes
import errno

CALLS = {
    "kexec_load": 246,
    "kexec_file_load": 320,
    "init_module": 175,
    "finit_module": 313,
    "delete_module": 176,
    "bpf": 321,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "reboot": 169,
    "swapon": 167,
    "swapoff": 168,
    "acct": 163,
    "quotactl": 179,
    "settimeofday": 164,
    "clock_settime": 227,
    "adjtimex": 159,
    "syslog": 103,
    "open_by_handle_at": 304,
    "perf_event_open": 298,
    "userfaultfd": 323,
    "iopl": 172,
    "ioperm": 173,
}
libc = ctypes.CDLL(None, use_errno=True)
for name, number in CALLS.items():
    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    if result != -1 or ctypes.get_errno() != errno.EPERM:
        print(f"{name}: {result} {errno.errorcode.get(ctypes.get_errno())}")
print("tried everything")
