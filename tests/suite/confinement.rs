//! What guest root cannot do to the host, even by mounting the host's files anew.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Place, Ran, process_tree, require};

/// Mounts the host's files read-write at /mnt, as guest root can.
const ATTACK: &str = "mkdir -p /mnt/host; mount -t hostfs -o / none /mnt/host; cd /mnt/host; ";

#[test]
fn a_fresh_mount_of_the_host_cannot_be_written() {
    require!(uml, landlock);
    let place = Place::new();
    place.write("home/mine", "untouched");
    let home = place.path("home");
    let home = home.strip_prefix("/").unwrap().display();
    let script = format!(
        "{ATTACK} fail=0
         for at in {home} tmp var/tmp etc root dev/shm .; do
             echo x 2> /dev/null > $at/sekexe-attack && {{ echo wrote $at; fail=1; }}
             mkdir $at/sekexe-attack 2> /dev/null && {{ echo made $at; fail=1; }}
             ln -s x $at/sekexe-attack 2> /dev/null && {{ echo linked $at; fail=1; }}
         done
         for act in 'rm -f' 'truncate -s 0' 'chmod 777' 'touch'; do
             $act {home}/mine 2> /dev/null && echo did: $act
         done
         mv {home}/mine {home}/theirs 2> /dev/null && echo moved
         echo x 2> /dev/null >> {home}/mine && echo appended
         cat {home}/mine; exit $fail"
    );
    let ran = place.exec_with(["--shell", "sh {0}", &script]).ended_with(0);
    // A mode or a time can be changed by whoever owns the file; Landlock has no word for it.
    let harmless = ["did: chmod 777", "did: touch", "untouched"];
    let did: Vec<&str> = ran.stdout.lines().filter(|line| !harmless.contains(line)).collect();
    assert!(did.is_empty(), "{did:?}");
    assert_eq!(fs::read_to_string(place.path("home/mine")).unwrap(), "untouched");
    for at in [home.to_string().as_str(), "tmp", "var/tmp", "etc", "dev/shm", ""] {
        assert!(!std::path::Path::new("/").join(at).join("sekexe-attack").exists(), "/{at}");
    }
}

#[test]
fn credentials_are_hidden_in_the_root_and_in_a_fresh_mount() {
    require!(uml, landlock);
    // The guest has a /tmp of its own, which would hide everything.
    let place = Place::new_in("/var/tmp");
    for directory in ["home/.ssh", "home/.aws", "home/.docker", "home/private", "home/.config/gh"] {
        fs::create_dir_all(place.path(directory)).unwrap();
    }
    let secret = [
        ".ssh/id",
        ".aws/credentials",
        ".docker/config.json",
        ".netrc",
        ".config/gh/hosts.yml",
        "private/key",
    ];
    for name in secret {
        place.write(&format!("home/{name}"), "s3cret");
    }
    place.write("home/.docker/contexts", "plain");
    let hide = place.path("home/private");
    let home = place.path("home").display().to_string();
    let script = format!(
        "for file in .docker/contexts {}; do
             echo $file: $(cat {home}/$file 2> /dev/null) $(cat /mnt/host/{home}/$file 2> /dev/null)
         done",
        secret.join(" ")
    );
    let script = format!("{ATTACK} {script}");
    let ran = place.exec_with(["--hide".as_ref(), hide.as_os_str(), script.as_ref()]).ended_with(0);
    let expected: String = [".docker/contexts: plain plain\n".to_owned()]
        .into_iter()
        .chain(secret.map(|s| format!("{s}:\n")))
        .collect();
    assert_eq!(ran.stdout, expected);

    let show = place.path("home/.ssh");
    let script = format!("cat {home}/.ssh/id; ls {home}/.aws 2>&1");
    let ran = place.exec_with(["--show".as_ref(), show.as_os_str(), script.as_ref()]);
    assert!(ran.stdout.starts_with("s3cret") && ran.stdout.contains("No such file"), "{}", ran.stdout);
}

#[test]
fn a_hidden_file_cannot_be_had_through_a_link_or_another_name() {
    require!(uml, landlock);
    let place = Place::new_in("/var/tmp");
    fs::create_dir(place.path("home/.ssh")).unwrap();
    let secret = place.write("home/.ssh/id", "s3cret");
    std::os::unix::fs::symlink(&secret, place.path("work/link")).unwrap();
    std::os::unix::fs::symlink(place.path("home/.ssh"), place.path("work/keys")).unwrap();
    let script = format!(
        "{ATTACK} cat {work}/link {work}/keys/id ./{secret} 2> /dev/null
         mkdir /bound; mount --bind /mnt/host{home} /bound; cat /bound/.ssh/id 2> /dev/null
         mkdir /again; mount -t hostfs -o {home}/.ssh none /again && cat /again/id 2> /dev/null
         echo done",
        work = place.path("work").display(),
        home = place.path("home").display(),
        secret = secret.display()
    );
    assert_eq!(place.exec_with(["--shell", "sh {0}", &script]).ended_with(0).stdout, "done\n");
}

