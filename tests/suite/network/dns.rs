//! The name server, over resolvers of the test's own.

use super::surroundings::{on_each_machine, run};
use crate::support::{Place, Ran, require};

/// A resolver: every name has two addresses, and the first label of the name of an answer's text is
/// whom it came from.
const RESOLVER: &str = r#"
def resolver(address, mark):
    def answer(query):
        at = 12
        while query[at]: at += query[at] + 1
        kind = struct.unpack('!H', query[at + 1:at + 3])[0]
        data = {1: bytes([203, 0, 113, mark]), 28: socket.inet_pton(socket.AF_INET6, '2001:db8::%x' % mark)}.get(kind)
        records = b'' if data is None else struct.pack('!HHHIH', 0xc00c, kind, 1, 60, len(data)) + data
        counts = struct.pack('!HHHH', 1, 1 if data else 0, 0, 0)
        return query[:2] + b'\x81\x80' + counts + query[12:at + 5] + records
    def datagrams():
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((address, 53))
        while True:
            query, peer = s.recvfrom(4096); s.sendto(answer(query), peer)
    def connections():
        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((address, 53)); s.listen(10)
        while True:
            c, _ = s.accept()
            query = c.recv(4096)
            c.sendall(struct.pack('!H', len(answer(query[2:]))) + answer(query[2:])); c.close()
    for work in (datagrams, connections): threading.Thread(target=work, daemon=True).start()
"#;

/// Runs a Python program in a machine, in surroundings whose resolvers `before` has started.
fn ask(place: &Place, resolv_conf: Option<&str>, before: &str, options: &[&str], code: &str) -> Ran {
    run(place, resolv_conf, &format!("{RESOLVER}\n{before}"), options, code)
}

#[test]
fn a_name_with_both_families_resolves_at_once_the_first_time() {
    require!(userns, python3);
    on_each_machine(|place| {
        // What Python and the C library load before their first lookup is not what is measured.
        let code = "socket.getaddrinfo('localhost', 80)
started = time.monotonic()
found = socket.getaddrinfo('new.example', 80, type=socket.SOCK_STREAM)
took = time.monotonic() - started
print(sorted(a[4][0] for a in found), took < 0.05 or took)";
        let before = "resolver('127.0.0.1', 1)";
        let ran = ask(place, Some("nameserver 127.0.0.1\n"), before, &[], code).ended_with(0);
        assert_eq!(ran.stdout, "['2001:db8::1', '203.0.113.1'] True\n");
    });
}

#[test]
fn ten_thousand_questions_have_ten_thousand_answers() {
    require!(userns, python3);
    on_each_machine(|place| {
        let code = "server = open('/etc/resolv.conf').read().split()[1]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((server, 53)); s.settimeout(10)
def question(n): return struct.pack('!HHHHHH', n & 0xffff, 0x100, 1, 0, 0, 0) + b'\\x05%05d\\x07example\\0\\0\\1\\0\\1' % n
for n in range(0, 10000, 20):
    for m in range(n, n + 20): s.send(question(m))
    got = {s.recv(4096)[13:18] for m in range(20)}
    assert got == {b'%05d' % m for m in range(n, n + 20)}, n
print('all')";
        let before = "resolver('127.0.0.1', 1)";
        let ran = ask(place, Some("nameserver 127.0.0.1\n"), before, &[], code).ended_with(0);
        assert_eq!(ran.stdout, "all\n");
    });
}

#[test]
fn questions_over_tcp_are_answered() {
    require!(userns, python3);
    on_each_machine(|place| {
        let code = "server = open('/etc/resolv.conf').read().split()[1]
s = socket.create_connection((server, 53)); s.settimeout(10)
query = struct.pack('!HHHHHH', 7, 0x100, 1, 0, 0, 0) + b'\\x04name\\x07example\\0\\0\\1\\0\\1'
s.sendall(struct.pack('!H', len(query)) + query)
print(receive(s)[0] > len(query))";
        let before = "resolver('127.0.0.1', 1)";
        let ran = ask(place, Some("nameserver 127.0.0.1\n"), before, &[], code).ended_with(0);
        assert_eq!(ran.stdout, "True\n");
    });
}

#[test]
fn the_hosts_resolver_may_change_while_the_machine_runs() {
    require!(userns, python3);
    on_each_machine(|place| {
        // The machine's working directory is the host's, so it can tell the host when.
        let before = "resolver('127.0.0.1', 1); resolver('127.0.0.2', 2)
def change():
    while not os.path.exists('changed'): time.sleep(0.01)
    open(CONF, 'w').write('nameserver 127.0.0.2\\n'); os.rename('changed', 'done')
threading.Thread(target=change, daemon=True).start()";
        let code = "print(socket.gethostbyname('a.example'))
open('changed', 'w').close()
while not os.path.exists('done'): time.sleep(0.01)
print(socket.gethostbyname('b.example'))";
        let ran = ask(place, Some("nameserver 127.0.0.1\n"), before, &[], code).ended_with(0);
        assert_eq!(ran.stdout, "203.0.113.1\n203.0.113.2\n");
        std::fs::remove_file(place.path("work/done")).unwrap();
    });
}

#[test]
fn a_resolver_that_is_dead_is_followed_by_the_next_and_twenty_are_no_trouble() {
    require!(userns, python3);
    on_each_machine(|place| {
        let code = "print(socket.gethostbyname('a.example'))";
        let many: String = (3..23).map(|n| format!("nameserver 127.0.0.{n}\n")).collect();
        let before = "resolver('127.0.0.5', 5)";
        let ran = ask(place, Some(&many), before, &[], code).ended_with(0);
        assert_eq!(ran.stdout, "203.0.113.5\n");
    });
}

#[test]
fn without_a_resolver_or_a_file_that_names_one_a_lookup_fails_at_once() {
    require!(userns, python3);
    on_each_machine(|place| {
        let code = "started = time.monotonic()
try: socket.gethostbyname('a.example')
except socket.gaierror: print('unknown', time.monotonic() - started < 2)";
        for resolv_conf in [Some("nameserver 127.0.0.1\n"), Some(""), None] {
            let ran = ask(place, resolv_conf, "", &[], code).ended_with(0);
            assert_eq!(ran.stdout, "unknown True\n", "{resolv_conf:?}");
        }
    });
}

#[test]
fn names_are_judged_when_they_are_asked_for_and_when_they_are_used() {
    require!(userns, python3);
    on_each_machine(|place| {
        let before = "resolver('127.0.0.1', 1)
subprocess.run(['ip', 'address', 'add', '203.0.113.1/32', 'dev', 'lo'], check=True)
server = socket.socket(); server.bind(('203.0.113.1', 8080)); server.listen(10)";
        let code =
            "def attempt(name, port=8080): return error_of(lambda: socket.create_connection((socket.gethostbyname(name), port), 5))
print(attempt('good.example'), attempt('good.example', 8081))
try: socket.gethostbyname('bad.example')
except socket.gaierror: print('unknown')";
        let options = ["--allow-net", "good.example:8080"];
        let ran = ask(place, Some("nameserver 127.0.0.1\n"), before, &options, code).ended_with(0);
        assert_eq!(ran.stdout, "none ECONNREFUSED\nunknown\n");
        ran.says("the name bad.example (not among --allow-net)").says("203.0.113.1:8081");
    });
}
