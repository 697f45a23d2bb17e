//! Connections: every byte, every end, every error, and not more memory than that takes.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Halting, Host, PEER, on_each_machine, on_each_way, python};
use crate::support::{require, send};

#[test]
fn a_gigabyte_arrives_whole_in_each_direction() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start(
            "s = listen()
c, _ = s.accept()
print(*receive(c))
c, _ = s.accept()
print(send_numbers(c, 1 << 30))",
        );
        let code = "s = connect()
print(1 << 30, send_numbers(s, 1 << 30))
s.close()
print(*receive(connect()))";
        let ran = python(place, &[], &host.port, code).ended_with(0);
        let lines: Vec<&str> = ran.stdout.lines().collect();
        assert_eq!(lines[0], lines[1], "the two ends sent the same");
        host.said(&format!("{}\n{}", lines[0], lines[1].split(' ').nth(1).unwrap()));
    });
}

/// As containers in the machine have them.
#[test]
fn streams_over_short_packets_arrive_whole() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start(
            "s = listen()
c, _ = s.accept(); print(receive(c)[1])
c, _ = s.accept(); print(send_numbers(c, 1 << 26)); c.close()",
        );
        let code = "assert os.system('ip link set eth0 mtu 1500') == 0
s = connect(); print(send_numbers(s, 1 << 26)); s.close()
print(receive(connect())[1])";
        let ran = python(place, &[], &host.port, code).ended_with(0);
        host.said(ran.stdout.trim_end());
    });
}

#[test]
fn each_side_can_finish_while_the_other_goes_on() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start(
            "s = listen()
c, _ = s.accept()
print(receive(c)[0]); c.sendall(b'answer'); c.close()
c, _ = s.accept()
c.shutdown(socket.SHUT_WR)
print(receive(c)[0])",
        );
        let code = "s = connect()
s.sendall(b'question'); s.shutdown(socket.SHUT_WR)
print(receive(s)[0])
s = connect()
print(receive(s)[0]); s.sendall(b'late'); s.close()";
        assert_eq!(python(place, &[], &host.port, code).ended_with(0).stdout, "6\n0\n");
        host.said("8\n4");
    });
}

#[test]
fn a_reset_reaches_the_other_side() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start(
            "s = listen()
c, _ = s.accept(); c.recv(1); reset(c)
c, _ = s.accept(); c.sendall(b'x'); print(error_of(lambda: receive(c)))",
        );
        let code = "s = connect(); s.sendall(b'x')
print(error_of(lambda: receive(s)))
s = connect(); s.recv(1); reset(s)";
        assert_eq!(python(place, &[], &host.port, code).ended_with(0).stdout, "ECONNRESET\n");
        host.said("ECONNRESET");
    });
}

#[test]
fn nobody_listening_is_a_refusal_within_50_ms() {
    require!(python3);
    on_each_machine(|place| {
        let closed = Host::start("listen().close()");
        let code = "best = 1
for _ in range(5):
    started = time.monotonic()
    print(error_of(lambda: connect()))
    best = min(best, time.monotonic() - started)
print(best < 0.05)";
        let port = closed.port.clone();
        closed.said("");
        let ran = python(place, &[], &port, code).ended_with(0);
        assert_eq!(ran.stdout, "ECONNREFUSED\n".repeat(5) + "True\n");
    });
}

/// Where there is no way, or nobody, the guest sees what the host itself would have seen.
#[test]
fn dead_ends_have_the_hosts_errno() {
    require!(python3);
    let code = "def attempt(address):
    s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
    s.settimeout(8)
    return error_of(lambda: s.connect((address, 9))).replace('timeout', 'TimeoutError')
for address in ['192.0.2.253', 'fd00::fffe', '203.0.113.253', '2001:db8::1']:
    print(address, attempt(address))";
    let host = std::process::Command::new("python3").args(["-c", &format!("{PEER}\n{code}")]).output();
    let expected = String::from_utf8(host.unwrap().stdout).unwrap();
    on_each_machine(|place| {
        let ran = python(place, &[], "", code).ended_with(0);
        assert_eq!(ran.stdout, expected);
    });
}

#[test]
fn a_thousand_connections_live_at_once_in_little_memory() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start(
            "import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
s = listen()
all = [s.accept()[0] for _ in range(1000)]
for c in all: c.sendall(c.recv(100))
print(len(all))",
        );
        // The first line says that all are there; then we look, and let it go on.
        let code = "import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
print('begin', flush=True); input()
all = [connect() for _ in range(1000)]
print('there', flush=True); input()
for n, s in enumerate(all): s.sendall(str(n).encode())
print(all and [s.recv(100).decode() for s in all] == [str(n) for n in range(1000)], flush=True)
input()";
        let mut machine = Halting::start(place, &host.port, code);
        let before = machine.at("begin").0;
        machine.go_on();
        let grown = machine.at("there").0.saturating_sub(before);
        assert!(grown <= 60 << 20, "grown by {} MiB", grown >> 20);
        machine.go_on();
        machine.at("True");
        machine.go_on();
        machine.end();
        host.said("1000");
    });
}

#[test]
fn ten_thousand_connections_one_after_another_leave_nothing() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start(
            "s = listen()
for n in range(11000):
    c, _ = s.accept(); c.sendall(c.recv(1)); c.recv(1); c.close()
print('done')",
        );
        let code = "address = (gateway(), PORT)
def some(count):
    for _ in range(count):
        s = socket.create_connection(address); s.sendall(b'x'); assert s.recv(1) == b'x'; s.close()
