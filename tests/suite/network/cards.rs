//! The two kinds of card that a machine of namespaces may have.

use super::{Host, PEER};
use crate::support::{Place, Ran, require, under};

/// Says what the card is, and moves bytes in every way over it.
const USE: &str = "print(os.path.exists('/sys/class/net/eth0/tun_flags') and 'device' or 'pair')
s = connect(); print(send_numbers(s, 1 << 26)); s.close()
print(receive(connect())[1])
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.connect((gateway(), PORT)); d.settimeout(10)
for size in (1, 1472, 9000, 65000):
    d.send(bytes(size)); assert d.recv(1 << 16) == bytes(size), size
print(error_of(lambda: connect(1)))";

/// Runs it, perhaps under another program, and gives which card it found.
fn card(prefix: &[&str]) -> String {
    let host = Host::start(
        "s = listen()
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.bind(('127.0.0.1', s.getsockname()[1]))
c, _ = s.accept(); print(receive(c)[1])
c, _ = s.accept(); print(send_numbers(c, 1 << 26)); c.close()
for _ in range(4):
    data, peer = d.recvfrom(1 << 16); d.sendto(data, peer)",
    );
    let place = Place::new_in("/var/tmp").with_isolation(Some("namespaces"));
    let mut command = place.sekexe(["exec", "--host-loopback", &host.port, "--", "python3", "-c"]);
    command.args([&format!("{PEER}\n{USE}"), &host.port]);
    let mut command = if prefix.is_empty() { command } else { under(prefix, &command) };
    let ran = Ran::from(command.output().unwrap()).ended_with(0);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{}", ran.stdout);
    assert_eq!(lines[3], "ECONNREFUSED");
    host.said(&format!("{}\n{}", lines[1], lines[2]));
    lines[0].to_owned()
}

#[test]
fn a_pair_of_links_is_the_card() {
    require!(namespaces, python3);
    assert_eq!(card(&[]), "pair");
}

/// Runs a command under a filter that denies packet sockets: the number of `socket`, and the command.
const NO_PACKET_SOCKETS: &str = "
import ctypes, os, socket, struct, sys
def step(code, yes, no, value): return struct.pack('HBBI', code, yes, no, value)
code = step(0x20, 0, 0, 0) + step(0x15, 0, 3, int(sys.argv[1]))
code += step(0x20, 0, 0, 16) + step(0x15, 0, 1, socket.AF_PACKET) + step(0x06, 0, 0, 0x50001)
code += step(0x06, 0, 0, 0x7fff0000)
code = ctypes.create_string_buffer(code, len(code))
program = struct.pack('HxxxxxxQ', len(code) // 8, ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[2], sys.argv[2:])";

#[test]
fn where_packet_sockets_are_denied_a_tap_device_is_the_card() {
    require!(namespaces, python3);
    let tun = "/dev/net/tun";
    if let Err(why) = std::fs::File::options().read(true).write(true).open(tun) {
        return eprintln!("skipped: {tun}: {why}");
    }
    let number = nix::libc::SYS_socket.to_string();
    assert_eq!(card(&["python3", "-c", NO_PACKET_SOCKETS, &number]), "device");
}
