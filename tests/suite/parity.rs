//! One table of steps that every machine runs, and what each has to give: parity is the
//! specification of a machine, asserted from inside.
//!
//! Rows differ between machines only where they say what they need: a machine that does not have
//! it refuses by name.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::support::{self, Place, Ran, have, on_every_machine_in, with_input};

/// What a step is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Any command, so that it holds without isolation, too.
    Command,
    /// A machine.
    Machine,
    /// Root over the system's own files.
    SystemRoot,
    /// Users other than root.
    Users,
    /// A kernel of its own.
    Kernel,
}

struct Step {
    of: Of,
    options: &'static [&'static str],
    script: &'static str,
    input: &'static str,
    status: i32,
    stdout: &'static str,
}

/// A step without options that succeeds.
const fn step(of: Of, script: &'static str, stdout: &'static str) -> Step {
    Step { of, options: &[], script, input: "", status: 0, stdout }
}

impl Step {
    const fn with(self, options: &'static [&'static str]) -> Self {
        Self { options, ..self }
    }

    const fn given(self, input: &'static str) -> Self {
        Self { input, ..self }
    }

    const fn ending(self, status: i32) -> Self {
        Self { status, ..self }
    }
}

const NO_SIGNALS: &str = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";

const STEPS: &[Step] = &[
    // How it ends.
    step(Of::Command, "echo a; exit 42", "a\n").ending(42),
    step(Of::Command, "kill -TERM $$", "").ending(143),
    step(Of::Command, "kill -KILL $$", "").ending(137),
    step(Of::Command, "sleep 1000", "").with(&["--timeout", "400ms"]).ending(124),
    step(Of::Command, "no-such-program", "").ending(127),
    step(Of::Command, "exec /etc/passwd", "").ending(126),
    step(Of::Command, "cd /no/such", "").ending(1),
    step(Of::Command, "pwd", "").with(&["--workdir", "/no/such"]).ending(125),
    // What it is born with.
    step(Of::Command, "grep -E 'Sig(Blk|Ign)' /proc/self/status", NO_SIGNALS),
    step(Of::Command, "ls /proc/self/fd", "0\n1\n2\n3\n"),
    step(Of::Command, "umask; cat /proc/self/oom_score_adj", "0022\n0\n"),
    step(Of::Command, "[ $$ = $(ps -o sid= -p $$) ] && (: < /dev/tty) 2> /dev/null || echo no terminal", "no terminal\n"),
    step(Of::Command, "pwd; echo $PWD", "/usr/bin\n/usr/bin\n").with(&["--workdir", "/usr/bin"]),
    step(Of::Command, "echo \"$A|$B\"", "x  y|$(id)\n").with(&["--env", "A=x  y", "--env", "B=$(id)"]),
    step(Of::Command, "echo \"${SEKEXE_SECRET-none}\"", "none\n"),
    // Its streams.
    step(Of::Command, "cat; echo end", "one\ntwo\nend\n").given("one\ntwo\n"),
    step(Of::Command, "read line; echo \"<$line>\"", "<one>\n").given("one\ntwo\n"),
    step(Of::Command, "yes | head -n 2; seq 100000 | tail -n 1", "y\ny\n100000\n"),
    step(Of::Command, "echo out; echo lost >&2; [ ! -t 0 ] && [ ! -t 1 ] && [ ! -t 2 ] && echo pipes", "out\npipes\n"),
    step(Of::Command, "printf '\\377\\000\\r' | od -An -tx1", " ff 00 0d\n"),
    step(Of::Command, "x=$(head -c 100000 /dev/zero | tr '\\0' x); /bin/echo $x | wc -c", "100001\n"),
    // What it leaves behind.
    step(Of::Command, "sleep 1000 & echo left", "left\n"),
    step(Of::Command, "setsid sleep 1000 & setsid --fork sleep 1000; echo detached", "detached\n"),
    step(Of::Command, "for i in $(seq 200); do true & done; wait; echo reaped", "reaped\n"),
    // Who it is and where.
    step(Of::Machine, "id -u; id -g; id -un; echo $HOME $USER", "0\n0\nroot\n/root root\n"),
    step(Of::Machine, "hostname; cat /etc/hostname; getent hosts sekexe | tr -s ' '", "sekexe\nsekexe\n127.0.1.1 sekexe\n"),
    step(Of::Machine, "hostname other; hostname", "other\n"),
    step(Of::Machine, "ls -A /tmp /run /dev/shm", "/dev/shm:\n\n/run:\nsekexe\n\n/tmp:\n"),
    step(Of::Machine, "stat -c %a / /tmp /run /dev /dev/shm /dev/null /dev/pts /proc /root", "755\n1777\n755\n755\n1777\n666\n755\n555\n700\n"),
    step(Of::Machine, "echo $PPID; for at in /etc /usr/bin /var/lib /opt /home /srv /root /; do echo $at > $at/new; cat $at/new; done",
        "1\n/etc\n/usr/bin\n/var/lib\n/opt\n/home\n/srv\n/root\n/\n"),
    step(Of::Machine, "ipcmk -Q > /dev/null; ipcmk -S 1 > /dev/null; ipcs -q -s | grep -c ^0x", "2\n"),
    step(Of::Machine, "ls /dev/mqueue | wc -l; ls /sys/class/net | grep -c ^lo$", "0\n1\n"),
    step(Of::Machine, "(exec 3<> /dev/tcp/127.0.0.1/9) 2>&1 | tail -n 1 | grep -o refused", "refused\n"),
    step(Of::Machine, "echo a > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; (: > /dev/full; echo x > /dev/full) 2>&1 | grep -c 'No space'",
        "3\n3\n1\n"),
    step(Of::Machine, "kill -9 1; kill -TERM 1; echo 1 lives", "1 lives\n"),
    // Root over what belongs to others.
    step(Of::SystemRoot, "echo x >> /etc/passwd; tail -n 1 /etc/passwd; chmod 600 /etc/passwd; rm /usr/bin/env; ls /usr/bin/env 2>&1 | grep -o 'No such'", "x\nNo such\n")
        .with(&["--need", "system-root"]),
    step(Of::SystemRoot, "groupadd --gid 4711 parity && getent group parity", "parity:x:4711:\n").with(&["--root"]),
    step(Of::Users, "id -u; id -g", "1234\n4321\n").with(&["--user", "1234:4321"]),
    step(Of::Users, "touch /opt/f; chown 12:34 /opt/f; stat -c %u:%g /opt/f; setpriv --reuid 12 --regid 34 --clear-groups id -u", "12:34\n12\n")
        .with(&["--need", "users"]),
    step(Of::Kernel, "grep -c 'overlay$' /proc/filesystems", "1\n").with(&["--need", "overlay"]),
];

