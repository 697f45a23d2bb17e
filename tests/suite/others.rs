//! What others wrote, inside the guest: package tools, account tools, git, Python's own tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Place, Ran, require};

/// Packages of different kinds: a program, a library with a program, a script for another
/// interpreter, one with a maintainer script.
const PACKAGES: [&str; 6] = ["hello", "jq", "libjq1", "libonig5", "cowsay", "libtext-charwidth-perl"];

/// Fetches packages as the host user, as a step before this one would.
fn fetch(place: &Place, packages: &[&str]) -> Result<Vec<PathBuf>, String> {
    let output = Command::new("apt-get")
        .args(["download", "-q"])
        .args(packages)
        .current_dir(place.path("work"))
        .output()
        .map_err(|e| format!("apt-get: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let files = fs::read_dir(place.path("work")).unwrap().flatten().map(|entry| entry.path());
    Ok(files.filter(|path| path.extension().is_some_and(|e| e == "deb")).collect())
}

/// What the host's package manager and its programs look like: size, time and inode of everything
/// in the directories, contents of the package database.
fn host_state() -> BTreeMap<PathBuf, String> {
    use std::os::unix::fs::MetadataExt;
    let mut state = BTreeMap::new();
    for directory in
        ["/usr/bin", "/usr/games", "/usr/share/doc", "/var/lib/dpkg", "/var/lib/dpkg/info", "/etc"]
    {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            let seen = format!("{} {} {}", metadata.size(), metadata.ino(), metadata.ctime());
            state.insert(entry.path(), seen);
        }
    }
    for file in ["/var/lib/dpkg/status", "/etc/passwd", "/etc/group"] {
        let sum = <sha2::Sha256 as sha2::Digest>::digest(fs::read(file).unwrap());
        state.insert(Path::new(file).join("contents"), format!("{sum:x?}"));
    }
    state
}

#[test]
fn packages_are_installed_in_the_guest_and_not_on_the_host() {
    require!(uml, dpkg);
    let place = Place::new();
    if let Err(why) = fetch(&place, &PACKAGES) {
        eprintln!("skipped: packages cannot be fetched: {why}");
        return;
    }
    let before = host_state();
    let script = "dpkg -i --force-depends ./*.deb > log 2>&1 || { cat log; exit 9; }
                  hello; echo '{\"a\": [1, 2]}' | jq -c .a; /usr/games/cowsay moo | grep -c moo
                  dpkg -s hello | grep ^Status; dpkg --verify hello jq cowsay
                  dpkg --purge hello > /dev/null; test ! -e /usr/bin/hello";
    let ran = place.exec(script).ended_with(0);
    assert_eq!(ran.stdout, "Hello, world!\n[1,2]\n1\nStatus: install ok installed\n", "{}", ran.stderr);
    assert_eq!(host_state(), before);
}

#[test]
fn accounts_are_made_and_used() {
    require!(uml);
    let place = Place::new();
    let before = host_state();
    let script = "useradd --create-home --shell /bin/sh sekexe-builder
                  echo sekexe-builder:pass-word | chpasswd
                  id -un; su - sekexe-builder -c 'id -un; pwd; touch mine; stat -c %U mine; test -w /etc/passwd || echo no'
                  getent shadow sekexe-builder | grep -c '^sekexe-builder:\\$'
                  groupadd crew; usermod -aG crew sekexe-builder; su sekexe-builder -c 'id -Gn'
                  userdel -r sekexe-builder 2> /dev/null; id sekexe-builder 2>&1 | grep -c 'no such user'";
    let ran = place.exec(script).ended_with(0);
    let expected =
        "root\nsekexe-builder\n/home/sekexe-builder\nsekexe-builder\nno\n1\nsekexe-builder crew\n1\n";
    assert_eq!(ran.stdout, expected, "{}", ran.stderr);
    assert_eq!(host_state(), before);
}

#[test]
fn git_clones_commits_and_checks_in_a_writable_directory() {
    require!(uml, git, map_owner);
    let place = Place::new_in("/var/tmp");
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(place.path("work")).env("HOME", place.path("home"));
        Ran::from(command.output().unwrap()).ended_with(0).stdout
    };
    // A repository with some history, owned by the host user.
    let source = env!("CARGO_MANIFEST_DIR");
    if Path::new(source).join(".git").exists() && nix::unistd::geteuid().is_root() {
        git(&["clone", "-q", "--no-hardlinks", source, "project"]);
    } else {
        git(&["init", "-q", "project"]);
        let identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"];
        for at in 0..30 {
            place.write("work/project/file", format!("{at}\n").repeat(1000));
            git(&["-C", "project", "add", "file"]);
            git(&[&["-C", "project"], &identity[..], &["commit", "-q", "-m", "change"]].concat());
        }
    }
    let script = "git config --global user.name Guest; git config --global user.email guest@example.org
                  cd project; git status --short; git fsck --strict 2>&1 | grep -v dangling
                  git log --oneline | wc -l > ../count
                  echo new > guest-file; git add guest-file; git commit -q -m 'Add a file'; git gc -q
                  cd ..; git clone -q project clone; cd clone; git fsck --strict 2>&1 | grep -v dangling
                  git log --oneline | wc -l; rm -rf ../clone/.git; test ! -e ../clone/.git";
    let ran = place.exec_with(["--shell", "sh {0}", script]).ended_with(0);
    assert!(!ran.stderr.contains("dubious ownership"), "{}", ran.stderr);
    let count: u32 = fs::read_to_string(place.path("work/count")).unwrap().trim().parse().unwrap();
    assert_eq!(ran.stdout, format!("{}\n", count + 1), "{}", ran.stderr);
    // The host user can go on with it.
    assert!(git(&["-C", "project", "log", "-1", "--format=%an %s"]).starts_with("Guest Add a file"));
    git(&["-C", "project", "fsck", "--strict"]);
    let metadata = fs::metadata(place.path("work/project/guest-file")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), nix::unistd::geteuid().as_raw());
}

