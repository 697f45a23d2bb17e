//! The library as the other commands use it: several commands in one machine.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::Read;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use sekexe_ci::cli::Color;
use sekexe_ci::commands::{Environment, kernel};
use sekexe_ci::detect::Limits;
use sekexe_ci::machine::run_dir::RunDir;
use sekexe_ci::machine::{Access, uml};
use sekexe_ci::net::policy::Policy;
use sekexe_ci::net::{Addresses, Card, CardKind, Network, Settings};
use sekexe_ci::plan::{self, guest};
use sekexe_ci::session::{Command, Connection, Console, Finished, Input, Output, Signals};
use sekexe_init::protocol::{Boot, ByteBuf, Outcome, Spawn};

use crate::support::{self, Place, require};

/// A booted machine. It lives as long as the thread that has started it.
fn machine(place: &Place) -> Connection {
    let env = Environment::read(Color::Never);
    let chosen = support::kernel("7.3").unwrap();
    let kernel = kernel::resolve(chosen.as_os_str(), None, &env).unwrap();
    let run_dir = RunDir::create(&[place.path("tmp")]).unwrap();
    let request = plan::Request { memory: Some(512 << 20), ..plan::Request::default() };
    let limits = Limits::probe().unwrap();
    let plan = guest::plan(&request, &limits, &kernel.features, run_dir.disk_free(), 0).unwrap();
    let access = Access { rootfs: "/".into(), writable: vec![], readable: vec![], hidden: vec![] };
    let machine = uml::start(&kernel, &plan, &access, false, run_dir).unwrap();
    let mut connection = Connection::new(machine, Console::new(None), Signals::block().unwrap(), None);
    let boot = Boot {
        hostname: ByteBuf::from(*b"machine"),
        rootfs: ByteBuf::from(*b"/"),
        writable_bytes: plan.writable,
        max_tasks: plan.max_tasks,
        ..Boot::default()
    };
    connection.boot(&boot).unwrap();
    connection.wait_until_ready(Instant::now() + Duration::from_secs(60)).unwrap();
    connection
}

fn command(script: &str, stdout: Output) -> Command {
    let argv = ["sh", "-c", script].map(|word| ByteBuf::from(word.as_bytes())).into();
    let spawn = Spawn {
        session: 0,
        argv,
        env: vec![ByteBuf::from(*b"PATH=/usr/bin:/bin")],
        workdir: ByteBuf::from(*b"/"),
        user: ByteBuf::from(*b"root"),
        stdin: false,
        terminal: None,
    };
    Command { spawn, files: vec![], input: Input::Null, stdout, stderr: Output::Capture, timeout: None }
}

