//! Echo requests: the gateway answers, others through the host's ping sockets, where it has them for us.

use super::surroundings::run;
use super::{on_each_machine, python, surroundings};
use crate::support::require;

/// Sends an echo request and gives the answer's data, or what happened instead.
const ECHO: &str = "
def total(data):
    if len(data) % 2: data += b'\\0'
    n = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while n >> 16: n = (n & 0xffff) + (n >> 16)
    return ~n & 0xffff
def echo(address, data, ident=7):
    six = ':' in address
    request, reply, skip = (128, 129, 0) if six else (8, 0, 20)
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, protocol)
    s.settimeout(2); s.connect((address, 0))
    message = struct.pack('!BBHHH', request, 0, 0, ident, 1) + data
    if not six: message = message[:2] + struct.pack('!H', total(message)) + message[4:]
    s.send(message)
    while True:
        answer = s.recv(1 << 16)[skip:]
        if answer[0] == reply:
            assert answer[4:8] == message[4:8] and (six or total(answer) == 0)
            return answer[8:]
";

#[test]
fn the_gateway_answers() {
    require!(python3);
    on_each_machine(|place| {
        let code =
            format!("{ECHO}\nprint(all(echo(gateway(), bytes(n)) == bytes(n) for n in (0, 56, 8001)))");
        assert_eq!(python(place, &[], "", &code).ended_with(0).stdout, "True\n");
    });
}

/// The two hosts of the outside, and what the kernel's setting makes of them.
fn outside(range: &str) -> String {
    format!(
        "subprocess.run(['ip', 'address', 'add', '203.0.113.1/32', 'dev', 'lo'], check=True)
subprocess.run(['ip', 'address', 'add', '2001:db8::1/128', 'dev', 'lo'], check=True)
open('/proc/sys/net/ipv4/ping_group_range', 'w').write('{range}')"
    )
}

#[test]
fn others_answer_where_the_host_lets_us_ask_them() {
    require!(userns, python3);
    surroundings::on_each_machine(|place| {
        let code = format!(
            "{ECHO}
for address in ('203.0.113.1', '2001:db8::1'):
    print(all(echo(address, bytes(n), 5000 + n) == bytes(n) for n in (0, 56, 8001)))
print(error_of(lambda: echo('169.254.169.254', b'')))"
        );
        let ran = run(place, Some(""), &outside("0 0"), &[], &code).ended_with(0);
        assert_eq!(ran.stdout, "True\nTrue\nEHOSTUNREACH\n");
        ran.says("169.254.169.254 (link-local)");
    });
}

#[test]
fn others_are_silent_where_the_host_does_not() {
    require!(userns, python3);
    surroundings::on_each_machine(|place| {
        let code = format!(
            "{ECHO}
print(*(error_of(lambda: echo(address, b'x'))[:12] for address in ('203.0.113.1', '2001:db8::1')))
print(echo(gateway(), b'here').decode())"
        );
        let ran = run(place, Some(""), &outside("1 0"), &[], &code).ended_with(0);
        assert_eq!(ran.stdout, "TimeoutError TimeoutError\nhere\n");
    });
}
