//! Which machine a command gets where the host denies, and what is said of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sekexe_ci::kernel::cache::Cache;
use sekexe_ci::kernel::catalogue::{Catalogue, DEFAULT_PROFILE};
use serde_json::Value;

use crate::detect::{FILTER, fail};
use crate::support::{Place, Ran, require, send, under};

/// `exec` with this choice, so that it tells what it did.
fn exec(place: &Place, isolation: &str, script: &str) -> Command {
    let mut command = place.sekexe(["exec", "--isolation", isolation, "--result"]);
    command.arg(place.path("result.json")).arg(script);
    command
}

fn result(place: &Place) -> Value {
    serde_json::from_slice(&fs::read(place.path("result.json")).unwrap()).unwrap()
}

fn run_under(prefix: &[&str], command: &Command) -> Ran {
    Ran::from(under(prefix, command).output().unwrap())
}

/// What is done where namespaces are denied: replaced if the choice is free, refused if not.
#[track_caller]
fn assert_denied(prefix: &[&str], reason: &str) {
    let place = Place::new().with_isolation(None);
    let ran = run_under(prefix, &exec(&place, "auto", "echo ran")).ended_with(0);
    assert_eq!(ran.stdout, "ran\n");
    let said: Vec<&str> = ran.stderr.lines().filter(|line| line.contains("no namespaces here")).collect();
    assert_eq!(said.len(), 1, "{}", ran.stderr);
    assert!(said[0].contains(reason) && said[0].contains("guest kernel is used"), "{}", said[0]);
    let told = result(&place);
    assert_eq!(told["machine"]["kind"], "uml");
    assert!(told["machine"]["fall_back"].as_str().unwrap().contains(reason), "{told}");

    let ran = run_under(prefix, &exec(&place, "namespaces", "touch ran")).ended_with(125);
    ran.says("--isolation namespaces").says(reason);
    assert!(!place.path("work/ran").exists());
    // What asks for a guest is no fall-back.
    let ran = run_under(prefix, &exec(&place, "uml", "true")).ended_with(0);
    assert!(!ran.stderr.contains("no namespaces"), "{}", ran.stderr);
    place.assert_nothing_left();
}

#[test]
fn where_a_setting_forbids_user_namespaces_a_guest_takes_their_place() {
    require!(uml, userns);
    // Root of a user namespace in which no further one may be made, without the right to mount.
    let closed = "echo 0 > /proc/sys/user/max_user_namespaces
                  exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin \"$@\"";
    let prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", closed, "sh"];
    assert_denied(&prefix, "user.max_user_namespaces");
}

#[test]
fn where_a_filter_forbids_them_a_guest_takes_their_place() {
    require!(uml, python3, ordinary_user);
    let answer = fail(nix::libc::EPERM).to_string();
    let call = nix::libc::SYS_unshare.to_string();
    let prefix = ["python3", "-c", FILTER, &answer, &call, "--"];
    assert_denied(&prefix, "seccomp");
}

/// Runs a command twice, the second time where namespaces are denied by what the answer of the first
/// time does not depend on.
const CLOSED_IN_BETWEEN: [&str; 6] = [
    "unshare",
    "--user",
    "--map-root-user",
    "sh",
    "-c",
    "\"$@\" && echo 0 > /proc/sys/user/max_mnt_namespaces && exec \"$@\"",
];

#[test]
fn a_start_that_fails_although_the_probe_said_yes_is_made_good_by_a_guest_once() {
    require!(uml, userns);
    let place = Place::new().with_isolation(None);
    // A cache of its own, in which the yes is remembered, with the kernels of the other one.
    let kernels = crate::support::kernel("7.3").unwrap();
    let kernels = kernels.ancestors().nth(2).unwrap();
    fs::create_dir_all(place.path("cache/sekexe-ci")).unwrap();
    std::os::unix::fs::symlink(kernels, place.path("cache/sekexe-ci/kernels")).unwrap();
    let mut command = exec(&place, "auto", "echo ran");
    command.env("XDG_CACHE_HOME", place.path("cache"));
    let prefix = [&CLOSED_IN_BETWEEN[..], &["sh"]].concat();
    let ran = run_under(&prefix, &command).ended_with(0);
    assert_eq!(ran.stdout, "ran\nran\n");
    assert_eq!(ran.stderr.matches("no namespaces here (they did not start").count(), 1, "{}", ran.stderr);
    assert_eq!(result(&place)["machine"]["kind"], "uml");
}

