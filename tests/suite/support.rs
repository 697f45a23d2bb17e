//! What every test needs: our program, a place of its own, and a word for what the machine must have.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Skips the test, with the reason, where something is missing; fails it where
/// `SEKEXE_TEST_REQUIRE` (names separated by commas, or `all`) says that it must not be.
macro_rules! require {
    ($($what:ident),+) => {
        $(if let Err(why) = $crate::support::have::$what() {
            $crate::support::skip(stringify!($what), &why);
            return;
        })+
    };
}
pub(crate) use require;

/// Says that something is left out, or fails where it must not be.
pub fn skip(name: &str, why: &str) {
    let required = std::env::var("SEKEXE_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|word| word == name || word == "all"),
        "this test requires {name}: {why}"
    );
    eprintln!("skipped: {name}: {why}");
}

/// Runs a test in each kind of machine that can be had, with a place of its own each time.
#[track_caller]
pub fn on_every_machine(test: impl Fn(&Place)) {
    on_every_machine_in(&std::env::temp_dir(), test);
}

/// The same elsewhere than in the usual place for temporary files, which machines have of their own.
#[track_caller]
pub fn on_every_machine_in(parent: &Path, test: impl Fn(&Place)) {
    for (kind, had) in [("uml", have::uml()), ("namespaces", have::namespaces())] {
        match had {
            Err(why) => skip(kind, &why),
            Ok(()) => {
                // Shown where the test fails.
                eprintln!("machine: {kind}");
                test(&Place::new_in(parent).with_isolation(Some(kind)));
            }
        }
    }
}

/// What a test may require. The error says why it is not there.
pub mod have {
    use std::path::Path;

    use super::kernel;

    /// A guest kernel of the default version in the cache.
    pub fn uml() -> Result<(), String> {
        kernel("7.3").map(drop).ok_or("no guest kernel in the cache; run: sekexe-ci kernel build".into())
    }

    /// A guest kernel 6.12 in the cache.
    pub fn uml_6_12() -> Result<(), String> {
        kernel("6.12/small").map(drop).ok_or("run: sekexe-ci kernel build 6.12 --profile small".into())
    }

    /// A guest kernel 6.1 in the cache.
    pub fn uml_6_1() -> Result<(), String> {
        kernel("6.1/small").map(drop).ok_or("run: sekexe-ci kernel build 6.1 --profile small".into())
    }

    /// The distribution's own UML kernel.
    pub fn distribution_uml() -> Result<(), String> {
        program("linux.uml")
    }

    /// The same, on a CPU on which it can run: it is older than Linux 6.13.
    pub fn distribution_guest() -> Result<(), String> {
        distribution_uml()?;
        let cpu = std::fs::read_to_string("/proc/cpuinfo").map_err(|e| e.to_string())?;
        if cpu.contains(" amx_tile") {
            Err("its kernel starts no process on a CPU with AMX".into())
        } else {
            Ok(())
        }
    }

    /// Docker's daemon and its static companion, to be started inside a guest.
    pub fn dockerd() -> Result<(), String> {
        program("dockerd").and_then(|()| busybox())
    }

    /// Running as an ordinary user.
    pub fn ordinary_user() -> Result<(), String> {
        if nix::unistd::geteuid().is_root() { Err("running as root".into()) } else { Ok(()) }
    }

    /// The programs that map subordinate ids, and a range for us.
    pub fn newuidmap() -> Result<(), String> {
        program("newuidmap")?;
        let user = std::process::Command::new("id").arg("-un").output().map_err(|e| e.to_string())?;
        let name = String::from_utf8_lossy(&user.stdout).trim().to_owned() + ":";
        let ranges = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
        let has = ranges.lines().any(|line| line.starts_with(&name));
        if has { Ok(()) } else { Err(format!("/etc/subuid has no range for {name}")) }
    }

    /// A Python interpreter.
    pub fn python3() -> Result<(), String> {
        program("python3")
    }

    /// A program that fetches.
    pub fn curl() -> Result<(), String> {
        program("curl")
    }

    /// Git.
    pub fn git() -> Result<(), String> {
        program("git")
    }

    /// Debian's package tools.
    pub fn dpkg() -> Result<(), String> {
        program("dpkg")
    }

