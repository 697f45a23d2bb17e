//! A host of the test's own: our program runs in a network and a mount namespace made for the test, in
//! which `/etc/resolv.conf`, the loopback and the settings of the network are the test's.
//!
//! To an ordinary user that takes a user namespace, whose root cannot start namespaces machines; then
//! it is the guest alone that is asked.

use std::process::{Command, Stdio};

use super::PEER;
use crate::support::{Place, Ran, have, under};

/// Every kind of machine that starts there.
pub fn on_each_machine(test: impl Fn(&Place)) {
    super::on_each_machine(|place| {
        if have::root().is_ok() || place.kind() == "uml" {
            test(place);
        } else {
            eprintln!("skipped: no namespaces machine in a user namespace of the test's");
        }
    });
}

/// Runs a Python program in a machine there, after another one, which prepares the surroundings.
pub fn run(place: &Place, resolv_conf: Option<&str>, before: &str, options: &[&str], code: &str) -> Ran {
    let file = place.path("resolv.conf");
    std::fs::write(&file, resolv_conf.unwrap_or_default()).unwrap();
    let code = format!("{PEER}\n{code}");
    let mut inner = place.sekexe(["exec"]);
    inner.args(options).args(["--", "python3", "-c", &code]);
    let surroundings = format!(
        "{PEER}
import subprocess
CONF = {file:?}
subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
{cover}
{before}
sys.exit(subprocess.run(sys.argv[1:]).returncode)",
        file = file.display().to_string(),
        cover = match resolv_conf {
            Some(_) => "subprocess.run(['mount', '--bind', CONF, '/etc/resolv.conf'], check=True)",
            // A link to nowhere.
            None =>
                "os.path.islink('/etc/resolv.conf') or subprocess.run(['mount', '--bind', '/dev/null', '/etc/resolv.conf'], check=True)",
        }
    );
    let user: &[&str] = if have::root().is_ok() { &[] } else { &["--user", "--map-root-user"] };
    let prefix = [&["unshare"], user, &["--mount", "--net", "python3", "-c", &surroundings]].concat();
    let mut command: Command = under(&prefix, &inner);
    Ran::from(command.stderr(Stdio::piped()).output().unwrap())
}
