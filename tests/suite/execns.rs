//! `execns`, property by property, as its article describes the call, asserted from inside.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use sekexe_ci::execns::{Flags, execns, execns_keeping};

use crate::support::{Place, Ran, process_tree, require, send, under};

/// How long something killed may take to go.
const PATIENCE: Duration = Duration::from_secs(20);

/// `execns` with fresh users, further options, and a program.
fn execns_of(place: &Place, options: &[&str], program: &[&str]) -> Command {
    let mut command = place.sekexe(["execns", "--user"]);
    command.args(options).arg("--").args(program);
    command
}

fn run(place: &Place, options: &[&str], script: &str) -> Ran {
    Ran::from(execns_of(place, options, &["sh", "-c", script]).output().unwrap())
}

/// A program that has written its first line.
fn started(command: &mut Command) -> (Child, BufReader<ChildStdout>, String) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    (child, stdout, line.trim().to_owned())
}

#[test]
fn the_program_is_pid_1_and_root_of_namespaces_of_its_own() {
    require!(userns);
    let place = Place::new();
    let all = ["--pid", "--net", "--ipc", "--uts", "--mount", "--cgroup", "--time"];
    let script = "echo $$ $PPID $(id -u); for ns in user pid net ipc uts mnt cgroup time; do readlink /proc/self/ns/$ns; done";
    // The host's /proc shows the caller's processes, so `self` needs a new one.
    let script = format!("mount -t proc proc /proc && {script}");
    let ran = run(&place, &all, &script).ended_with(0);
    let mut lines = ran.stdout.lines();
    assert_eq!(lines.next(), Some("1 0 0"));
    for name in ["user", "pid", "net", "ipc", "uts", "mnt", "cgroup", "time"] {
        let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(lines.next(), ours.to_str(), "{name}");
    }
    let ran = run(&place, &[], "readlink /proc/self/ns/net; echo $$").ended_with(0);
    let ours = fs::read_link("/proc/self/ns/net").unwrap();
    assert!(ran.stdout.starts_with(ours.to_str().unwrap()) && !ran.stdout.ends_with("\n1\n"));
}

#[test]
fn semaphores_and_message_queues_are_not_shared() {
    require!(userns);
    let place = Place::new();
    let script =
        "ipcs -q -s | grep -c ^0x; ipcmk -Q; ipcmk -S 1; ipcs -q -s | grep -c ^0x; ipcs -q | grep ^0x";
    let made = |kind: &[&str]| {
        let output = Command::new("ipcmk").args(kind).output().unwrap();
        String::from_utf8(output.stdout).unwrap().rsplit(' ').next().unwrap().trim().to_owned()
    };
    let (queue, semaphore) = (made(&["-Q"]), made(&["-S", "1"]));
    let ran = run(&place, &["--ipc"], script);
    let outside = Command::new("ipcs").arg("-q").output().unwrap();
    Command::new("ipcrm").args(["-q", &queue, "-s", &semaphore]).status().unwrap();
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!((lines[0], lines[3]), ("0", "2"), "{}", ran.stdout);
    let key = lines[4].split(' ').next().unwrap();
    assert!(!String::from_utf8(outside.stdout).unwrap().contains(key), "{key}");
}

#[test]
fn no_descriptor_leaks_even_if_it_does_not_close_on_exec() {
    require!(userns);
    let place = Place::new();
    let open = "exec 7< /etc/passwd 9< /etc/hostname 200> /dev/null; exec \"$@\"";
    let run = |keep: &[&str], program: &[&str]| {
        let command = execns_of(&place, keep, program);
        Ran::from(under(&["bash", "-c", open, "bash"], &command).output().unwrap())
    };
    let list = ["ls", "/proc/self/fd"];
    // The last one of `ls` itself.
    assert_eq!(run(&[], &list).ended_with(0).stdout, "0\n1\n2\n3\n");
    assert_eq!(run(&["--keep-fd", "9"], &list).ended_with(0).stdout, "0\n1\n2\n3\n9\n");
    let kept = run(&["--keep-fd", "9"], &["sh", "-c", "cat <&9"]).ended_with(0).stdout;
    assert_eq!(kept, fs::read_to_string("/etc/hostname").unwrap());
    run(&["--keep-fd", "11"], &list).ended_with(125).says("--keep-fd").says("not open");
}