fn captured(finished: &Finished) -> [String; 2] {
    finished.captured.each_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

#[test]
fn commands_run_one_after_another_and_share_the_machine() {
    require!(uml);
    let place = Place::new();
    let mut machine = machine(&place);
    for (script, code, out, err) in [
        ("echo one; echo two >&2; exit 3", 3, "one\n", "two\n"),
        ("echo kept > /kept", 0, "", ""),
        ("cat /kept; hostname", 0, "kept\nmachine\n", ""),
        ("exit 0", 0, "", ""),
    ] {
        let session = machine.spawn(command(script, Output::Capture)).unwrap();
        let finished = machine.wait(session).unwrap();
        assert_eq!(finished.outcome, Outcome::Exited(code));
        assert_eq!(captured(&finished), [out, err]);
    }
    machine.shut_down(&mut || true).unwrap();
    drop(machine);
    place.assert_nothing_left();
}

#[test]
fn commands_side_by_side_do_not_mix() {
    require!(uml);
    let place = Place::new();
    let mut machine = machine(&place);
    // Each waits for the others, so they do run at the same time.
    let script = |name: char| {
        format!(
            "touch /tmp/{name}; until [ -e /tmp/a ] && [ -e /tmp/b ] && [ -e /tmp/c ]; do sleep 0.01; done
             yes {name} | head -n 200000; yes {name} | head -n 1000 >&2; exit {}",
            name as u32 - 'a' as u32
        )
    };
    let sessions =
        ['a', 'b', 'c'].map(|name| machine.spawn(command(&script(name), Output::Capture)).unwrap());
    // Waited for in another order than started.
    for (at, name) in [(2, "c\n"), (0, "a\n"), (1, "b\n")] {
        let finished = machine.wait(sessions[at]).unwrap();
        assert_eq!(finished.outcome, Outcome::Exited(at as u8));
        let [out, err] = captured(&finished);
        assert!(out == name.repeat(200_000), "{} bytes of output of {name}", out.len());
        assert!(err == name.repeat(1000), "{} bytes of error of {name}", err.len());
    }
    assert!(machine.wait(sessions[0]).is_err(), "a session ends once");
}

#[test]
fn a_timeout_of_one_command_does_not_touch_another() {
    require!(uml);
    let place = Place::new();
    let mut machine = machine(&place);
    let slow = Command {
        timeout: Some(Duration::from_secs(1)),
        ..command("sleep 1000 & sleep 1000", Output::Capture)
    };
    let slow = machine.spawn(slow).unwrap();
    let script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; echo went";
    let other = machine.spawn(command(script, Output::Capture)).unwrap();
    assert_eq!(machine.wait(slow).unwrap().outcome, Outcome::TimedOut);
    let go = machine.spawn(command("touch /tmp/go; pgrep -c sleep", Output::Capture)).unwrap();
    machine.wait(go).unwrap();
    let finished = machine.wait(other).unwrap();
    assert_eq!((finished.outcome.clone(), captured(&finished)[0].as_str()), (Outcome::Exited(0), "went\n"));
}

#[test]
fn a_program_that_is_missing_does_not_end_the_machine() {
    require!(uml);
    let place = Place::new();
    let mut machine = machine(&place);
    let mut missing = command("", Output::Capture);
    missing.spawn.argv = vec![ByteBuf::from(*b"no-such-program")];
    let session = machine.spawn(missing).unwrap();
    assert!(matches!(machine.wait(session).unwrap().outcome, Outcome::NeverStarted(_)));
    let session = machine.spawn(command("kill -9 $$", Output::Capture)).unwrap();
    assert_eq!(machine.wait(session).unwrap().outcome, Outcome::Signalled(9));
    let session = machine.spawn(command("echo alive", Output::Capture)).unwrap();
    assert_eq!(captured(&machine.wait(session).unwrap())[0], "alive\n");
}

#[test]
fn a_network_that_ends_by_itself_ends_the_machine_with_our_error() {
    require!(uml);
    let place = Place::new();
    let mut machine = machine(&place);
    let session = machine.spawn(command("sleep 1000", Output::Capture)).unwrap();
    // It can be waited for, and reading it is an error: as with a card that was taken away.
    let fd = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0;
    let card = Card { fd, kind: CardKind::Device, offload: false, mtu: 1500, outside: None };
    let settings = Settings {
        addresses: Addresses::choose(&[]),
        policy: Policy::default(),
        host_loopback: BTreeSet::new(),
        published: Vec::new(),
        resolv_conf: "/etc/resolv.conf".into(),
        log_everything: false,
    };
    machine.attach(Network::start(card, settings).unwrap());
    match machine.wait(session).unwrap().outcome {
        Outcome::MachineDied(failure) => assert_eq!(failure.stage, "network", "{failure}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_command_learns_that_the_machine_died() {
    require!(uml);
    let place = Place::new();
    let mut machine = machine(&place);
    let waiting = machine.spawn(command("sleep 1000", Output::Capture)).unwrap();
    let fatal = machine.spawn(command("echo c > /proc/sysrq-trigger; sleep 1000", Output::Capture)).unwrap();
    for session in [waiting, fatal] {
        let Outcome::MachineDied(failure) = machine.wait(session).unwrap().outcome else {
            panic!("it lives")
        };
        assert!(failure.reason.contains("sysrq triggered crash"), "{failure}");
    }
    let late = machine.spawn(command("true", Output::Capture)).unwrap();
    assert!(matches!(machine.wait(late).unwrap().outcome, Outcome::MachineDied(_)));
}

#[test]
fn output_can_be_handed_on_as_it_comes() {
    require!(uml);
    let place = Place::new();
    let mut machine = machine(&place);
    let count = Rc::new(Cell::new(0));
    let counted = Rc::clone(&count);
    let hand = Output::Hand(Box::new(move |bytes| counted.set(counted.get() + bytes.len())));
    let session = machine.spawn(command("head -c 50000000 /dev/zero", hand)).unwrap();
    assert_eq!(machine.wait(session).unwrap().outcome, Outcome::Exited(0));
    assert_eq!(count.get(), 50_000_000);
}

#[test]
fn a_flood_for_a_slow_reader_stays_in_the_guest() {
    require!(uml);
    let place = Place::new();
    let mut machine = machine(&place);
    let (mut slow, flood) = std::io::pipe().unwrap();
    let session = machine.spawn(command("head -c 300000000 /dev/zero", Output::Fd(flood.into()))).unwrap();
    // While nobody reads, another command is served and nothing piles up here.
    let before = resident_bytes();
    let script = "for i in 1 2 3 4 5; do head -c 10000000 /dev/zero | wc -c; done";
    let other = machine.spawn(command(script, Output::Capture)).unwrap();
    assert_eq!(captured(&machine.wait(other).unwrap())[0], "10000000\n".repeat(5));
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");

    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let mut read = 0;
        while let Ok(n @ 1..) = slow.read(&mut buffer) {
            read += n;
        }
        read
    });
    assert_eq!(machine.wait(session).unwrap().outcome, Outcome::Exited(0));
    assert_eq!(reader.join().unwrap(), 300_000_000);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
}

/// What this process holds in memory. Other tests run in it as well, hence the wide margins.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap() * 4096
}

#[test]
fn a_kernel_6_12_runs_commands_too() {
    require!(uml_6_12);
    run_on("6.12/small");
}

#[test]
fn a_kernel_6_1_runs_commands_too() {
    require!(uml_6_1);
    run_on("6.1/small");
}

fn run_on(version: &str) {
    let kernel = support::kernel(version).unwrap();
    let place = Place::new();
    let mut command = std::process::Command::new(support::program());
    command.args(["exec", "--kernel"]).arg(kernel).arg("uname -r; touch file; exit 3");
    command.current_dir(place.path("work")).env("TMPDIR", place.path("tmp"));
    let ran = support::Ran::from(command.output().unwrap()).ended_with(3);
    let number = version.split('/').next().unwrap();
    assert!(ran.stdout.starts_with(number), "{}", ran.stdout);
    assert!(place.path("work/file").exists());
    place.assert_nothing_left();
}

#[test]
fn a_machine_ends_with_its_owner() {
    require!(uml);
    let place = Place::new();
    let machine = machine(&place);
    let id = machine.machine().id();
    let command_line = |id| std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    assert!(command_line(id).windows(4).any(|part| part == b"mem="));
    drop(machine);
    assert!(command_line(id).is_empty());
    place.assert_nothing_left();
}
