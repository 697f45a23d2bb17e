//! The network of each kind of machine, with real programs and real sockets at both ends.

mod cards;
mod dns;
mod heavy;
mod hostile;
mod kernels;
mod options;
mod ping;
mod policy;
mod programs;
mod publish;
mod surroundings;
mod tcp;
mod udp;

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::support::{Place, Ran, kernel};

/// What both ends of a test share.
const PEER: &str = include_str!("peer.py");

/// Runs a test on every kind of machine that has a network of its own and starts here. One that
/// does not start is named; where `SEKEXE_TEST_REQUIRE` names it, the test fails.
pub fn on_each_machine(test: impl Fn(&Place)) {
    for isolation in ["uml", "namespaces"] {
        let place = Place::new_in("/var/tmp").with_isolation(Some(isolation));
        let started = match isolation {
            "uml" if kernel("7.3").is_none() => Err("no guest kernel in the cache".to_owned()),
            _ => {
                let ran = place.exec_with(["--network", "none", "--", "true"]);
                if ran.status == 0 { Ok(()) } else { Err(ran.stderr) }
            }
        };
        match started {
            Ok(()) => {
                eprintln!("on {isolation}");
                test(&place);
            }
            Err(why) => {
                let required = std::env::var("SEKEXE_TEST_REQUIRE").unwrap_or_default();
                let is_required = required.split(',').any(|word| word == isolation || word == "all");
                assert!(!is_required, "this test requires {isolation}: {why}");
                eprintln!("skipped on {isolation}: {why}");
            }
        }
    }
}

/// A Python program on the host that listens and says what it saw.
pub struct Host {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub port: String,
}

impl Host {
    /// Starts it; its first line is its port.
    pub fn start(code: &str) -> Self {
        let mut child = Command::new("python3")
            // A peer that never hears what it waits for is a failure, not a test without an end.
            .args(["-c", &format!("{PEER}\nimport signal; signal.alarm(300)\n{code}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut port = String::new();
        stdout.read_line(&mut port).expect("its port");
        Self { child, stdout, port: port.trim().to_owned() }
    }

    /// Waits for its end and fails unless it said this.
    #[track_caller]
    pub fn said(mut self, expected: &str) {
        let mut said = String::new();
        self.stdout.read_to_string(&mut said).expect("its output");
        assert_eq!(said.trim_end(), expected);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs Python in a machine, with the host's port open to it.
pub fn python(place: &Place, options: &[&str], port: &str, code: &str) -> Ran {
    let code = format!("{PEER}\n{code}");
    let opened = if port.is_empty() { vec![] } else { vec!["--host-loopback", port] };
    let port = if port.is_empty() { "0" } else { port };
    let run = ["--", "python3", "-c", &code, port];
    place.exec_with(opened.iter().chain(options).chain(&run))
}

/// A machine, and the family of the addresses by which it and the host talk to each other.
pub struct Way<'a> {
    pub place: &'a Place,
    /// As Python calls it.
    pub family: &'static str,
}

impl Way<'_> {
    /// Python that talks in that family, with what both ends of a test use.
    pub fn code(&self, common: &str, code: &str) -> String {
        format!("FAMILY = socket.{}\n{common}\n{code}", self.family)
    }

    /// The same on the host.
    pub fn start(&self, common: &str, code: &str) -> Host {
        Host::start(&self.code(common, code))
    }

    /// The same in the machine.
    pub fn run(&self, host: &Host, common: &str, code: &str) -> Ran {
        python(self.place, &[], &host.port, &self.code(common, code))
    }

    /// The same, which must say this and end well.
    #[track_caller]
    pub fn says(&self, host: &Host, common: &str, code: &str, expected: &str) {
        let ran = self.run(host, common, code).ended_with(0);
        assert_eq!(ran.stdout.trim_end(), expected);
    }
}

/// Runs a test in this machine, with each family that it has.
pub fn with_each_family(place: &Place, test: impl Fn(&Way<'_>)) {
    test(&Way { place, family: "AF_INET" });
    let names_it = python(place, &[], "", "gateway(socket.AF_INET6)");
    if names_it.status == 0 {
        test(&Way { place, family: "AF_INET6" });
    } else {
        assert!(names_it.stderr.contains("gaierror"), "{}", names_it.stderr);
        eprintln!("skipped over IPv6: the host has none");
    }
}

/// Runs a test in every kind of machine, with each family.
pub fn on_each_way(test: impl Fn(&Way<'_>)) {
    on_each_machine(|place| with_each_family(place, &test));
}

/// Python in a machine that halts where the test wants to look: it says a word and waits for a line.
pub struct Halting {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Halting {
    /// Starts it, with the host's port open to it.
    pub fn start(place: &Place, port: &str, code: &str) -> Self {
        let mut command = place.sekexe(["exec", "--host-loopback", port, "--"]);
        command.args(["python3", "-c", &format!("{PEER}\n{code}"), port]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let input = child.stdin.take().expect("a pipe");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, input, lines }
    }

    /// Waits for its word, and says what our program holds then; see [`holds`].
    #[track_caller]
    pub fn at(&mut self, word: &str) -> (u64, usize) {
        assert_eq!(self.lines.next().expect("a line").expect("a line"), word);
        holds(self.child.id())
    }

    /// Lets it go on.
    pub fn go_on(&mut self) {
        self.input.write_all(b"\n").expect("it reads");
    }

    /// Waits for its end, which must be a success.
    #[track_caller]
    pub fn end(mut self) {
        assert!(self.child.wait().expect("its end").success());
    }
}

/// Resident memory of a process in bytes, and how many descriptors it has open.
fn holds(pid: u32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").count();
    (kib << 10, files)
}
