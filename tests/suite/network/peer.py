# What both ends of a test use: the host's end prints its port first and then what it saw; the
# machine's end finds the host at its gateway.
import ctypes, errno, hashlib, os, random, select, socket, struct, sys, threading, time

PORT = int(sys.argv[1]) if sys.argv[1:] and sys.argv[1].isdigit() else 0
HOST = "host.sekexe.internal"
# Of addresses, where a test is about one.
FAMILY = None


def listen(kind=socket.SOCK_STREAM, address=None):
    address = address or ("::1" if FAMILY == socket.AF_INET6 else "127.0.0.1")
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    s.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        s.listen(4096)
    print(s.getsockname()[1], flush=True)
    return s


def connect(port=None):
    s = socket.create_connection((gateway(FAMILY) if FAMILY else HOST, port or PORT))
    s.settimeout(60)
    return s


def gateway(family=socket.AF_INET):
    return socket.getaddrinfo(HOST, 1, family)[0][4][0]


def numbers(count):
    """So many bytes, the same at both ends."""
    block = random.Random(7).randbytes(1 << 20)
    while count > 0:
        yield block[: min(count, len(block))]
        count -= len(block)


def send_numbers(s, count):
    digest = hashlib.sha256()
    for block in numbers(count):
        digest.update(block)
        s.sendall(block)
    return digest.hexdigest()


def receive(s):
    digest, length = hashlib.sha256(), 0
    while True:
        block = s.recv(1 << 20)
        if not block:
            return length, digest.hexdigest()
        digest.update(block)
        length += len(block)


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def error_of(action):
    try:
        action()
        return "none"
    except OSError as e:
        return errno.errorcode.get(e.errno, repr(e))