    /// User namespaces, in which anybody may mount.
    pub fn userns() -> Result<(), String> {
        let arguments = ["--user", "--map-root-user", "--mount", "true"];
        match std::process::Command::new("unshare").args(arguments).output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(format!("unshare: {error}")),
        }
    }

    /// What a machine of namespaces takes: user namespaces, or the right to mount without them.
    pub fn namespaces() -> Result<(), String> {
        let mounts = || std::process::Command::new("unshare").args(["--mount", "true"]).output();
        userns().or_else(|why| match mounts() {
            Ok(output) if output.status.success() => Ok(()),
            _ => Err(why),
        })
    }

    /// Ranges of subordinate ids, and the programs that map them.
    pub fn subordinate_ids() -> Result<(), String> {
        ["newuidmap", "newgidmap"].into_iter().try_for_each(program)?;
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        let prefix = format!("{}:", user.map(|user| user.name).unwrap_or_default());
        ["/etc/subuid", "/etc/subgid"].into_iter().try_for_each(|file| {
            let lines = std::fs::read_to_string(file).unwrap_or_default();
            let listed = lines.lines().any(|line| line.starts_with(&prefix));
            if listed { Ok(()) } else { Err(format!("{file} has no range for this user")) }
        })
    }

    /// A host that enforces which files the guest reaches.
    pub fn landlock() -> Result<(), String> {
        let list = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        let known = list.is_empty() || list.contains("landlock");
        if known { Ok(()) } else { Err(format!("the kernel's security modules are {list}")) }
    }

    /// A guest that shows the host user's files as root's.
    pub fn map_owner() -> Result<(), String> {
        let ran = super::Place::new_in("/var/tmp").exec("stat -c %u .");
        if ran.stdout == "0\n" { Ok(()) } else { Err(format!("owner {:?} {}", ran.stdout, ran.stderr)) }
    }

    /// Docker, and the right to start a daemon.
    pub fn docker() -> Result<(), String> {
        root()?;
        program("dockerd")?;
        program("docker")
    }

    /// Running as root.
    pub fn root() -> Result<(), String> {
        if nix::unistd::geteuid().is_root() { Ok(()) } else { Err("running as an ordinary user".into()) }
    }

    /// Our program without an interpreter of the host's, so that it runs anywhere.
    pub fn static_program() -> Result<(), String> {
        let bytes = std::fs::read(super::program()).map_err(|e| e.to_string())?;
        let dynamic = bytes.windows(12).any(|part| part == b"/ld-linux-x8" || part == b"/ld-musl-x86");
        if dynamic { Err("this build is linked dynamically".into()) } else { Ok(()) }
    }

    /// A static busybox.
    pub fn busybox() -> Result<(), String> {
        path("/bin/busybox")
    }

    /// A directory in memory, from which programs may be mapped.
    pub fn memory_directory() -> Result<(), String> {
        use nix::sys::{statfs, statvfs};
        let shm = "/dev/shm";
        let kind = statfs::statfs(shm).map_err(|e| format!("{shm}: {}", e.desc()))?;
        let flags = statvfs::statvfs(shm).map_err(|e| format!("{shm}: {}", e.desc()))?.flags();
        let free = kind.blocks_available() * kind.block_size() as u64;
        let fits = kind.filesystem_type() == statfs::TMPFS_MAGIC && free > 1 << 30;
        let good = fits && !flags.contains(statvfs::FsFlags::ST_NOEXEC);
        if good { Ok(()) } else { Err(format!("{shm} is small, noexec or no memory")) }
    }

    /// A program on PATH.
    pub fn program(name: &str) -> Result<(), String> {
        which::which(name).map(drop).map_err(|_| format!("there is no {name} on PATH"))
    }

    /// The checkout that this was built from, which may be out of an ordinary user's reach.
    pub fn checkout() -> Result<(), String> {
        path(concat!(env!("CARGO_MANIFEST_DIR"), "/action.yml"))
    }

    /// A file or directory.
    pub fn path(path: &str) -> Result<(), String> {
        if Path::new(path).exists() { Ok(()) } else { Err(format!("there is no {path}")) }
    }
}

/// Our program, or the copy of it that `SEKEXE_TEST_PROGRAM` names for a user who cannot reach the
/// directory that it was built in.
pub fn program() -> PathBuf {
    std::env::var_os("SEKEXE_TEST_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_sekexe-ci").into(), PathBuf::from)
}

/// The kernel that tests use instead of the default one, so that the suite can be run on each.
fn chosen_kernel() -> Option<PathBuf> {
    std::env::var_os("SEKEXE_TEST_KERNEL").map(PathBuf::from)
}

/// The kernel of this version in the cache.
pub fn kernel(version: &str) -> Option<PathBuf> {
    static DEFAULT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        if let Some(chosen) = chosen_kernel().filter(|_| version == "7.3") {
            return Some(chosen);
        }
        let output = Command::new(program()).args(["kernel", "path", version]).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().into())
    };
    if version == "7.3" { DEFAULT.get_or_init(find).clone() } else { find() }
}

/// A directory of the test's own, in which our program runs with a home directory of its own.
pub struct Place {
    dir: TempDir,
    /// What `--isolation` says, unless the test says it itself.
    isolation: Option<&'static str>,
    _memory: Option<TempDir>,
}

impl Place {
    pub fn new() -> Self {
        Self::new_in(std::env::temp_dir())
    }

