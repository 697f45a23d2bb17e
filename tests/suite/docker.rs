//! Our program in containers of Docker, as an ordinary user and without options, and on a host
//! without user namespaces.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{self, Place, Ran, require};

/// How long the daemon may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Docker daemon of the test's own, with everything that belongs to it in one directory.
pub struct Daemon {
    pub place: Place,
    process: Child,
}

impl Daemon {
    fn start() -> Result<Self, String> {
        let place = Place::new_in("/var/tmp");
        let path = |name: &str| place.path(name).display().to_string();
        let log = fs::File::create(place.path("log")).unwrap();
        let process = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"])
            .args(["--storage-driver", "vfs", "--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("pid"), "--host", &format!("unix://{}", path("socket"))])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("dockerd: {e}"))?;
        let mut daemon = Self { place, process };
        let end = Instant::now() + PATIENCE;
        while !daemon.docker(&["version"]).status().is_ok_and(|status| status.success()) {
            let ended = daemon.process.try_wait().is_ok_and(|status| status.is_some());
            if ended || Instant::now() > end {
                let log = fs::read_to_string(daemon.place.path("log")).unwrap_or_default();
                return Err(log.lines().last().unwrap_or("it said nothing").to_owned());
            }
            std::thread::yield_now();
        }
        Ok(daemon)
    }

    fn docker(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.place.path("socket").display()));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.docker(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap().into()
    }

    /// Makes an image of a directory.
    #[track_caller]
    pub fn import(&self, directory: &Path, name: &str) {
        let archive = self.place.path("image.tar");
        let made = Command::new("tar").arg("-C").arg(directory).arg("-cf").arg(&archive).arg(".").status();
        assert!(made.unwrap().success());
        self.run(&["import", archive.to_str().unwrap(), name]).ended_with(0);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.process.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.process.wait();
        for mount in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines().rev() {
            let at = mount.split(' ').nth(1).unwrap_or_default();
            if Path::new(at).starts_with(self.place.path("")) {
                let _ = nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}

/// An image's files: our program and a kernel, and what `more` names.
pub fn files(place: &Place, name: &str, more: &[(&str, &str)]) -> std::path::PathBuf {
    let image = place.path(name);
    let own =
        [("sekexe-ci".to_owned(), support::program()), ("linux".to_owned(), support::kernel("7.3").unwrap())];
    let others = more.iter().map(|(to, from)| ((*to).to_owned(), Path::new(from).to_owned()));
    for (to, from) in own.into_iter().chain(others) {
        let to = image.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, &to).unwrap();
        fs::set_permissions(to, PermissionsExt::from_mode(0o755)).unwrap();
    }
    image
}

/// The guest kernel of our cache as files of an image, whose home directory is `/home`; nothing where the
/// kernel that tests use is not of the cache.
pub fn cached_kernel() -> Option<Vec<(String, String)>> {
    let kernel = support::kernel("7.3").unwrap();
    let cached = kernel.parent().unwrap();
    if !cached.join("kernel.json").exists() {
        eprintln!("skipped: {} is not in the cache", kernel.display());
        return None;
    }
    let directory = Path::new("home/.cache/sekexe-ci/kernels").join(cached.file_name().unwrap());
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    Some(
        ["linux", "kernel.json", "config"]
            .map(|name| (text(directory.join(name)), text(cached.join(name))))
            .into(),
    )
}

/// Programs of this machine as files of an image, with the libraries that they load.
pub fn programs(names: &[&str]) -> Vec<(String, String)> {
    let mut files = std::collections::BTreeSet::new();
    for name in names {
        let program = which::which(name).unwrap().canonicalize().unwrap();
        let output = Command::new("ldd").arg(&program).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
        files.extend(libraries.map(|library| (library[1..].to_owned(), library.to_owned())));
        files.insert((format!("usr/bin/{name}"), program.to_str().unwrap().to_owned()));
    }
    files.into_iter().collect()
}

/// Hands a running daemon to a test, or skips it where none can be had.
pub fn with_daemon(test: impl FnOnce(&Daemon)) {
    match Daemon::start() {
        Ok(daemon) => test(&daemon),
        Err(why) => {
            let required = std::env::var("SEKEXE_TEST_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|word| word == "docker" || word == "all"), "dockerd: {why}");
            eprintln!("skipped: docker: {why}");
        }
    }
}

#[test]
fn a_plain_container_of_an_ordinary_user_runs_it() {
    require!(uml, docker, static_program, busybox);
    with_daemon(|daemon| {
        let applets =
            ["sh", "id", "cat", "uname", "ls", "env", "touch", "true"].map(|name| format!("bin/{name}"));
        let mut more: Vec<_> = applets.iter().map(|to| (to.as_str(), "/bin/busybox")).collect();
        more.push(("etc/passwd", "/etc/passwd"));
        let image = files(&daemon.place, "busybox", &more);
        for directory in ["tmp", "proc", "sys", "dev", "run", "work"] {
            fs::create_dir(image.join(directory)).unwrap();
            fs::set_permissions(image.join(directory), PermissionsExt::from_mode(0o1777)).unwrap();
        }
        daemon.import(&image, "busybox");
        let run = |user: &str, step: &[&str]| {
            let container =
                ["run", "--rm", "--network", "none", "--user", user, "--workdir", "/work", "busybox"];
            daemon.run(&[&container[..], &["/sekexe-ci", "exec", "--kernel", "/linux"], step].concat())
        };
        for user in ["1000:1000", "0:0"] {
            let ran = run(user, &["id -u; touch /etc/new /work/new; cat /etc/new; exit 42"]).ended_with(42);
            assert_eq!(ran.stdout, "0\n", "{}", ran.stderr);
        }
        run("1000:1000", &["--untrusted", "--require", "confinement", "true"]).ended_with(0);
    });
}

#[test]
fn a_container_with_nothing_else_in_it_is_enough() {
    require!(uml, docker, static_program);
    with_daemon(|daemon| {
        let image = files(&daemon.place, "empty", &[]);
        daemon.import(&image, "empty");
        let container =
            ["run", "--rm", "--network", "none", "--user", "1000", "--tmpfs", "/tmp:exec,mode=1777", "empty"];
        let step = ["/sekexe-ci", "exec", "--kernel", "/linux", "--", "/sekexe-ci", "--version"];
        let ran = daemon.run(&[&container[..], &step].concat()).ended_with(0);
        assert!(ran.stdout.starts_with("sekexe-ci "), "{}", ran.stdout);
        // Without any place for temporary files it says so.
        let container = ["run", "--rm", "--network", "none", "--user", "1000", "--read-only", "empty"];
        let ran = daemon.run(&[&container[..], &step].concat());
        assert!(ran.status == 0 || ran.stderr.contains("TMPDIR"), "{} {}", ran.status, ran.stderr);
    });
}

#[test]
fn no_user_namespaces_are_needed() {
    require!(uml, userns);
    let place = Place::new();
    // In a namespace of our own the limit can be set by anybody, and ends with it.
    let limit = "echo 0 > /proc/sys/user/max_user_namespaces && ! unshare --user true && exec \"$@\"";
    let prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh"];
    let ran = Ran::from(support::under(&prefix, &place.sekexe(["exec", "id -u"])).output().unwrap());
    assert_eq!(ran.ended_with(0).stdout, "0\n");
}
