//! A script that tries to leave: each attempt fails inside, on every machine, and leaves the host
//! unchanged.
//!
//! The attacks are programs of their own (`tests/attacks`): a line of output is an attempt that
//! succeeded, so silence is what is expected, up to the word that says that all was tried.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, RenameFlags, fcntl, renameat2};
use nix::pty::openpty;

use crate::support::{Place, Ran, have, on_every_machine_in, require, under};

/// Not below /tmp, which machines have of their own and which would hide everything.
const OUTSIDE: &str = "/var/tmp";

/// Runs an attack with these words, and fails if any attempt succeeds.
#[track_caller]
fn attack(place: &Place, program: &str, words: &[&str]) {
    let ran = attack_with(place, &[], program, words);
    assert_eq!(ran.stdout, "tried everything\n", "on {}: {}", place.kind(), ran.stderr);
    assert_eq!(ran.status, 0, "on {}: {}", place.kind(), ran.stderr);
}

fn attack_with(place: &Place, options: &[&str], program: &str, words: &[&str]) -> Ran {
    place.write("work/attack.py", program);
    let mut command = place.sekexe(["exec"]);
    command.args(options).args(["--", "python3", "-B", "attack.py"]).args(words);
    Ran::from(command.output().unwrap())
}

/// A file outside of what may be written, with everything about it that could be changed.
struct Witness {
    path: std::path::PathBuf,
    before: (u32, u32, u32, i64, i64, u64),
}

impl Witness {
    fn new(place: &Place, name: &str) -> Self {
        let path = place.write(name, "untouched");
        Self { before: Self::look(&path), path }
    }

    fn look(path: &Path) -> (u32, u32, u32, i64, i64, u64) {
        let found = fs::metadata(path).unwrap();
        (found.mode(), found.uid(), found.gid(), found.mtime(), found.ctime_nsec(), found.nlink())
    }

    #[track_caller]
    fn assert_unchanged(&self) {
        assert_eq!(fs::read_to_string(&self.path).unwrap(), "untouched");
        assert_eq!(Self::look(&self.path), self.before, "{}", self.path.display());
    }
}

#[test]
fn files_outside_of_what_may_be_written_stay_as_they_are() {
    require!(python3);
    on_every_machine_in(Path::new(OUTSIDE), |place| {
        let witness = Witness::new(place, "home/witness");
        let mut words = vec![witness.path.to_str().unwrap()];
        // Landlock, which confines an ordinary user's guest, has no word for modes and times.
        if place.kind() == "namespaces" || have::root().is_ok() {
            words.push("modes");
        }
        attack(place, include_str!("../attacks/files.py"), &words);
        witness.assert_unchanged();
        assert_eq!(fs::read_dir(place.path("home")).unwrap().count(), 1);
    });
}

#[test]
fn the_kernels_own_files_cannot_be_written() {
    require!(python3);
    // A guest's kernel is its own to change.
    require!(namespaces);
    let place = Place::new_in(OUTSIDE).with_isolation(Some("namespaces"));
    let pattern = fs::read("/proc/sys/kernel/core_pattern").unwrap();
    attack(&place, include_str!("../attacks/kernel.py"), &[]);
    assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), pattern);
}

#[test]
fn device_files_reach_no_device_and_their_modes_stay() {
    require!(python3);
    on_every_machine_in(Path::new(OUTSIDE), |place| {
        let look = |name: &str| fs::metadata(name).map(|found| (found.mode(), found.uid(), found.gid())).ok();
        let names = ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/urandom", "/dev/fuse"];
        let before = names.map(look);
        let numbers = disks();
        let mut words: Vec<&str> = numbers.iter().map(String::as_str).collect();
        // A guest's memory is its own to read.
        words.extend((place.kind() == "namespaces").then_some("memory"));
        attack(place, include_str!("../attacks/devices.py"), &words);
        assert_eq!(names.map(look), before);
        let made = fs::read_dir(place.path("work")).unwrap().flatten();
        let devices = made.filter(|entry| !entry.file_type().unwrap().is_file());
        assert_eq!(devices.count(), 0, "on {}", place.kind());
    });
}

/// Numbers of the host's disks.
fn disks() -> Vec<String> {
    let text = fs::read_to_string("/proc/partitions").unwrap_or_default();
    let numbers = text.lines().skip(2).filter_map(|line| {
        let mut words = line.split_whitespace();
        Some(format!("{}:{}", words.next()?, words.next()?))
    });
    numbers.collect()
}

