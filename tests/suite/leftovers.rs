//! Nothing stays behind, however a run ends: no process, no file.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Place, Ran, on_every_machine, ready, require, send};

/// How long the kernel may take to do away with processes that were killed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Processes of guests whose files lie in this place: their kernels have its path as an argument,
/// and what those start shares their arguments or their session.
fn processes_of(place: &Place) -> Vec<i32> {
    let mark = place.path("tmp").canonicalize().unwrap().display().to_string();
    let marked = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        words.contains(&mark) || String::from_utf8_lossy(&environment).contains(&mark)
    };
    crate::support::all_processes().into_iter().filter(marked).collect()
}

/// Waits until no process is left, since a killed one takes a moment to go.
#[track_caller]
fn assert_no_process_left(place: &Place, mut also: Vec<i32>) {
    let end = Instant::now() + PATIENCE;
    loop {
        also.retain(|pid| is_alive(*pid));
        let left = [processes_of(place), also.clone()].concat();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "left behind: {left:?}");
        std::thread::yield_now();
    }
}

/// Whether a process runs; one that only waits to be reaped by its parent does not.
fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn descendants(child: &Child) -> Vec<i32> {
    let all = crate::support::process_tree(child.id());
    all.into_iter().map(u32::cast_signed).filter(|pid| *pid != child.id() as i32).collect()
}

/// Kills runs after delays spread over boot, command and end.
fn kill_at_random_moments(place: &Place, options: &[&str], trials: u64, seed: u64) {
    let mut random = seed;
    let mut cut_short = 0;
    let mut whole = {
        let begun = Instant::now();
        run_once(place, options).wait().unwrap();
        begun.elapsed()
    };
    for trial in 0..trials {
        // xorshift: the moments differ and are the same in each run of the test.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let moment = whole.mul_f64((random % 1000) as f64 / 900.0);
        let mut child = run_once(place, options);
        let begun = Instant::now();
        let pidfd_end = begun + moment;
        while Instant::now() < pidfd_end {
            std::hint::spin_loop();
        }
        let started = descendants(&child);
        let _ = child.kill();
        let status = child.wait().unwrap();
        if status.signal() == Some(Signal::SIGKILL as i32) {
            cut_short += 1;
        } else {
            // The machine is less busy than when a whole run was measured.
            whole = whole.min(moment);
        }
        assert_no_process_left(place, started);
        assert!(status.signal().is_some() || status.success(), "trial {trial}: {status}");
    }
    assert!(cut_short >= trials / 2, "only {cut_short} of {trials} were killed in time");
    // Whatever files they left are swept by the next run.
    Ran::from(place.sekexe(["exec", "true"]).output().unwrap()).ended_with(0);
    place.assert_nothing_left();
}

fn run_once(place: &Place, options: &[&str]) -> Child {
    let script = "for i in 1 2 3 4 5; do (sleep 0.01 & true | true); done; setsid sleep 60 &";
    let mut command = place.sekexe(["exec"]);
    command.args(options).arg(script).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn a_run_killed_at_any_moment_leaves_nothing() {
    on_every_machine(|place| kill_at_random_moments(place, &[], 24, 0x9e37_79b9_7f4a_7c15));
}

#[test]
fn an_untrusted_run_killed_at_any_moment_leaves_nothing() {
    require!(uml);
    kill_at_random_moments(&Place::new(), &["--untrusted"], 20, 0x2545_f491_4f6c_dd1d);
}

#[test]
fn every_way_to_end_leaves_nothing() {
    on_every_machine(|place| {
        end_with(place, "read go || true", &[], &[], 0);
        end_with(place, "sleep 1000", &["--timeout", "1s"], &[], 124);
        end_with(place, "exec sleep 1000", &[], &[Signal::SIGTERM], 143);
        end_with(place, "exec sleep 1000", &[], &[Signal::SIGINT, Signal::SIGINT], 130);
    });
    require!(uml);
    end_with(&Place::new(), "read go || true; echo c > /proc/sysrq-trigger; sleep 1000", &[], &[], 125);
}

/// Has something busy in the background while the rest of a script ends in its way.
#[track_caller]
fn end_with(place: &Place, rest: &str, options: &[&str], signals: &[Signal], status: i32) {
    let busy = "(while :; do :; done) & setsid sleep 1000 & echo ready; ";
    let (mut child, stdout) = ready(place, options, &format!("{busy}{rest}"));
    let started = descendants(&child);
    assert!(!started.is_empty(), "no machine was found");
    drop(child.stdin.take());
    signals.iter().for_each(|signal| send(&child, *signal));
    drop(stdout);
    let ran = Ran::from(child.wait_with_output().unwrap());
    // The second interrupt may come while the first one does its work.
    let either = signals.len() == 2 && ran.status == 137;
    assert!(ran.status == status || either, "{rest}: {} {}", ran.status, ran.stderr);
    assert_no_process_left(place, started);
    place.assert_nothing_left();
}

#[test]
fn a_command_that_ignores_being_told_to_end_is_killed() {
    on_every_machine(|place| {
        let script = "trap '' TERM INT HUP QUIT; echo ready; while :; do sleep 1000; done";
        let (child, _stdout) = ready(place, &["--timeout", "1s"], script);
        let started = descendants(&child);
        Ran::from(child.wait_with_output().unwrap()).ended_with(124);
        assert_no_process_left(place, started);
        place.assert_nothing_left();
    });
}

#[test]
fn a_guest_kernel_that_ignores_its_host_is_killed() {
    require!(uml);
    let place = Place::new();
    // A stopped process answers to nothing but SIGKILL.
    let (child, _stdout) = ready(&place, &[], "echo ready; exec sleep 1000");
    let started = descendants(&child);
    for pid in &started {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
    }
    send(&child, Signal::SIGINT);
    send(&child, Signal::SIGINT);
    let ran = wait_interrupting(child);
    assert!([125, 137].contains(&ran.status), "{} {}", ran.status, ran.stderr);
    assert_no_process_left(&place, started);
    place.assert_nothing_left();
}

/// Interrupts until it ends: two signals of one kind may arrive as one.
fn wait_interrupting(mut child: Child) -> Ran {
    let end = Instant::now() + PATIENCE * 2;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "it does not end");
        send(&child, Signal::SIGINT);
        std::thread::yield_now();
    }
    child.wait_with_output().unwrap().into()
}

#[test]
fn the_next_run_sweeps_what_a_killed_one_left_and_spares_the_living() {
    require!(uml);
    let place = Place::new();
    let directories = || -> Vec<PathBuf> {
        std::fs::read_dir(place.path("tmp")).unwrap().flatten().map(|entry| entry.path()).collect()
    };
    let (mut killed, _one) = ready(&place, &[], "echo ready; exec sleep 1000");
    let of_killed = directories();
    assert_eq!(of_killed.len(), 1);
    let (alive, _two) = ready(&place, &[], "echo ready; exec sleep 1000");
    killed.kill().unwrap();
    killed.wait().unwrap();
    place.exec("true").ended_with(0);
    let left = directories();
    assert!(left.len() == 1 && left != of_killed, "{left:?}");
    assert!(Path::new(&left[0]).join("init").exists());
    send(&alive, Signal::SIGTERM);
    Ran::from(alive.wait_with_output().unwrap()).ended_with(143);
    place.assert_nothing_left();
}