#[test]
fn the_same_user_has_limits_of_its_own_in_each_namespace() {
    require!(userns, python3, ordinary_user);
    let place = Place::new();
    // Twelve processes of at most sixteen, and then signals waiting, of at most eight.
    let many = "i=0; while [ $i -lt 12 ]; do sleep 1000 & i=$((i + 1)); done; echo made; read go";
    let pending = "import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
for _ in range(6): os.kill(os.getpid(), 40)
print([line.split()[1] for line in open('/proc/self/status') if line.startswith('SigQ')][0], flush=True)
input()";
    let limited = |what: &str, program: &[&str]| {
        let program = [&["prlimit", what], program].concat();
        // With PID 1 everything that it started ends.
        execns_of(&place, &["--pid"], &program)
    };
    let shell = ["sh", "-c", many];
    let python = ["python3", "-c", pending];
    for (what, program, answer) in [("--nproc=16", &shell, "made"), ("--sigpending=8", &python, "6/8")] {
        let mut running: Vec<_> = (0..2).map(|_| started(&mut limited(what, program))).collect();
        for (child, _, line) in &mut running {
            assert_eq!(line, answer, "{what}");
            drop(child.stdin.take());
        }
        for (mut child, ..) in running {
            child.wait().unwrap();
        }
    }
    // Within one namespace the limit does hold.
    let too_many = many.replace("-lt 12", "-lt 20");
    let ran = Ran::from(limited("--nproc=16", &["sh", "-c", &too_many]).output().unwrap());
    assert_ne!(ran.status, 0);
    ran.says("fork");
}

#[test]
fn a_semaphore_of_the_callers_is_neither_lost_nor_shared() {
    require!(userns);
    let place = Place::new();
    // Takes a semaphore with undo, and becomes our program.
    let take = "use IPC::SysV qw(IPC_PRIVATE SETVAL SEM_UNDO); $| = 1;
        my $id = semget(IPC_PRIVATE, 1, 0600); semctl($id, 0, SETVAL, 1);
        semop($id, pack('s3', 0, -1, SEM_UNDO)) or die; print \"$id\\n\"; exec @ARGV;";
    let command = execns_of(&place, &["--ipc"], &["sh", "-c", "ipcs -s | grep -c ^0x; read go"]);
    let (mut child, mut stdout, id) = started(&mut under(&["perl", "-e", take], &command));
    let mut inside = String::new();
    stdout.read_line(&mut inside).unwrap();
    let value = || {
        let output = Command::new("ipcs").args(["-s", "-i", &id]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let row = text.lines().find(|line| line.starts_with("0 ")).expect("a semaphore").to_owned();
        row.split_whitespace().nth(1).unwrap().to_owned()
    };
    let meanwhile = value();
    drop(child.stdin.take());
    child.wait().unwrap();
    let after = value();
    Command::new("ipcrm").args(["-s", &id]).status().unwrap();
    assert_eq!([inside.trim(), &meanwhile, &after], ["0", "0", "1"]);
}

#[test]
fn how_the_program_ends_is_how_the_caller_ends() {
    require!(userns);
    let place = Place::new();
    for status in [0, 1, 7, 125, 255] {
        run(&place, &["--pid"], &format!("exit {status}")).ended_with(status);
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGSEGV] {
        run(&place, &[], &format!("kill -{} $$", signal as i32)).ended_with(128 + signal as i32);
    }
    let script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut command = execns_of(&place, &["--pid"], &["sh", "-c", script]);
    let (child, mut stdout, line) = started(&mut command);
    assert_eq!(line, "ready");
    send(&child, Signal::SIGTERM);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got\n");
    Ran::from(child.wait_with_output().unwrap()).ended_with(3);
}

#[test]
fn a_killed_caller_takes_its_program_along() {
    require!(userns);
    let place = Place::new();
    let mut command = execns_of(&place, &["--pid"], &["sh", "-c", "echo ready; sleep 1000"]);
    let (mut child, _stdout, _) = started(&mut command);
    let family: Vec<u32> = process_tree(child.id()).into_iter().filter(|pid| *pid != child.id()).collect();
    assert!(!family.is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    let end = Instant::now() + PATIENCE;
    for pid in family {
        while fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty()) {
            assert!(Instant::now() < end, "{pid} lives");
            std::thread::yield_now();
        }
    }
}

#[test]
fn what_cannot_be_executed_or_is_denied_is_told_and_no_more() {
    require!(userns);
    let place = Place::new();
    let ran = |program: &str| Ran::from(execns_of(&place, &[], &[program]).output().unwrap());
    ran("no-such-program").ended_with(127).says("not found");
    ran("/etc/passwd").ended_with(126).says("/etc/passwd");
    let closed = "echo 0 > /proc/sys/user/max_user_namespaces; \"$@\"; echo ended $?";
    let prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", closed, "sh"];
    let command = execns_of(&place, &["--pid"], &["true"]);
    let ran = Ran::from(under(&prefix, &command).output().unwrap()).says("create the namespaces");
    assert_eq!(ran.stdout, "ended 125\n");
}

/// What this test program does when it is started as a caller of the library.
const ROLE: &str = "SEKEXE_TEST_ROLE";

/// This test program as a caller of the library: one test of it, in a process of its own.
fn caller(role: &str, file: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "execns::the_library_is_called", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env("SEKEXE_TEST_FILE", file);
    command
}

/// Runs only where [`caller`] started it.
#[test]
fn the_library_is_called() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let file = std::env::var("SEKEXE_TEST_FILE").unwrap();
    match role.as_str() {
        "fail" => fail_and_go_on(),
        "hold" => hold_and_become(&file),
        other => panic!("no role {other}"),
    }
}

