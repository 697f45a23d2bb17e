//! Connections that have moved much: the kernel carries them on, or what they bring goes straight to the
//! guest's memory, and nobody can tell.

use super::{Halting, PEER, on_each_way, with_each_family};
use crate::support::{Place, require};

/// More than after which that is so, with what the buffers hold.
const MUCH: &str = "MUCH = 24 << 20
def both_ways(s):
    sent = []
    t = threading.Thread(target=lambda: sent.append(send_numbers(s, MUCH)))
    t.start(); got = receive_some(s, MUCH); t.join()
    return sent[0] == got
def receive_some(s, count):
    digest = hashlib.sha256()
    while count:
        block = s.recv(min(count, 1 << 20)); assert block
        digest.update(block); count -= len(block)
    return digest.hexdigest()";

/// A machine in which connections are handed over to the kernel.
fn place() -> Place {
    Place::new_in("/var/tmp").with_isolation(Some("namespaces"))
}

#[test]
fn a_heavy_connection_is_handed_over_and_leaves_nothing() {
    require!(namespaces, python3);
    with_each_family(&place(), |way| {
        let host = way.start(
            MUCH,
            "s = listen()
for carry in (both_ways, lambda c: receive_some(c, MUCH), lambda c: send_numbers(c, MUCH)):
    c, _ = s.accept(); c.settimeout(60); carry(c); c.send(b'.'); c.recv(1); c.close()",
        );
        let code = way.code(
            MUCH,
            "print('begin', flush=True); input()
for carry in (both_ways, lambda s: send_numbers(s, MUCH), lambda s: receive_some(s, MUCH)):
    s = connect(); carry(s); s.recv(1); print('moved', flush=True); input()
    s.close(); time.sleep(0.5); print('closed', flush=True); input()",
        );
        let mut machine = Halting::start(way.place, &host.port, &code);
        let before = machine.at("begin").1;
        for direction in ["both ways", "to the host", "from the host"] {
            machine.go_on();
            // Two sockets and two pipes; otherwise it would be one socket.
            assert_eq!(machine.at("moved").1, before + 6, "{direction}");
            machine.go_on();
            // The sockets from which those of the network outside are made are there for good.
            assert_eq!(machine.at("closed").1, before, "{direction}");
        }
        machine.go_on();
        machine.end();
    });
}

#[test]
fn bytes_are_whole_when_a_connection_becomes_heavy_amid_traffic_both_ways() {
    require!(python3);
    on_each_way(|way| {
        let host = way.start(
            MUCH,
            "s = listen()
for _ in range(8):
    c, _ = s.accept(); c.settimeout(60); assert both_ways(c); print(receive(c)[0])",
        );
        let code = "for n in range(8):
    s = connect(); print(both_ways(s)); s.sendall(bytes(n)); s.close()";
        way.says(&host, MUCH, code, &["True"; 8].join("\n"));
        host.said("0\n1\n2\n3\n4\n5\n6\n7");
    });
}

/// Around each number of bytes at which something changes.
#[test]
fn streams_of_many_lengths_end_where_they_end() {
    require!(python3);
    const LENGTHS: &str = "LENGTHS = [(n << 10) + more for n in (1, 64, 128, 256, 320, 512, 1024, 1536, 4096)
    for more in (-1, 0, 1, 60000)]";
    on_each_way(|way| {
        let host = way.start(
            MUCH,
            &format!(
                "{LENGTHS}
s = listen()
for n in LENGTHS:
    c, _ = s.accept(); print(send_numbers(c, n)); c.close()
for i, n in enumerate(LENGTHS):
    c, _ = s.accept(); time.sleep(0.02 * (i % 3)); got, digest = receive(c); assert got == n, (got, n)
    c.sendall(digest.encode()); c.close()"
            ),
        );
        // Readers who come at once, and those who let everything fill up first.
        let code = format!(
            "{LENGTHS}
for i, n in enumerate(LENGTHS):
    s = connect(); time.sleep(0.02 * (i % 3)); got, digest = receive(s); assert got == n, (got, n)
    print(digest)
for n in LENGTHS:
    s = connect(); digest = send_numbers(s, n); s.shutdown(socket.SHUT_WR)
    assert s.makefile().read() == digest, n"
        );
        let ran = way.run(&host, MUCH, &code).ended_with(0);
        host.said(ran.stdout.trim_end());
    });
}

