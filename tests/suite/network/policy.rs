//! Where the machine may connect to, and what is told about it.

use serde_json::Value;

use super::{Host, on_each_machine, python};
use crate::support::{Place, require};

/// Says for each address how connecting to it ends, and how soon.
const ATTEMPTS: &str = "import sys
def attempt(address, port):
    s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
    s.settimeout(5)
    started = time.monotonic()
    why = error_of(lambda: s.connect((address, port)))
    return why if time.monotonic() - started < 0.5 else 'late ' + why
";

#[test]
fn the_host_and_its_cloud_are_out_of_reach_and_say_so_at_once() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start("s = listen(); s.settimeout(8); print(error_of(s.accept) != 'none')");
        // Without --host-loopback.
        let port: u16 = host.port.parse().unwrap();
        let code = format!(
            "{ATTEMPTS}
for address in [gateway(), '169.254.169.254', '169.254.170.2', '100.100.100.200', '168.63.129.16']:
    print(attempt(address, {port}))
try: six = socket.getaddrinfo(HOST, 1, socket.AF_INET6)
except OSError: six = []
if six:
    for address in ['fd00:ec2::254', 'fd20:ce::254', '64:ff9b::7f00:1']:
        print(attempt(address, {port}))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.connect(('169.254.169.254', 53)); s.send(b'x'); print(error_of(lambda: s.recv(1)))"
        );
        let ran = python(place, &[], "", &code).ended_with(0);
        let (last, refused) = ran.stdout.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(refused, "EHOSTUNREACH");
        assert!(last.lines().count() >= 5 && last.lines().all(|line| line == "ECONNREFUSED"), "{last}");
        ran.says("connections were refused").says("169.254.169.254:");
        host.said("True");
    });
}

#[test]
fn only_what_is_allowed_is_reached_and_nothing_that_is_denied() {
    require!(python3);
    on_each_machine(|place| {
        let code = format!(
            "{ATTEMPTS}
print(attempt('192.0.2.253', 443) == 'ECONNREFUSED', attempt('203.0.113.80', 81) == 'ECONNREFUSED')"
        );
        let denied = ["--deny-net", "192.0.2.0/24:443", "--deny-net", "203.0.113.80"];
        python(place, &denied, "", &code).ended_with(0).says("--deny-net");
        let ran = python(place, &["--allow-net", "198.51.100.1"], "", &code).ended_with(0);
        assert_eq!(ran.stdout, "True True\n");
        ran.says("not among --allow-net");
    });
}

#[test]
fn the_result_tells_whom_the_machine_talked_to() {
    require!(python3);
    on_each_machine(|place| {
        let host = Host::start("s = listen(); c, _ = s.accept(); c.sendall(bytes(1000)); receive(c)");
        let code = "s = connect(); s.sendall(bytes(10)); s.recv(1000, socket.MSG_WAITALL); s.close()
print(error_of(lambda: socket.create_connection(('169.254.169.254', 80))))";
        let result = place.path("result.json");
        let log = ["--log-network", "--result", result.to_str().unwrap()];
        python(place, &log, &host.port, code).ended_with(0);
        host.said("");
        let contacts = contacts(&result);
        let to_host = contacts.iter().find(|contact| contact["fate"] == "carried").unwrap();
        assert_eq!((&to_host["sent_bytes"], &to_host["received_bytes"]), (&10.into(), &1000.into()));
        assert_eq!(to_host["protocol"], "tcp");
        let denied = contacts.iter().find(|contact| contact["fate"]["denied"] == "link-local").unwrap();
        assert_eq!(denied["destination"], "169.254.169.254:80");
        // Without the option it is not written.
        let place = Place::new_in("/var/tmp").with_isolation(Some("uml"));
        place.exec_with(["--network", "none", "--result", result.to_str().unwrap(), "true"]).ended_with(0);
        let value: Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
        assert_eq!(value["network"], Value::Null);
    });
}

fn contacts(result: &std::path::Path) -> Vec<Value> {
    let value: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
    value["network"]["contacts"].as_array().unwrap().clone()
}
