//! Datagrams.

use super::{Host, on_each_machine, python};
use crate::support::require;

#[test]
fn datagrams_of_every_size_come_back_as_they_were() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start(
            "s = listen(socket.SOCK_DGRAM)
while True:
    data, peer = s.recvfrom(1 << 16)
    if not data: break
    s.sendto(data, peer)
print('done')",
        );
        let code = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((gateway(), PORT)); s.settimeout(10)
sizes = [1, 2, 511, 512, 1472, 1473, 9000, 65000, 65492, 65493, 65507] + random.Random(1).sample(range(1, 65000), 40)
for size in sizes:
    data = random.Random(size).randbytes(size)
    s.send(data)
    assert s.recv(1 << 16) == data, size
s.send(b'')
print('same')";
        assert_eq!(python(place, &[], &host.port, code).ended_with(0).stdout, "same\n");
        host.said("done");
    });
}

#[test]
fn a_port_that_nobody_has_is_refused() {
    require!(python3);
    on_each_machine(|place| {
        let closed = Host::start("listen(socket.SOCK_DGRAM).close()");
        let port = closed.port.clone();
        closed.said("");
        let code = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((gateway(), PORT)); s.settimeout(5)
s.send(b'x')
print(error_of(lambda: s.recv(1)))";
        assert_eq!(python(place, &[], &port, code).ended_with(0).stdout, "ECONNREFUSED\n");
    });
}
