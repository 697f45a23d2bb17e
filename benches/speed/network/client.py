import socket, sys, time
host, port, amount, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) << 20, int(sys.argv[4])
address = socket.getaddrinfo(host, port, socket.AF_INET)[0][4]
block, buffer = bytes(1 << 20), bytearray(1 << 20)
def begin(what):
    s = socket.create_connection(address); s.sendall(what); return s
def up():
    s = begin(b"u"); started = time.monotonic()
    for _ in range(amount >> 20): s.sendall(block)
    s.shutdown(socket.SHUT_WR); s.recv(1)
    return amount * 8e-9 / (time.monotonic() - started)
def down():
    s = begin(b"d"); started = time.monotonic(); got = 0
    while n := s.recv_into(buffer): got += n
    return got * 8e-9 / (time.monotonic() - started)
def one():
    started = time.monotonic(); s = begin(b"c"); s.recv(1); s.close()
    return (time.monotonic() - started) * 1e6
times = sorted(one() for _ in range(rounds))
print(up(), down(), times[len(times) // 2])