#[test]
fn archives_keep_owners_in_the_throw_away_layer() {
    require!(uml);
    let place = Place::new();
    let script =
        "mkdir /tree; touch /tree/a /tree/b; chown 12:34 /tree/a; chmod 4755 /tree/b; ln /tree/a /tree/c
                  mknod /tree/null c 1 3; mkfifo /tree/fifo; ln -s a /tree/link
                  tar -C / -cf /tree.tar tree; mkdir /out; tar -C /out -xpf /tree.tar
                  cd /out/tree; stat -c '%n %u:%g %a %h %F' a b c null fifo link; echo x > null; cat null";
    let ran = place.exec(script).ended_with(0);
    let expected = "a 12:34 644 2 regular empty file\nb 0:0 4755 1 regular empty file\n\
                    c 12:34 644 2 regular empty file\nnull 0:0 644 1 character special file\n\
                    fifo 0:0 644 1 fifo\nlink 0:0 777 1 symbolic link\n";
    assert_eq!(ran.stdout, expected);
}

#[test]
fn shared_memory_and_message_queues_are_there() {
    require!(uml, python3);
    let place = Place::new();
    place.write(
        "work/check.py",
        "import multiprocessing as m, os
if __name__ == '__main__':
    with m.Pool(3) as pool:
        print(sum(pool.map(abs, range(-100, 0))))
    from multiprocessing import shared_memory
    block = shared_memory.SharedMemory(create=True, size=100)
    print(os.path.exists('/dev/shm/' + block.name)); block.close(); block.unlink()
",
    );
    let python = if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
    assert_eq!(place.exec_with(["--", python, "-B", "check.py"]).ended_with(0).stdout, "5050\nTrue\n");
}

#[test]
fn pythons_own_tests_pass() {
    require!(uml, dpkg);
    let place = Place::new();
    let version = Command::new("/usr/bin/python3").arg("--version").output();
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let Some((minor, _)) = version.trim().strip_prefix("Python 3.").and_then(|v| v.split_once('.')) else {
        eprintln!("skipped: there is no Python of the distribution");
        return;
    };
    if let Err(why) = fetch(&place, &[&format!("libpython3.{minor}-testsuite")]) {
        eprintln!("skipped: packages cannot be fetched: {why}");
        return;
    }
    // Most of their time these tests sleep, so they run side by side. Left out: UDP-Lite, which
    // Linux 7.3 no longer has, while the tests ask for the constant and not for the protocol.
    let script = "dpkg -i --force-depends ./*.deb > log 2>&1 || { cat log; exit 9; }
                  cd /tmp; /usr/bin/python3 -m test -j4 --timeout 400 -i '*UDPLITE*' test_os test_subprocess test_socket test_signal";
    let ran = place.exec_with(["--memory", "1G", "--timeout", "10m", script]);
    assert_eq!(ran.status, 0, "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("Tests result: SUCCESS"), "{}", ran.stdout);
}

#[test]
fn a_container_engine_runs_in_the_guest() {
    require!(uml, dockerd);
    let script = "dockerd > /tmp/log 2>&1 &
                  until docker version > /dev/null 2>&1; do
                      kill -0 $! 2> /dev/null || { tail -3 /tmp/log >&2; exit 9; }
                      sleep 0.1
                  done
                  mkdir -p /tmp/image/bin; cp /bin/busybox /tmp/image/bin; ln -s busybox /tmp/image/bin/sh
                  tar -C /tmp/image -c . | docker import - image > /dev/null
                  docker info 2> /dev/null | grep -E 'Storage Driver|Cgroup Version'
                  docker run --rm --memory 64m image busybox cat /sys/fs/cgroup/memory.max
                  docker run --rm image sh -c 'busybox id -u; exit 5' || echo $?";
    let place = Place::new();
    let ran = place.exec_with(["--timeout", "3m", "--shell", "sh {0}", script]).ended_with(0);
    assert_eq!(
        ran.stdout, " Storage Driver: overlay2\n Cgroup Version: 2\n67108864\n0\n5\n",
        "{}",
        ran.stderr
    );
}