some(1000)
print('begin', flush=True); input()
some(10000)
print('end', flush=True); input()";
        let mut machine = Halting::start(place, &host.port, code);
        let (memory, files) = machine.at("begin");
        machine.go_on();
        let (memory_after, files_after) = machine.at("end");
        assert!(files_after <= files + 2, "{files} descriptors, then {files_after}");
        let grown = memory_after.saturating_sub(memory);
        assert!(grown <= 4 << 20, "grown by {} KiB", grown >> 10);
        machine.go_on();
        machine.end();
        host.said("done");
    });
}

/// Pushes until nothing has gone for a second, and says how much went. With a connection that was used
/// the ends' own buffers are small: those that grew are not ours to bound.
const STALL: &str = "def stall(s):
    s.setblocking(False)
    sent = 0
    while select.select([], [s], [], 1)[1]:
        try: sent += s.send(bytes(1 << 16))
        except BlockingIOError: pass
    s.settimeout(60); s.shutdown(socket.SHUT_WR)
    return sent
def fresh(s): pass
def used(s):
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF): s.setsockopt(socket.SOL_SOCKET, option, 1 << 17)
    t = threading.Thread(target=lambda: s.sendall(bytes(200 << 20)))
    t.start(); count = 0
    while count < 200 << 20: count += len(s.recv(1 << 20))
    t.join()";

/// However much it has moved before, and however far the host's own buffers may grow.
#[test]
fn a_reader_that_stalls_stops_the_writer() {
    require!(python3);
    on_each_way(|way| {
        for before in ["fresh", "used"] {
            let host = way.start(
                STALL,
                &format!(
                    "s = listen()
c = s.accept()[0]; {before}(c); d = s.accept()[0]; {before}(d)
d.recv(1); c.sendall(b'%20d' % receive(c)[0])
sent = stall(d); c.sendall(b'!'); print(sent <= 16 << 20 or sent, int(d.recv(20)) == sent)"
                ),
            );
            let code = format!(
                "a = connect(); {before}(a); b = connect(); {before}(b)
sent = stall(a); b.sendall(b'!'); print(sent <= 16 << 20 or sent, int(a.recv(20)) == sent)
a.recv(1); b.sendall(b'%20d' % receive(b)[0])"
            );
            way.says(&host, STALL, &code, "True True");
            host.said("True True");
        }
    });
}

#[test]
fn ipv6_is_there_where_the_host_has_it() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start(
            "s = listen(address='::1')
c, _ = s.accept(); print(receive(c)[0])",
        );
        let code =
            "addresses = [a[4] for a in socket.getaddrinfo(HOST, PORT, socket.AF_INET6, socket.SOCK_STREAM)]
if addresses:
    s = socket.socket(socket.AF_INET6); s.connect(addresses[0]); s.sendall(bytes(100000)); s.close()
    print('sent')";
        let ran = python(place, &[], &host.port, code);
        // A host without IPv6 has not given its name an address of that kind.
        if ran.stdout == "sent\n" {
            host.said("100000");
        } else {
            assert!(ran.stderr.contains("gaierror"), "{}", ran.stderr);
        }
    });
}

/// A process may end as soon as it has written; its kernel then sends the rest.
#[test]
fn what_a_command_sends_last_arrives_at_a_slow_reader() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start(
            "s = listen()
for _ in range(2):
    c, _ = s.accept()
    for _ in range(5): time.sleep(0.1); c.recv(1 << 16, socket.MSG_WAITALL)
    print(receive(c)[0] + 5 * (1 << 16))",
        );
        let code = "s = connect(); s.sendall(bytes(1_000_000)); s.close()
s = connect(); s.sendall(bytes(8_000_000))";
        let ran = python(place, &[], &host.port, code).ended_with(0);
        assert!(!ran.stderr.contains("nobody took"), "{}", ran.stderr);
        host.said("1000000\n8000000");
    });
}

/// Nobody waits for a reader that does not read, or longer than the user wants.
#[test]
fn what_nobody_takes_in_the_end_is_told() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start(
            "s = listen()
c, _ = s.accept(); c.recv(1)
d, _ = s.accept(); d.recv(1)
e, _ = s.accept(); e.recv(1)
time.sleep(120)",
        );
        let code = "s = connect(); s.setblocking(False)
try:
    while True: s.send(bytes(1 << 20)); time.sleep(0.01)
except BlockingIOError: pass";
        let started = Instant::now();
        let ran = python(place, &[], &host.port, code).ended_with(0);
        assert!(started.elapsed() < Duration::from_secs(25));
        ran.says("what it wrote or sent last is still on its way").says("connections were cut: ");

        let unending = format!("{code}\ntime.sleep(60)");
        let started = Instant::now();
        let ran = python(place, &["--timeout", "2"], &host.port, &unending).ended_with(124);
        assert!(started.elapsed() < Duration::from_secs(6), "who was ended ends");
        ran.says("connections were cut: ");

        let code = format!("{PEER}\n{code}");
        let opened = ["exec", "--host-loopback", &host.port, "--", "python3", "-c", &code, &host.port];
        let mut command = place.sekexe(opened);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut notes = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(notes.next().unwrap().unwrap().contains("still on its way"));
        let interrupted = Instant::now();
        send(&child, Signal::SIGINT);
        assert!(notes.next().unwrap().unwrap().contains("connections were cut"));
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(interrupted.elapsed() < Duration::from_secs(3));
    });
}