#[test]
fn processes_of_the_host_are_out_of_reach() {
    require!(python3);
    on_every_machine_in(Path::new(OUTSIDE), |place| {
        let pid = std::process::id().to_string();
        let namespaces: Vec<String> = ["user", "mnt", "pid", "net", "ipc", "uts"]
            .map(|name| fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string())
            .into();
        let mut words = vec![pid.as_str()];
        // Another kernel's first namespaces bear the same numbers.
        words.extend(namespaces.iter().map(String::as_str).filter(|_| place.kind() == "namespaces"));
        attack(place, include_str!("../attacks/processes.py"), &words);
    });
}

#[test]
fn sockets_of_the_host_are_out_of_reach() {
    require!(python3);
    on_every_machine_in(Path::new(OUTSIDE), |place| {
        let closed = UnixListener::bind(place.path("home/docker.sock")).unwrap();
        let name = format!("sekexe-test-{}-{}", std::process::id(), place.kind());
        let hidden = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = loopback.local_addr().unwrap().port().to_string();
        let path = place.path("home/docker.sock");
        let mut words = vec![name.as_str(), port.as_str(), path.to_str().unwrap()];
        let run = tempfile::tempdir_in("/run").ok();
        let in_run = run.as_ref().map(|run| run.path().join("docker.sock"));
        let of_run = in_run.as_ref().map(|path| UnixListener::bind(path).unwrap());
        words.extend(in_run.as_ref().and_then(|path| path.to_str()));
        attack(place, include_str!("../attacks/sockets.py"), &words);
        let untouched = |listener: &UnixListener| {
            listener.set_nonblocking(true).unwrap();
            assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        };
        [Some(&closed), Some(&hidden), of_run.as_ref()].into_iter().flatten().for_each(untouched);
        loopback.set_nonblocking(true).unwrap();
        assert_eq!(loopback.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    });
}

#[test]
fn hidden_files_cannot_be_had_by_any_route() {
    require!(python3);
    on_every_machine_in(Path::new(OUTSIDE), |place| {
        fs::create_dir(place.path("home/.ssh")).unwrap();
        let secret = place.write("home/.ssh/id", "s3cret");
        fs::create_dir(place.path("plain")).unwrap();
        let named = place.write("plain/token", "s3cret");
        // Another name of the same file, where it may be read, is the caller's to give; a link is not.
        symlink(&secret, place.path("work/link")).unwrap();
        let hide = ["--hide", named.to_str().unwrap()];
        let words = [secret.to_str().unwrap(), named.to_str().unwrap(), "link"];
        let ran = attack_with(place, &hide, include_str!("../attacks/hidden.py"), &words);
        assert_eq!(ran.stdout, "tried everything\n", "on {}: {}", place.kind(), ran.stderr);
        assert_eq!(ran.status, 0, "on {}: {}", place.kind(), ran.stderr);
    });
}

#[test]
fn files_cannot_be_opened_by_handle() {
    require!(python3);
    on_every_machine_in(Path::new(OUTSIDE), |place| {
        let secret = place.write("home/.netrc", "s3cret");
        let (kind, handle) = handle_of(&secret);
        attack(place, include_str!("../attacks/handle.py"), &[&kind, &handle]);
    });
}

/// A file's handle, as `open_by_handle_at` wants it: kind and bytes in hexadecimal digits.
fn handle_of(path: &Path) -> (String, String) {
    const ASK: &str = "import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(struct.pack('Ii', 128, 0) + bytes(128))
mount = ctypes.c_int()
assert libc.name_to_handle_at(-100, sys.argv[1].encode(), buffer, ctypes.byref(mount), 0) == 0
size, kind = struct.unpack('Ii', buffer.raw[:8])
print(kind, buffer.raw[8:8 + size].hex())";
    let output = std::process::Command::new("python3").args(["-c", ASK]).arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (kind, handle) = text.trim().split_once(' ').expect("a handle");
    (kind.to_owned(), handle.to_owned())
}

#[test]
fn calls_that_no_step_needs_are_refused() {
    require!(python3, namespaces);
    let place = Place::new_in(OUTSIDE).with_isolation(Some("namespaces"));
    attack(&place, include_str!("../attacks/calls.py"), &[]);
}

#[test]
fn nothing_can_be_typed_into_the_callers_terminal() {
    require!(python3);
    on_every_machine_in(Path::new(OUTSIDE), |place| {
        place.write("work/attack.py", include_str!("../attacks/terminal.py"));
        let command = place.sekexe(["exec", "--", "python3", "-B", "attack.py"]);
        let mut command = under(&["setsid", "--ctty", "--wait"], &command);
        let pair = openpty(None, None).unwrap();
        let end = Stdio::from(pair.slave.try_clone().unwrap());
        command.stdin(end).stdout(Stdio::piped()).stderr(Stdio::piped());
        let ran = Ran::from(command.output().unwrap());
        assert_eq!(ran.stdout, "tried everything\n", "on {}: {}", place.kind(), ran.stderr);
        fcntl(&pair.slave, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let typed = File::from(pair.slave).read(&mut [0; 100]);
        assert_eq!(typed.unwrap_err().kind(), ErrorKind::WouldBlock, "on {}", place.kind());
    });
}

#[test]
fn a_control_group_runs_nothing_on_the_host() {
    require!(python3);
    on_every_machine_in(Path::new(OUTSIDE), |place| {
        let mark = place.path("home/released");
        attack(place, include_str!("../attacks/groups.py"), &[mark.to_str().unwrap()]);
        assert!(!mark.exists());
    });
}

#[test]
fn a_path_that_a_link_takes_the_place_of_is_never_followed() {
    on_every_machine_in(Path::new(OUTSIDE), |place| {
        // What the link leads to would be refused, as there are hidden files in it.
        fs::create_dir(place.path("home/.ssh")).unwrap();
        let secret = Witness::new(place, "home/.ssh/id");
        let (given, link) = (place.path("given"), place.path("link"));
        fs::create_dir_all(given.join(".ssh")).unwrap();
        symlink(place.path("home"), &link).unwrap();
        let script = format!("cat {0}/.ssh/id; echo spoilt > {0}/.ssh/id; touch {0}/made", given.display());
        let done = AtomicBool::new(false);
        let mut runs = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    renameat2(AT_FDCWD, &given, AT_FDCWD, &link, RenameFlags::RENAME_EXCHANGE).unwrap();
                }
            });
            for _ in 0..30 {
                runs.push(place.exec_with(["--rw".as_ref(), given.as_os_str(), script.as_ref()]));
            }
            done.store(true, Ordering::Relaxed);
        });
        secret.assert_unchanged();
        let read = runs.iter().find(|ran| ran.stdout.contains("untouched"));
        assert!(read.is_none(), "on {}: {read:?}", place.kind());
        assert!(!place.path("home/made").exists());
        assert!(runs.iter().any(|ran| ran.status == 125), "the link was never there in time");
    });
}