#[test]
fn host_processes_cannot_be_looked_at() {
    require!(uml, landlock);
    let place = Place::new();
    let pid = std::process::id();
    let script = format!(
        "{ATTACK} for file in environ maps mem cwd/Cargo.toml root/etc/passwd fd/0; do
             head -c 1 proc/{pid}/$file > /dev/null 2>&1 && echo read $file
         done; head -c 1 proc/1/environ 2> /dev/null; kill -0 {pid} 2> /dev/null && echo signalled; echo done"
    );
    assert_eq!(place.exec_with(["--shell", "sh {0}", &script]).ended_with(0).stdout, "done\n");
}

#[test]
fn host_sockets_refuse() {
    require!(uml, landlock, python3);
    let place = Place::new_in("/var/tmp");
    let listener = UnixListener::bind(place.path("work/socket")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let path = place.path("work/socket");
    let script = format!(
        "import socket, os
for path in ['{0}', '/mnt/host{0}']:
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(path)
        print('connected', path)
    except OSError as e:
        print(e.errno in (2, 13, 111))
",
        path.display()
    );
    place.write("work/attack.py", script);
    let ran = place.exec(&format!("{ATTACK} python3 {}/attack.py", place.path("work").display()));
    assert_eq!(ran.ended_with(0).stdout, "True\nTrue\n");
    assert!(listener.accept().is_err());
}

#[test]
fn nothing_of_the_users_is_in_the_kernels_arguments_or_environment() {
    require!(uml);
    let place = Place::new();
    fs::create_dir(place.path("work/pecu liar")).unwrap();
    let mut command = place.sekexe(["exec", "--env", "MARK=peculiar-value", "--user", "0:0", "--workdir"]);
    command.arg(place.path("work/pecu liar")).arg("--rw").arg(place.path("work"));
    command.arg("echo peculiar-script; read end").env("GITHUB_TOKEN", "peculiar-token");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "peculiar-script\n");
    let own = child.id();
    let mut seen = 0;
    for pid in process_tree(own).into_iter().filter(|pid| *pid != own) {
        seen += 1;
        for file in ["cmdline", "environ"] {
            let Ok(bytes) = fs::read(format!("/proc/{pid}/{file}")) else { continue };
            let text = String::from_utf8_lossy(&bytes).replace('\0', "\n");
            let work = place.path("work").display().to_string();
            for word in ["peculiar", "pecu liar", &work, "MARK", "TOKEN", "read end"] {
                assert!(!text.contains(word), "{word} in {file}: {text}");
            }
            let names: Vec<_> =
                text.lines().filter_map(|l| l.split_once('=')).map(|(name, _)| name).collect();
            if file == "environ" {
                assert!(names.iter().all(|name| ["HOME", "TMPDIR", "PATH"].contains(name)), "{text}");
            }
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(status.is_empty() || status.contains("NoNewPrivs:\t1"), "{status}");
    }
    assert!(seen > 1, "the kernel and its processes were not found");
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn what_was_enforced_is_told() {
    require!(uml, landlock);
    let place = Place::new_in("/var/tmp");
    fs::create_dir(place.path("home/.ssh")).unwrap();
    let result = place.path("result.json");
    let ran = place.exec_with([
        "--require".as_ref(),
        "confinement".as_ref(),
        "--verbose".as_ref(),
        "--result".as_ref(),
        result.as_os_str(),
        "true".as_ref(),
    ]);
    let ran = ran.ended_with(0).says("enforced: Landlock ABI");
    ran.says(&place.path("home/.ssh").display().to_string());
    let value: Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
    let confinement = &value["confinement"];
    assert!(confinement["landlock_abi"].as_u64().unwrap() > 0);
    assert_eq!(confinement["no_new_privs"], true);
    assert_eq!(confinement["writable"], serde_json::json!([place.path("work")]));
    assert_eq!(confinement["hidden"], serde_json::json!([place.path("home/.ssh")]));
}

#[test]
fn a_hidden_path_cannot_be_made_writable() {
    let place = Place::new();
    fs::create_dir(place.path("home/.ssh")).unwrap();
    let home = place.path("home");
    let ran = place.exec_with(["--rw".as_ref(), home.as_os_str(), "true".as_ref()]).ended_with(125);
    ran.says("contains hidden files").says("--show");
    let ssh = place.path("home/.ssh");
    place.exec_with(["--rw".as_ref(), ssh.as_os_str(), "true".as_ref()]).ended_with(125).says("hidden");
}

#[test]
fn set_user_id_programs_of_the_host_give_the_guest_nothing_on_the_host() {
    require!(uml, landlock, ordinary_user);
    let place = Place::new();
    let script = "cp /bin/sh shell; chown 0:0 shell 2> /dev/null; chmod 6755 shell 2> /dev/null; true";
    place.exec(script).ended_with(0);
    // Whatever became of it, it belongs to the user who may have made it by hand.
    let metadata = fs::metadata(place.path("work/shell")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(metadata.uid(), nix::unistd::geteuid().as_raw());
    assert_eq!(metadata.permissions().mode() & 0o700, 0o700);
}

#[test]
fn the_untrusted_mode_is_confined_as_well() {
    require!(uml, landlock);
    let place = Place::new_in("/var/tmp");
    place.write("home/.netrc", "s3cret");
    let script = format!("{ATTACK} cat {0} ./{0}", place.path("home/.netrc").display());
    let ran: Ran = place.exec_with(["--untrusted", "--shell", "sh {0}", &script]).ended_with(1);
    assert_eq!(ran.stdout, "");
}