#[test]
fn each_side_can_finish_a_heavy_connection_while_the_other_goes_on() {
    require!(python3);
    on_each_way(|way| {
        let host = way.start(
            MUCH,
            "s = listen()
c, _ = s.accept(); both_ways(c)
print(receive(c)[0]); print(send_numbers(c, MUCH)); c.close()
c, _ = s.accept(); both_ways(c)
c.shutdown(socket.SHUT_WR); print(receive(c)[1])
s.accept()",
        );
        let code = "s = connect(); both_ways(s)
s.sendall(b'question'); s.shutdown(socket.SHUT_WR); first = receive(s)[1]
s = connect(); both_ways(s)
assert receive(s)[0] == 0; print(first == send_numbers(s, MUCH)); s.close()
receive(connect())";
        way.says(&host, MUCH, code, "True");
        let digest = "print(hashlib.sha256(b''.join(numbers(24 << 20))).hexdigest())";
        let digest = std::process::Command::new("python3")
            .args(["-c", &format!("{PEER}\n{digest}")])
            .output()
            .unwrap();
        let digest = String::from_utf8(digest.stdout).unwrap();
        host.said(&format!("8\n{0}\n{0}", digest.trim_end()));
    });
}

#[test]
fn a_reset_of_a_heavy_connection_reaches_the_other_side() {
    require!(python3);
    on_each_way(|way| {
        let host = way.start(
            MUCH,
            "s = listen()
c, _ = s.accept(); both_ways(c); c.recv(1); reset(c)
c, _ = s.accept(); both_ways(c); c.sendall(b'x'); print(error_of(lambda: receive(c)))
c, _ = s.accept(); both_ways(c); c.shutdown(socket.SHUT_WR); print(error_of(lambda: receive(c)))",
        );
        let code = "s = connect(); both_ways(s); s.sendall(b'x')
print(error_of(lambda: receive(s)))
s = connect(); both_ways(s); s.recv(1); reset(s)
s = connect(); both_ways(s); s.recv(1); reset(s)";
        way.says(&host, MUCH, code, "ECONNRESET");
        host.said("ECONNRESET\nECONNRESET");
    });
}

#[test]
fn many_heavy_connections_go_on_beside_each_other() {
    require!(python3);
    on_each_way(|way| {
        let host = way.start(
            MUCH,
            "s = listen()
good = []
def serve(c): good.append(both_ways(c)); c.close()
threads = [threading.Thread(target=serve, args=(s.accept()[0],)) for _ in range(48)]
for t in threads: t.start()
for t in threads: t.join()
print(sum(good))",
        );
        let code = "all = [connect() for _ in range(48)]
good = []
def use(s): good.append(both_ways(s)); receive(s)
threads = [threading.Thread(target=use, args=(s,)) for s in all]
for t in threads: t.start()
for t in threads: t.join()
print(sum(good))";
        way.says(&host, MUCH, code, "48");
        host.said("48");
    });
}

