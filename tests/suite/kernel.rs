//! Guest kernels: building, finding, choosing. Effects are real: real servers,
//! real processes, real locks, and, where it is asked for, a real build.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::{self, program, require};
use sekexe_ci::kernel::cache::{Cache, Entry, Record, key};
use sekexe_ci::kernel::catalogue::{Catalogue, KernelOrg};
use sekexe_ci::kernel::source::fetch_kernel_org;
use sekexe_ci::kernel::{Event, Features, Host, probe, resolve};

// --- Scenery ---------------------------------------------------------------

/// Whether the environment says that this may not be skipped.
fn is_required(what: &str) -> bool {
    let required = std::env::var("SEKEXE_TEST_REQUIRE").unwrap_or_default();
    required.split(',').any(|name| name == what || name == "all")
}

/// Whether one of these programs is here; a test that must not be skipped fails.
fn has_program(names: &[&str]) -> bool {
    let found = names.iter().any(|name| which::which(name).is_ok());
    let names = names.join(" or ");
    if !found {
        assert!(!is_required(&names), "this test requires {names}");
        eprintln!("skipped: there is no {names} on PATH");
    }
    found
}

fn host(cache: &Path, path: &str) -> Host {
    Host {
        cache: Cache::new(cache),
        path: path.into(),
        kernel_org: String::new(),
        is_ci: false,
        may_install: false,
    }
}

fn system_path() -> String {
    std::env::var("PATH").unwrap_or_default()
}

/// The program with nothing of this process's environment.
fn sekexe(cache_home: &Path) -> Command {
    let mut command = Command::new(program());
    command.env_clear().env("PATH", system_path()).env("XDG_CACHE_HOME", cache_home).stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// An entry for what `kernel build VERSION` would build, made of a tiny file.
fn plant(cache: &Cache, version: &str, profile: &str) -> Entry {
    let recipe = Catalogue::embedded().unwrap().recipe(version, profile).unwrap();
    let file = cache.dir("").unwrap().join("planted");
    fs::write(&file, "kernel").unwrap();
    let record = Record {
        version: version.into(),
        release: format!("{version}.9-sekexe"),
        profile: profile.into(),
        recipe: recipe.digest(),
        source: "planted".into(),
        compiler: "gcc 0".into(),
        built_at: 1,
        build_seconds: 1,
        steps: 1,
        size: 6,
        sha256: String::new(),
        features: Features { hostfs: true, ..Features::default() },
    };
    cache.insert(&key(version, "planted", &recipe, "gcc 0"), &file, &file, record).unwrap()
}

// --- Choosing a kernel -----------------------------------------------------

#[test]
fn a_kernel_in_the_cache_is_found_without_running_anything() {
    let home = tempfile::tempdir().unwrap();
    let host = host(&home.path().join("sekexe-ci"), "/nowhere");
    plant(&host.cache, "7.3", "default");
    for selector in ["auto", "7.3", "7.3/default"] {
        let kernel = resolve(selector.as_ref(), None, &host, &mut |event| panic!("{event:?}")).unwrap();
        assert_eq!(kernel.release, "7.3.9-sekexe");
        assert!(kernel.features.hostfs && !kernel.features.seccomp);
        assert!(kernel.path.is_absolute());
        // Named by its path it is still known for what it is.
        assert_eq!(kernel, probe(kernel.path.as_os_str(), "".as_ref()).unwrap());
    }
}

#[test]
fn a_kernel_that_is_not_in_the_cache_is_announced_in_one_line() {
    let home = tempfile::tempdir().unwrap();
    let host = host(home.path(), "/nowhere");
    let mut events = Vec::new();
    let error = resolve("6.12".as_ref(), None, &host, &mut |event| events.push(event)).unwrap_err();
    let Some(Event::Note(line)) = events.first() else { panic!("{events:?}") };
    assert!(line.contains("no guest kernel 6.12 in the cache"), "{line}");
    let error = format!("{error:#}");
    for tool in ["flex", "bison", "m4", "bc", "make", "gcc"] {
        assert!(error.contains(tool), "{error}");
    }
}

#[test]
fn what_is_not_a_kernel_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8], mode: u32| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    // A whole program of this machine's, and the front half of one.
    let own = fs::read(program()).unwrap();
    let cases: Vec<(PathBuf, &str)> = vec![
        (dir.path().join("none"), "there is no kernel at"),
        (dir.path().to_owned(), "is not a file"),
        (file("plain", b"\x7fELF", 0o644), "is not executable"),
        (file("text", b"hello\n", 0o755), "exec format error"),
        (file("half", &own[..own.len() / 2], 0o755), "is truncated"),
        (file("header", &own[..40], 0o755), "is truncated"),
        (file("other", b"#!/bin/sh\necho User Mode Windows\n", 0o755), "is not a User Mode Linux kernel"),
        (file("killed", b"#!/bin/sh\nkill -SEGV $$\n", 0o755), "was killed by signal 11"),
    ];
    for (path, expected) in cases {
        let error = format!("{:#}", probe(path.as_os_str(), "".as_ref()).unwrap_err());
        assert!(error.contains(expected), "{}: {error}", path.display());
    }
    let error = format!("{:#}", probe("no-such-kernel".as_ref(), "/nowhere".as_ref()).unwrap_err());
    assert!(error.contains("nor a program on PATH"), "{error}");
}