#[test]
fn an_interrupt_ends_the_build_of_a_kernel_that_takes_the_place_of_namespaces() {
    require!(userns);
    let place = Place::new().with_isolation(None);
    // Another build of it, for which this one waits.
    let kernel = format!("{}-{DEFAULT_PROFILE}", Catalogue::embedded().unwrap().default_version());
    let _lock = Cache::new(place.path("cache/sekexe-ci")).lock(&kernel, || {}).unwrap();
    let mut command = exec(&place, "auto", "echo ran");
    command.env("XDG_CACHE_HOME", place.path("cache"));
    let mut command = under(&[&CLOSED_IN_BETWEEN[..], &["sh"]].concat(), &command);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("no namespaces here (they did not start")));
    assert!(lines.any(|line| line.contains("waiting for it")));
    send(&child, Signal::SIGINT);
    let ran = Ran::from(child.wait_with_output().unwrap()).ended_with(128 + Signal::SIGINT as i32);
    assert_eq!(ran.stdout, "ran\n");
    place.assert_nothing_left();
}

#[test]
fn no_isolation_is_had_by_name_only_and_keeps_no_promise_of_a_machine() {
    let place = Place::new().with_isolation(None);
    place.write("file", "");
    let own = nix::unistd::geteuid().to_string();
    let ran = Ran::from(exec(&place, "none", "id -u; exit 3").output().unwrap()).ended_with(3);
    assert_eq!(ran.stdout, format!("{own}\n"));
    ran.says("nothing keeps the command");
    for options in
        [&["--ro"][..], &["--hide", "../file"], &["--user", "nobody"], &["--memory", "1G"], &["--root"]]
    {
        let mut command = place.sekexe(["exec", "--isolation", "none"]);
        let ran = Ran::from(command.args(options).arg("touch ran").output().unwrap()).ended_with(125);
        ran.says("--isolation none").says("leave one of them out");
    }
    assert!(!place.path("work/ran").exists());
}

#[test]
fn thousands_of_mounts_do_not_hold_a_machine_up() {
    require!(userns, python3);
    let place = Place::new_in("/var/tmp").with_isolation(Some("namespaces"));
    fs::create_dir(place.path("mounts")).unwrap();
    let mount = "import ctypes, os, sys
libc = ctypes.CDLL(None)
for number in range(2000):
    at = f'{sys.argv[1]}/{number}'
    os.mkdir(at)
    assert libc.mount(b'none', at.encode(), b'tmpfs', 0, None) == 0
os.execvp(sys.argv[2], sys.argv[2:])";
    let at = place.path("mounts");
    let prefix =
        ["unshare", "--user", "--map-root-user", "--mount", "python3", "-c", mount, at.to_str().unwrap()];
    let begun = Instant::now();
    let ran = run_under(&prefix, &place.sekexe(["exec", "echo x > file; cat file"])).ended_with(0);
    assert_eq!(ran.stdout, "x\n");
    // Far more than it takes; a machine that mounts each of them takes longer.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(fs::read_to_string(place.path("work/file")).unwrap(), "x\n");
}

#[test]
fn mounts_that_come_and_go_meanwhile_do_not_keep_namespaces_from_starting() {
    require!(userns, python3);
    let place = Place::new_in("/var/tmp").with_isolation(Some("namespaces"));
    // Whoever mounts may do so, and whoever runs the program may not.
    let repeat = "import ctypes, os, signal, subprocess, sys, time
libc = ctypes.CDLL(None)
places = [b'/opt/one/here', b'/opt/two']
libc.mount(b'none', b'/opt', b'tmpfs', 0, None)
for at in places: os.makedirs(at)
mounting = os.fork()
while mounting == 0:
    for at in places: libc.mount(b'none', at, b'tmpfs', 0, None); time.sleep(0.002)
    for at in places: libc.umount2(at, 2); time.sleep(0.002)
plain = ['setpriv', '--ambient-caps=-all', '--inh-caps=-all', *sys.argv[1:]]
failed = sum(subprocess.run(plain).returncode != 0 for _ in range(80))
os.kill(mounting, signal.SIGKILL)
sys.exit(failed)";
    let user = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--keep-caps", "--mount"];
    let prefix = [&user[..], &["python3", "-c", repeat]].concat();
    let command = place.sekexe(["exec", "--network", "none", "--", "true"]);
    run_under(&prefix, &command).ended_with(0);
}

#[test]
fn mounts_with_odd_options_and_names_are_part_of_the_root() {
    require!(userns);
    let place = Place::new_in("/var/tmp").with_isolation(Some("namespaces"));
    let odd = place.path("a b,c:d=e\\f");
    fs::create_dir(&odd).unwrap();
    let at = odd.to_str().unwrap();
    let mount = "mount -t tmpfs -o noexec,nosuid,nodev,noatime none \"$0\" && echo here > \"$0/file\" &&
                 mkdir \"$0/ro\" && mount -t tmpfs -o ro none \"$0/ro\" && exec \"$@\"";
    let prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, at];
    let script =
        format!("cat '{at}/file'; echo new > '{at}/ro/new'; cat '{at}/ro/new'; rm '{at}/file'; ls '{at}'");
    let ran = run_under(&prefix, &place.sekexe(["exec", &script])).ended_with(0);
    assert_eq!(ran.stdout, "here\nnew\nro\n", "{}", ran.stderr);
    assert!(Path::new(at).read_dir().unwrap().next().is_none());
}