#[test]
fn without_further_user_namespaces_root_is_kept_in_by_its_capabilities() {
    require!(python3, userns);
    let place = Place::new_in(OUTSIDE).with_isolation(Some("namespaces"));
    // Root of a user namespace in which no other may be made.
    let closed = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", closed, "sh"];
    let result = place.path("result.json");
    fs::create_dir(place.path("home/.ssh")).unwrap();
    let secret = place.write("home/.ssh/id", "s3cret");
    let witness = Witness::new(&place, "home/witness");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    for (program, words) in [
        (include_str!("../attacks/kernel.py"), vec![]),
        (include_str!("../attacks/hidden.py"), vec![path(&secret)]),
        (include_str!("../attacks/files.py"), vec![path(&witness.path), "modes".into()]),
        (include_str!("../attacks/calls.py"), vec![]),
    ] {
        place.write("work/attack.py", program);
        let mut command = place.sekexe(["exec", "--result"]);
        command.arg(&result).args(["--", "python3", "-B", "attack.py"]).args(words);
        let ran = Ran::from(under(&prefix, &command).output().unwrap()).ended_with(0);
        assert_eq!(ran.stdout, "tried everything\n", "{}", ran.stderr);
        let told: serde_json::Value = serde_json::from_slice(&fs::read(&result).unwrap()).unwrap();
        assert_eq!(told["machine"]["seal"], "capabilities");
    }
    witness.assert_unchanged();
}