#[test]
fn a_kernel_that_does_not_answer_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hangs");
    let pid = dir.path().join("pid");
    fs::write(&path, format!("#!/bin/sh\nsleep 1000 &\necho $! > {}\nwait\n", pid.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let began = Instant::now();
    let error = probe(path.as_os_str(), "".as_ref()).unwrap_err().to_string();
    assert!(error.contains("did not answer --help within 2 s"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20));
    let child = PathBuf::from("/proc").join(fs::read_to_string(pid).unwrap().trim());
    let state = || fs::read_to_string(child.join("stat")).unwrap_or_default();
    while !state().is_empty() && !state().contains(") Z ") {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", state());
        std::thread::yield_now();
    }
}

#[test]
fn a_distributions_kernel_says_what_it_can_do() {
    require!(distribution_uml);
    let path = which::which("linux.uml").unwrap();
    let kernel = probe("linux.uml".as_ref(), system_path().as_ref()).unwrap();
    assert_eq!(kernel.path, path);
    assert!(kernel.release.starts_with(|digit: char| digit.is_ascii_digit()), "{kernel:?}");
    assert!(kernel.features.hostfs, "{kernel:?}");
    assert!(!kernel.features.hostfd, "{kernel:?}");
    assert_eq!(kernel, probe(path.as_os_str(), "".as_ref()).unwrap());
}

// --- Two builders at once --------------------------------------------------

struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Another process that holds the lock of a build.
fn hold(cache: &Path, name: &str) -> Holder {
    let lock = cache.join("locks");
    fs::create_dir_all(&lock).unwrap();
    let mut child = Command::new("flock")
        .args(["--no-fork"])
        .arg(lock.join(name))
        .args(["sh", "-c", "echo held; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    Holder(child)
}

/// Starts a build and returns when it says that it waits.
fn start_waiting(home: &Path, path: &str) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut child = sekexe(home)
        .args(["kernel", "build", "6.1", "--no-install"])
        .env("PATH", path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("another process is building"), "{line}");
    (child, stderr)
}

#[test]
fn the_second_builder_waits_and_takes_what_the_first_has_made() {
    if !has_program(&["flock"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join("sekexe-ci");
    let first = hold(&cache, "6.1-default");
    let (second, _stderr) = start_waiting(home.path(), "/nowhere");
    let entry = plant(&Cache::new(&cache), "6.1", "default");
    drop(first);
    let output = second.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(text(&output).trim(), entry.kernel_path().display().to_string());
}

#[test]
fn the_lock_of_a_killed_builder_blocks_nobody() {
    if !has_program(&["flock"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let first = hold(&home.path().join("sekexe-ci"), "6.1-default");
    let (second, mut stderr) = start_waiting(home.path(), "/nowhere");
    // Dropping sends SIGKILL.
    drop(first);
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    let output = second.wait_with_output().unwrap();
    // It went on, and found no tools on its PATH.
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("building a kernel needs what is not here"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

// --- Downloads -------------------------------------------------------------

/// Answers one request after another with these bytes, claiming this length.
fn serve(head: &'static str, body: &'static [u8], length: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
                line.clear();
            }
            let _ =
                write!(stream, "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(body);
        }
    });
    address
}

/// SHA-256 of `abc`, from FIPS 180-2.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn fetch(base: String, sha256: &str) -> (Result<(), String>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let mut host = host(dir.path(), &system_path());
    host.kernel_org = base;
    let to = host.cache.dir("sources").unwrap().join("linux-6.1.tar.xz");
    let pin = KernelOrg { release: "6.1.159".into(), sha256: sha256.into() };
    let result = fetch_kernel_org(&pin, &to, &host, &mut |_| {}).map_err(|error| format!("{error:#}"));
    let left = fs::read_dir(to.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    (result, left)
}

#[test]
fn a_download_with_the_pinned_sum_is_kept() {
    if !has_program(&["curl", "wget"]) {
        return;
    }
    let (result, left) = fetch(serve("200 OK", b"abc", 3), ABC);
    assert_eq!(result, Ok(()));
    assert_eq!(left, ["linux-6.1.tar.xz"]);
}

#[test]
fn a_download_with_another_sum_is_refused_with_both_and_removed() {
    if !has_program(&["curl", "wget"]) {
        return;
    }
    let wrong = ABC.replace('b', "c");
    let (result, left) = fetch(serve("200 OK", b"abc", 3), &wrong);
    let error = result.unwrap_err();
    assert!(error.contains(ABC) && error.contains(&wrong), "{error}");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_download_that_breaks_off_or_fails_leaves_nothing() {
    if !has_program(&["curl", "wget"]) {
        return;
    }
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    for base in [serve("200 OK", b"abc", 4), serve("404 Not Found", b"abc", 3), nobody] {
        let (result, left) = fetch(base, ABC);
        assert!(result.is_err());
        assert!(left.is_empty(), "{left:?}");
    }
}

// --- The command -----------------------------------------------------------

#[test]
fn list_path_and_remove_agree_about_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let cache = Cache::new(home.path().join("sekexe-ci"));
    let run = |args: &[&str]| sekexe(home.path()).arg("kernel").args(args).output().unwrap();

    let output = run(&["path", "6.1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("kernel build 6.1"), "{}", text(&output));

    let entry = plant(&cache, "6.1", "default");
    let output = run(&["path", "6.1"]);
    assert_eq!(text(&output).trim(), entry.kernel_path().display().to_string());

    let output = run(&["list", "--format", "json"]);
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let built: Vec<_> = list["kernels"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["current"] == true)
        .map(|row| row["version"].as_str().unwrap())
        .collect();
    assert_eq!(built, ["6.1"]);
    assert!(text(&run(&["list"])).contains("6.1.9-sekexe"));

    assert!(run(&["remove", "6.1"]).status.success());
    assert_eq!(run(&["path", "6.1"]).status.code(), Some(1));
    let output = run(&["remove", "6.1"]);
    assert!(text(&output).contains("there is no guest kernel 6.1"), "{}", text(&output));
    assert!(run(&["remove", "--all"]).status.success());
}

#[test]
fn wrong_requests_are_answered_before_anything_is_done() {
    let home = tempfile::tempdir().unwrap();
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("Makefile"), "VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 2\n").unwrap();
    let tree = source.path().to_str().unwrap();
    for (args, expected) in [
        (&["build", "5.10"][..], "only 7.3, 6.12, 6.1"),
        (&["build", "seven"][..], "is not a version"),
        (&["build", "--profile", "huge"][..], "no kernel profile 'huge'"),
        (&["build", "--source", "/nowhere/linux"][..], "is the path right?"),
        (&["build", "--source", "/"][..], "source tree?"),
        (&["build", "7.3", "--source", tree][..], "the source is Linux 6.1, not 7.3"),
    ] {
        let output = sekexe(home.path()).arg("kernel").args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(expected), "{args:?}: {}", text(&output));
    }
    let mut command = sekexe(home.path());
    let output = command.env_remove("XDG_CACHE_HOME").args(["kernel", "list"]).output().unwrap();
    assert!(text(&output).contains("XDG_CACHE_HOME"), "{}", text(&output));
}

// --- A real build ----------------------------------------------------------

/// Where this user's caches are.
fn user_cache() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    cache.or_else(|| Some(std::env::home_dir()?.join(".cache"))).unwrap()
}

/// Puts the source of Linux 6.1 from one cache into another.
fn copy_source(from: &Path, to: &Path) -> std::io::Result<()> {
    let sources = "sekexe-ci/sources";
    fs::create_dir_all(to.join(sources))?;
    let names = ["linux-6.1.tar.xz", "linux-6.1.tar.json"].map(|name| Path::new(sources).join(name));
    names.iter().try_for_each(|name| fs::copy(from.join(name), to.join(name)).map(drop))
}

#[test]
fn a_build_that_is_interrupted_leaves_no_tree_and_no_process() {
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    if let Err(error) = copy_source(&user_cache(), home.path()) {
        assert!(!is_required("kernel_build"), "no source of Linux 6.1: {error}");
        return eprintln!("skipped: no source of Linux 6.1 in the cache: {error}");
    }
    let mut child = sekexe(home.path())
        .args(["kernel", "build", "6.1", "--profile", "small"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let builds = || fs::read_dir(home.path().join("sekexe-ci/build")).unwrap().count();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let begun = lines.find(|line| line.contains("compiling Linux 6.1")).expect("it compiles");
    assert_eq!(builds(), 1, "{begun}");
    support::send(&child, Signal::SIGTERM);
    // Whoever still held its standard error would keep this from ending.
    assert_eq!(lines.collect::<Vec<_>>().join("\n"), "");
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
    assert_eq!(builds(), 0);
    let tree = home.path().as_os_str().as_bytes();
    for process in support::all_processes() {
        let at = fs::read_link(format!("/proc/{process}/cwd")).unwrap_or_default();
        assert!(!at.as_os_str().as_bytes().starts_with(tree), "process {process} is at {}", at.display());
    }
}

/// One more build of a kernel that the user's cache has, elsewhere and forced:
/// the same source, recipe and compiler have to give the same bytes. It takes
/// minutes, so it runs where `SEKEXE_TEST_REQUIRE` names `kernel_build`.
#[test]
fn the_same_source_recipe_and_compiler_give_the_same_bytes() {
    if !is_required("kernel_build") {
        eprintln!("skipped: a build takes minutes; SEKEXE_TEST_REQUIRE=kernel_build asks for it");
        return;
    }
    let user_cache = user_cache();
    let build = |cache_home: &Path, path: &str, force: &[&str]| {
        let output = sekexe(cache_home)
            .env("PATH", path)
            .args(["kernel", "build", "6.1", "--profile", "small"])
            .args(force)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    };
    let first = build(&user_cache, &system_path(), &[]);
    // The source is not downloaded again.
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    copy_source(&user_cache, home.path()).unwrap();
    // Programs that Linux looks for and takes the versions of, and that we make nothing with.
    let programs = home.path().join("bin");
    fs::create_dir(&programs).unwrap();
    for (name, version) in [("pahole", "v1.29"), ("rustc", "rustc 1.95.0 (LLVM 22.1.2)"), ("bindgen", "0.72")]
    {
        let file = programs.join(name);
        fs::write(&file, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", programs.display(), system_path());
    let second = build(home.path(), &path, &["--force"]);
    assert_eq!(first.file_name(), second.file_name());
    assert!(fs::read(first).unwrap() == fs::read(second).unwrap(), "the two kernels differ");
}