/// Whether a machine of this kind has what the step is about.
fn has(kind: &str, of: Of) -> bool {
    let users = have::root().is_ok() || have::subordinate_ids().is_ok();
    match (of, kind) {
        (Of::Command, _) => true,
        (_, "none") => false,
        (Of::Machine, _) | (_, "uml") => true,
        (Of::SystemRoot, _) => have::root().is_ok(),
        (Of::Users, _) => users,
        (Of::Kernel, _) => false,
    }
}

fn run(place: &Place, step: &Step) -> Ran {
    let mut command = place.sekexe(["exec", "--shell", "bash --noprofile --norc {0}"]);
    command.args(step.options).arg(step.script).env("SEKEXE_SECRET", "secret");
    with_input(&mut command, step.input.as_bytes())
}

fn check(place: &Place) {
    for step in STEPS {
        if has(place.kind(), step.of) {
            let ran = run(place, step);
            let found = (ran.status, ran.stdout.as_str());
            let expected = (step.status, step.stdout);
            assert_eq!(found, expected, "{} on {}: {}", step.script, place.kind(), ran.stderr);
        } else if step.of != Of::Machine {
            run(place, step).ended_with(125).says(&format!("--isolation {}", place.kind()));
        }
        // What is about a machine is never run without one: it would be done to the host.
    }
    place.assert_nothing_left();
}

#[test]
fn every_step_gives_the_same_on_every_machine() {
    // Not below /tmp, of which machines have their own.
    on_every_machine_in(Path::new("/var/tmp"), check);
}

#[test]
fn without_isolation_a_command_is_started_and_ended_just_the_same() {
    check(&Place::new_in("/var/tmp").with_isolation(Some("none")));
}

#[test]
fn what_a_step_writes_arrives_where_it_may_and_nowhere_else() {
    on_every_machine_in(Path::new("/var/tmp"), |place| {
        std::fs::create_dir(place.path("work/closed")).unwrap();
        std::fs::create_dir(place.path("beside")).unwrap();
        place.write("work/program", "#!/bin/sh\necho ran\n");
        let beside = place.path("beside").display().to_string();
        let script = format!(
            "umask 027; printf x > $'odd \\n\\377 name'; mkdir -p a/b; ln -s a/b link; ln a/b/../../program hard
             chmod 755 program; ./program; mv program moved; touch -d @1000000000 moved; rmdir closed
             echo lost > {beside}/file; cat {beside}/file; mkfifo pipe; (echo through > pipe &); cat pipe"
        );
        let ran = place.exec(&script).ended_with(0);
        assert_eq!(ran.stdout, "ran\nlost\nthrough\n");
        let found: BTreeSet<Vec<u8>> = std::fs::read_dir(place.path("work"))
            .unwrap()
            .map(|entry| std::os::unix::ffi::OsStringExt::into_vec(entry.unwrap().file_name()))
            .collect();
        let names: [&[u8]; 6] = [b"odd \n\xff name", b"a", b"link", b"hard", b"moved", b"pipe"];
        assert_eq!(found, names.map(<[u8]>::to_vec).into());
        assert!(!place.path("beside/file").exists());
        use std::os::unix::fs::MetadataExt;
        let moved = std::fs::metadata(place.path("work/moved")).unwrap();
        assert_eq!((moved.mtime(), moved.mode() & 0o777), (1_000_000_000, 0o755));
        let odd = std::fs::metadata(place.path("work/a/b")).unwrap();
        // Whatever root is inside, on the host it is the user.
        assert_eq!((odd.uid(), odd.mode() & 0o777), (nix::unistd::geteuid().as_raw(), 0o750));
    });
}

/// Every name in a value, with those around it.
fn names(value: &Value, around: &str, found: &mut BTreeSet<String>) {
    if let Value::Object(fields) = value {
        for (name, value) in fields {
            let name = format!("{around}/{name}");
            names(value, &name, found);
            found.insert(name);
        }
    }
}

#[test]
fn the_result_file_has_the_same_fields_for_every_machine() {
    let fields = |place: &Place| {
        let path = place.path("result.json");
        place.exec_with(["--result".as_ref(), path.as_os_str(), "exit 3".as_ref()]).ended_with(3);
        let result: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(result["machine"]["kind"], place.kind());
        assert_eq!(result["outcome"], serde_json::json!({ "kind": "exited", "code": 3 }));
        assert!(!result["machine"]["reason"].as_str().unwrap().is_empty());
        let mut found = BTreeSet::new();
        names(&result, "", &mut found);
        found
    };
    let expected = fields(&Place::new().with_isolation(Some("none")));
    assert!(expected.contains("/peak_memory/machine_bytes"));
    support::on_every_machine(|place| assert_eq!(fields(place), expected));
}
