//! A machine whose root does its worst to the network: our program goes on, in bounded memory, and
//! what is denied stays denied.

use super::{Halting, Host, PEER, on_each_machine};
use crate::support::require;

/// Frames by hand. Whatever is sent, at the end an honest connection must work.
const FRAMES: &str = r#"
import fcntl
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); raw.bind(('eth0', 0))
OURS = open('/sys/class/net/eth0/address').read().strip().replace(':', '') if os.path.exists('/sys/class/net/eth0/address') else '0273656b0015'
OURS = bytes.fromhex(OURS)
THEIRS = bytes.fromhex('0273656b0002')
ME, GATEWAY = socket.inet_aton('.'.join(gateway().split('.')[:3] + ['15'])), socket.inet_aton(gateway())

def total(data):
    if len(data) % 2: data += b'\0'
    n = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while n >> 16: n = (n & 0xffff) + (n >> 16)
    return ~n & 0xffff

def ip(source, target, protocol, payload, flags=0, ident=1):
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(payload), ident, flags, 64, protocol, 0, source, target)
    return head[:10] + struct.pack('!H', total(head)) + head[12:] + payload

def syn(source, target, sport, dport):
    head = struct.pack('!HHIIBBHHH', sport, dport, sport, 0, 0x50, 2, 65535, 0, 0)
    pseudo = source + target + struct.pack('!BBH', 0, 6, len(head))
    return ip(source, target, 6, head[:16] + struct.pack('!H', total(pseudo + head)) + head[18:])

def send(ethertype, body):
    try: raw.send(THEIRS + OURS + struct.pack('!H', ethertype) + body)
    except OSError: pass
"#;

/// Runs an attack; meanwhile and after it the honest connection works and memory stays bounded.
fn survives(attack: &str) {
    on_each_machine(|place| {
        // Whoever broke a handshake off may be gone before it is served.
        let host = Host::start(
            "s = listen()
while True:
    c, _ = s.accept()
    try: c.sendall(b'alive')
    except OSError: pass
    c.close()",
        );
        let code = format!(
            "{FRAMES}
print('begin', flush=True); input()
{attack}
for attempt in range(30):
    time.sleep(1)
    try: answer = connect().recv(5).decode(); break
    except OSError as error: answer = f'never again: {{error}}'
print(answer, flush=True); input()"
        );
        let mut machine = Halting::start(place, &host.port, &code);
        let (memory, _) = machine.at("begin");
        machine.go_on();
        let grown = machine.at("alive").0.saturating_sub(memory);
        assert!(grown <= 96 << 20, "grown by {} MiB", grown >> 20);
        machine.go_on();
        machine.end();
    });
}

#[test]
fn malformed_frames() {
    require!(python3);
    survives(
        "r = random.Random(3)
good = syn(ME, GATEWAY, 1, 2)
for n in range(20000):
    body = bytearray(good + r.randbytes(r.randrange(60)))
    for _ in range(r.randrange(8)): body[r.randrange(len(body))] = r.randrange(256)
    send(r.choice([0x800, 0x86dd, 0x806, 0x8100, r.randrange(65536)]), bytes(body[:r.randrange(len(body) + 1)]))",
    );
}

#[test]
fn a_flood_of_arp_requests() {
    require!(python3);
    survives(
        "for n in range(50000):
    who = struct.pack('!I', struct.unpack('!I', GATEWAY)[0] & ~255 | n & 255)
    send(0x806, struct.pack('!HHBBH6s4s6s4s', 1, 0x800, 6, 4, 1, OURS, ME, bytes(6), who))",
    );
}

#[test]
fn a_flood_of_a_hundred_thousand_first_segments() {
    require!(python3);
    survives("for n in range(100000): send(0x800, syn(ME, GATEWAY, 1024 + n % 60000, PORT))");
}

#[test]
fn spoofed_sources() {
    require!(python3);
    survives(
        "for n in range(20000):
    source = struct.pack('!I', random.getrandbits(32))
    send(0x800, syn(source, GATEWAY, 5, PORT))
    send(0x800, ip(source, GATEWAY, 17, struct.pack('!HHHH', 5, PORT, 8, 0)))",
    );
}

#[test]
fn fragments_that_never_end_and_frames_as_long_as_they_get() {
    require!(python3);
    survives(
        "for n in range(20000):
    send(0x800, ip(ME, GATEWAY, 17, bytes(1400), 0x2000 | n % 100, n & 0xffff))
for n in range(2000):
    send(0x800, ip(ME, GATEWAY, 6, bytes(65000)))
    send(0x86dd, bytes(65000))",
    );
}

#[test]
fn datagrams_to_a_hundred_thousand_places() {
    require!(python3);
    survives(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setblocking(False)
for n in range(100000):
    try: s.sendto(b'x', (gateway(), PORT) if n % 1000 == 0 else ('203.0.%d.%d' % (n // 256 % 256, n % 256), 9))
    except OSError: pass",
    );
}

/// Not by another source address, by another form of an address, or by a part of a packet.
#[test]
fn what_is_denied_is_not_reached_by_frames_made_by_hand() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start("s = listen(); s.settimeout(8); print(error_of(s.accept) != 'none')");
        let port = &host.port;
        let code = format!(
            "{PEER}\n{FRAMES}
loop, any = socket.inet_aton('127.0.0.1'), bytes(4)
for target in (loop, any, GATEWAY, ME, socket.inet_aton('255.255.255.255')):
    for source in (ME, loop, GATEWAY):
        send(0x800, syn(source, target, 7, {port}))
        whole = syn(source, target, 8, {port})
        send(0x800, ip(source, target, 6, whole[20:36], 0x2000, 9)); send(0x800, ip(source, target, 6, whole[36:], 2, 9))
six = bytes.fromhex('fd73656b657865000000000000000015')
for target in ('::1', '::ffff:127.0.0.1', '::', '64:ff9b::7f00:1', '::127.0.0.1'):
    segment = syn(ME, loop, 9, {port})[20:]
    send(0x86dd, struct.pack('!IHBB', 6 << 28, len(segment), 6, 64) + six + socket.inet_pton(socket.AF_INET6, target) + segment)
print('sent')"
        );
        let ran = place.exec_with(["--", "python3", "-c", &code]).ended_with(0);
        assert_eq!(ran.stdout, "sent\n");
        host.said("True");
    });
}