fn descriptors() -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        format!("{} {:?}", path.display(), fs::read_link(&path).ok())
    };
    let mut all: Vec<String> = fs::read_dir("/proc/self/fd").unwrap().map(name).collect();
    all.retain(|entry| !entry.contains(&format!("/proc/{}/fd", std::process::id())));
    all.sort();
    all
}

fn fail_and_go_on() {
    let held = File::open("/etc/passwd").unwrap();
    let state = || (std::process::id(), descriptors(), SigSet::thread_get_mask().unwrap());
    let before = state();
    let argv = [CString::from(c"program")];
    let all = Flags::USER | Flags::PID | Flags::MOUNT;
    for (path, keep, errno) in [
        (c"/no/such/program", vec![], libc::ENOENT),
        (c"/etc/passwd", vec![], libc::EACCES),
        (c"/bin/true", vec![999], libc::EBADF),
    ] {
        let Err(failure) = execns_keeping(&keep, all, path, &argv, &[]);
        assert_eq!(failure.errno(), errno, "{failure}");
        assert_eq!(failure.is_of_program(), errno != libc::EBADF);
        assert_eq!(state(), before);
        assert_eq!(waitpid(None, None), Err(Errno::ECHILD));
    }
    assert!(held.as_raw_fd() > 2);
    println!("intact");
}

fn hold_and_become(path: &str) {
    let lock =
        Flock::lock(File::options().read(true).write(true).open(path).unwrap(), FlockArg::LockExclusive);
    let _lock = lock.map_err(|(_, errno)| errno).unwrap();
    // Nothing is open, so the file is all that it can speak through.
    let script = "ls /proc/self/fd > \"$1.fds\"; flock -n \"$1\" true && echo lost > \"$1.lock\" || echo held > \"$1.lock\"
                  grep -c \"$1\" /proc/self/maps > \"$1.maps\"; exit 9";
    let argv = ["sh", "-c", script, "sh", path].map(|word| CString::new(word).unwrap());
    let env = [CString::from(c"PATH=/usr/bin:/bin")];
    let Err(failure) = execns(Flags::USER | Flags::PID, c"/bin/sh", &argv, &env);
    panic!("{failure}: {}", failure.errno());
}

#[test]
fn a_failure_leaves_the_caller_as_it_was() {
    require!(userns);
    let place = Place::new();
    let ran = Ran::from(caller("fail", &place.write("file", "")).output().unwrap()).ended_with(0);
    assert!(ran.stdout.contains("intact\n"), "{}", ran.stdout);
}

#[test]
fn a_lock_of_the_callers_is_held_until_the_program_ends_and_nothing_is_open() {
    require!(userns);
    let place = Place::new();
    let file = place.write("file", "");
    Ran::from(caller("hold", &file).output().unwrap()).ended_with(9);
    let read = |suffix: &str| fs::read_to_string(place.path(&format!("file{suffix}"))).unwrap();
    assert_eq!([read(".lock"), read(".maps")], ["held\n", "0\n"]);
    // The output of `ls`, and the directory that it reads.
    assert_eq!(read(".fds").lines().count(), 2, "{}", read(".fds"));
    let again = Flock::lock(File::open(&file).unwrap(), FlockArg::LockExclusiveNonblock);
    assert!(again.is_ok(), "the lock outlived its caller");
}