    /// The same elsewhere than in the usual place for temporary files.
    pub fn new_in(parent: impl AsRef<Path>) -> Self {
        let dir = tempfile::tempdir_in(parent).expect("a temporary directory");
        let place = Self { dir, isolation: Some("uml"), _memory: None };
        for name in ["home", "work", "tmp"] {
            std::fs::create_dir(place.path(name)).expect("a directory");
        }
        place
    }

    /// The same with temporary files in memory, so that guests get no swap; needs
    /// [`have::memory_directory`].
    pub fn in_memory() -> Self {
        let mut place = Self::new();
        let memory = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
        std::fs::remove_dir(place.path("tmp")).expect("an empty directory");
        std::os::unix::fs::symlink(memory.path(), place.path("tmp")).expect("a link");
        place._memory = Some(memory);
        place
    }

    /// A path in it. `work` is the current directory, `home` the home directory, `tmp` for
    /// temporary files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, contents).expect("a file");
        path
    }

    /// Our program with arguments.
    pub fn sekexe<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(program());
        let cache = cache_dir();
        let mut arguments = arguments.into_iter();
        let first = arguments.next();
        let starts_machine = first.as_ref().is_some_and(|word| {
            let word: &OsStr = word.as_ref();
            word == "exec" || word == "shell"
        });
        command.args(first);
        if let (true, Some(isolation)) = (starts_machine, self.isolation) {
            command.args(["--isolation", isolation]);
            if let (Some(kernel), "uml") = (chosen_kernel(), isolation) {
                command.arg("--kernel").arg(kernel);
            }
        }
        command
            .args(arguments)
            .current_dir(self.path("work"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .envs(cache.map(|cache| ("XDG_CACHE_HOME", cache)))
            .stdin(Stdio::null());
        command
    }

    /// The same place for another kind of machine; nothing leaves the choice to the program.
    pub fn with_isolation(mut self, isolation: Option<&'static str>) -> Self {
        self.isolation = isolation;
        self
    }

    /// Which kind of machine it is for.
    pub fn kind(&self) -> &'static str {
        self.isolation.unwrap_or("auto")
    }

    /// Runs a script in a machine.
    pub fn exec(&self, script: &str) -> Ran {
        Ran::from(self.sekexe(["exec", script]).output().expect("our program starts"))
    }

    /// Runs `exec` with these arguments.
    pub fn exec_with<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Ran {
        let mut command = self.sekexe(["exec"]);
        Ran::from(command.args(arguments).output().expect("our program starts"))
    }

    /// Fails if anything was left in the directory for temporary files.
    pub fn assert_nothing_left(&self) {
        let left: Vec<_> = std::fs::read_dir(self.path("tmp")).expect("tmp").flatten().collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// The cache of whoever runs the tests: kernels take minutes to build.
fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(Path::new(&set("HOME")?).join(".cache")))
}

/// What a finished run showed.
#[derive(Debug)]
pub struct Ran {
    /// Exit status, or 128 + signal as a shell would say.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
    pub stdout_bytes: Vec<u8>,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let signal = || 128 + output.status.signal().unwrap_or(0);
        Self {
            status: output.status.code().unwrap_or_else(signal),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            stdout_bytes: output.stdout,
        }
    }
}

impl Ran {
    /// Fails unless it ended with this status.
    #[track_caller]
    pub fn ended_with(self, status: i32) -> Self {
        assert_eq!(self.status, status, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Fails unless standard error contains this.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?} in: {}", self.stderr);
        self
    }
}

/// The same command, started by another program, whose arguments `prefix` begins.
pub fn under(prefix: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(prefix[0]);
    outer.args(&prefix[1..]).arg(command.get_program()).args(command.get_args());
    outer.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(directory) = command.get_current_dir() {
        outer.current_dir(directory);
    }
    outer.stdin(Stdio::null());
    outer
}

/// Runs a command with bytes on its standard input.
pub fn with_input(command: &mut Command, input: &[u8]) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("our program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let bytes = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A command that does not read its input is no fault of the test.
        let _ = stdin.write_all(&bytes);
    });
    let output = child.wait_with_output().expect("our program ends");
    writer.join().expect("the writer ends");
    output.into()
}

/// A running command that has said "ready", so that its traps are set and its children run. Its
/// standard input stays open until it is dropped.
pub fn ready(place: &Place, options: &[&str], script: &str) -> (Child, BufReader<ChildStdout>) {
    let mut command = place.sekexe(["exec"]);
    command.args(options).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("our program starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("its first line");
    assert_eq!(line, "ready\n");
    (child, stdout)
}

/// Sends our program a signal.
pub fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it is alive");
}

/// The numbers of all processes.
pub fn all_processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process and all its descendants.
pub fn process_tree(root: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let all: Vec<(u32, u32)> =
        all_processes().into_iter().filter_map(|p| Some((p as u32, parent(p as u32)?))).collect();
    let mut tree = vec![root];
    let mut at = 0;
    while at < tree.len() {
        let parent = tree[at];
        tree.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    tree
}