/// The kernel that holds heavy connections is at the other end of every frame.
#[test]
fn nobody_but_us_answers_the_machine() {
    require!(namespaces, python3);
    with_each_family(&place(), |way| {
        let host = way.start(
            MUCH,
            "s = listen()
c, _ = s.accept(); both_ways(c); print(c.recv(1))",
        );
        let code = r#"s = connect(); both_ways(s)
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); raw.bind(('eth0', 0))
OURS, THEIRS = raw.getsockname()[4], bytes.fromhex('0273656b0002')
SIX = FAMILY == socket.AF_INET6
ours, port = s.getsockname()[:2]
ME, GATEWAY = socket.inet_pton(FAMILY, ours), socket.inet_pton(FAMILY, gateway(FAMILY))
HEADERS = 14 + (40 if SIX else 20)
def total(data):
    n = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while n >> 16: n = (n & 0xffff) + (n >> 16)
    return struct.pack('!H', ~n & 0xffff)
def ip(target, protocol, payload, source=ME, hops=64):
    if SIX:
        head = struct.pack('!IHBB', 6 << 28, len(payload), protocol, hops)
        return b'\x86\xdd' + head + source + target + payload
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, source, target)
    return b'\x08\0' + head[:10] + total(head) + head[12:] + payload
def summed(target, protocol, payload, at, source=ME):
    pseudo = source + target + struct.pack('!II' if SIX else '!HH', *(len(payload), protocol)[::1 if SIX else -1])
    return payload[:at] + total(pseudo + payload) + payload[at + 2:]
def tcp(target, sport, dport, flags, source=ME):
    segment = struct.pack('!HHIIBBHHH', sport, dport, 7, 7, 0x50, flags, 65535, 0, 0)
    return ip(target, 6, summed(target, 6, segment, 16, source), source)
def icmp6(target, kind, body, hops=64):
    return ip(target, 58, summed(target, 58, struct.pack('!BBH', kind, 0, 0) + body, 2), hops=hops)
def echo(target):
    if SIX: return icmp6(target, 128, bytes(4))
    head = struct.pack('!BBHHH', 8, 0, 0, 7, 7)
    return ip(target, 1, head[:2] + total(head) + head[4:])
def answers(body, to=THEIRS):
    while select.select([raw], [], [], 0)[0]: raw.recv(1 << 17)
    raw.send(to + OURS + body)
    end, count = time.monotonic() + 0.4, 0
    while (left := end - time.monotonic()) > 0 and select.select([raw], [], [], left)[0]:
        frame, where = raw.recvfrom(1 << 17)
        # What the connection itself has still to say is no answer.
        count += where[2] != 4 and frame[HEADERS:HEADERS + 4] != struct.pack('!HH', PORT, port)
    return count
nobody = ME[:-1] + b'\x63'
if SIX:
    loopback, everybody, group = bytes(15) + b'\1', socket.inet_pton(FAMILY, 'ff02::1'), b'\x33\x33\0\0\0\1'
    who = icmp6(everybody, 135, bytes(4) + GATEWAY + b'\1\1' + OURS, 255)
    print('other', answers(icmp6(everybody, 130, bytes(20), 1), group), answers(icmp6(everybody, 133, bytes(4), 255), group))
    print('far', answers(tcp(socket.inet_pton(FAMILY, 'ff0e::1'), 4000, 80, 2)), answers(ip(GATEWAY, 99, bytes(8))))
else:
    loopback, everybody, group = bytes([127, 0, 0, 1]), b'\xff' * 4, b'\xff' * 6
    who = b'\x08\x06' + struct.pack('!HHBBH6s4s6s4s', 1, 0x800, 6, 4, 1, OURS, ME, bytes(6), GATEWAY)
print('who', answers(who, group), answers(who))
print('denied', answers(tcp(nobody, 4000, 80, 2)), answers(tcp(GATEWAY, 4000, 1, 2)))
print('stray', answers(tcp(GATEWAY, 4001, PORT, 16)), answers(tcp(GATEWAY, port, PORT + 1, 16)))
print('loopback', answers(tcp(loopback, 4002, PORT, 2)), answers(echo(loopback)))
print('nobody', answers(echo(nobody)), answers(echo(everybody), group))
print('forged', answers(tcp(GATEWAY, 4003, PORT, 2, nobody)), answers(tcp(GATEWAY, 4003, PORT, 16, GATEWAY)))
s.sendall(b'!')"#;
        // As many as without such a connection: one from us, or none.
        let expected = match way.family {
            "AF_INET" => "who 1 1\ndenied 1 1\nstray 1 1\nloopback 1 1\nnobody 1 1\nforged 0 0",
            _ => "other 0 0\nfar 1 1\nwho 1 1\ndenied 1 1\nstray 1 1\nloopback 1 1\nnobody 1 0\nforged 0 0",
        };
        way.says(&host, MUCH, code, expected);
        host.said("b'!'");
    });
}
