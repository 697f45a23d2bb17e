//! The network of guests whose kernel is another one than the default.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::Stdio;

use super::publish::free_port;
use super::{Host, PEER, python};
use crate::support::{Place, require};

#[test]
fn guests_of_linux_6_12_have_it() {
    require!(uml_6_12, python3);
    works("6.12/small");
}

#[test]
fn guests_of_linux_6_1_have_it() {
    require!(uml_6_1, python3);
    works("6.1/small");
}

/// It knows nothing of IPv6.
#[test]
fn guests_of_a_distributions_kernel_have_it() {
    require!(distribution_guest, python3);
    works("linux.uml");
}

fn works(kernel: &str) {
    let place = Place::new_in("/var/tmp").with_isolation(Some("uml"));
    let options = ["--kernel", kernel];
    let host = Host::start(
        "s = listen()
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.bind(('127.0.0.1', s.getsockname()[1]))
c, _ = s.accept(); print(*receive(c))
c, _ = s.accept(); print(send_numbers(c, 1 << 28)); c.close()
c, _ = s.accept(); c.recv(1); reset(c)
for _ in range(4):
    data, peer = d.recvfrom(1 << 16); d.sendto(data, peer)
for _ in range(500):
    c, _ = s.accept(); c.sendall(c.recv(1)); c.close()",
    );
    let code = "s = connect(); print(1 << 28, send_numbers(s, 1 << 28)); s.close()
print(*receive(connect()))
s = connect(); s.sendall(b'x'); print(error_of(lambda: receive(s)))
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.connect((gateway(), PORT)); d.settimeout(10)
for size in (1, 1472, 9000, 65000):
    d.send(bytes(size)); assert d.recv(1 << 16) == bytes(size), size
address = (gateway(), PORT)
for _ in range(500):
    s = socket.create_connection(address); s.sendall(b'x'); assert s.recv(1) == b'x'; s.close()
print(error_of(lambda: socket.create_connection((gateway(), 1))))
print(error_of(lambda: socket.create_connection(('169.254.169.254', 80))))";
    let ran = python(&place, &options, &host.port, code).ended_with(0);
    assert!(!ran.stderr.contains("no network"), "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines[0], lines[1], "the two ends sent the same");
    assert_eq!(lines[2..], ["ECONNRESET", "ECONNREFUSED", "ECONNREFUSED"]);
    host.said(&format!("{}\n{}", lines[0], lines[1].split(' ').nth(1).unwrap()));
    serves(&place, &options);
}

/// A published port.
fn serves(place: &Place, options: &[&str]) {
    let port = free_port();
    let code = format!(
        "{PEER}
s = socket.socket(); s.bind(('', 80)); s.listen(1); print('ready', flush=True)
c, _ = s.accept(); c.sendall(b'served'); c.close()"
    );
    let mut command = place.sekexe(["exec", "--publish", &format!("{port}:80")]);
    command.args(options).args(["--", "python3", "-c", &code]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let mut answer = String::new();
    TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "served");
    assert!(child.wait().unwrap().success());
}
