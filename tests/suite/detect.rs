//! What `detect` says, here and on hosts that deny: each denial is set up for real.

use std::path::Path;
use std::process::Command;

use sekexe_ci::kernel::Features;
use sekexe_ci::kernel::cache::{Cache, Record};
use serde_json::{Value, json};

use crate::docker;
use crate::support::{self, Place, Ran, require};

/// What it finds when started by `prefix`, a program and its arguments.
#[track_caller]
fn detect_under(place: &Place, prefix: &[&str]) -> Value {
    let command = place.sekexe(["detect", "--format", "json"]);
    let mut command = if prefix.is_empty() { command } else { support::under(prefix, &command) };
    found(Ran::from(command.output().expect("our program starts")))
}

#[track_caller]
fn found(ran: Ran) -> Value {
    let ran = ran.ended_with(0);
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))
}

/// Reason and remedy of a no.
#[track_caller]
fn denial(found: &Value, pointer: &str) -> String {
    let answer = found.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {found}"));
    assert_eq!(answer["supported"], false, "{pointer}: {answer}");
    format!("{}; {}", answer["reason"].as_str().unwrap(), answer["remedy"].as_str().unwrap_or("-"))
}

/// Every name in a value, below the names around it; of a list the first item stands for all.
fn names(value: &Value, around: &str, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().take(1).for_each(|item| names(item, around, found)),
        // An answer has a reason or not, depending on the host.
        Value::Object(fields) if !fields.contains_key("supported") => {
            for (name, value) in fields {
                let name = if around.is_empty() { name.clone() } else { format!("{around}.{name}") };
                found.push(name.clone());
                names(value, &name, found);
            }
        }
        _ => {}
    }
}

/// Installs a seccomp filter and becomes another program: the filter's answer, the numbers of the
/// system calls that get it, `--`, the program.
pub const FILTER: &str = "
import ctypes, os, struct, sys
end = sys.argv.index('--')
answer, numbers = int(sys.argv[1]), [int(number) for number in sys.argv[2:end]]
code = struct.pack('HBBI', 0x20, 0, 0, 0)
for number in numbers:
    code += struct.pack('HBBI', 0x15, 0, 1, number) + struct.pack('HBBI', 0x06, 0, 0, answer)
code += struct.pack('HBBI', 0x06, 0, 0, 0x7fff0000)
code = ctypes.create_string_buffer(code, len(code))
program = struct.pack('HxxxxxxQ', len(code) // 8, ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[end + 1], sys.argv[end + 1:])
";

/// What it finds under a filter that gives `answer` to these system calls.
#[track_caller]
fn detect_filtered(place: &Place, answer: u32, calls: &[i64]) -> Value {
    let (answer, calls) = (answer.to_string(), calls.iter().map(i64::to_string).collect::<Vec<_>>());
    let mut prefix = vec!["python3", "-c", FILTER, &answer];
    prefix.extend(calls.iter().map(String::as_str));
    prefix.push("--");
    detect_under(place, &prefix)
}

/// A filter's answer that fails a call with an error.
pub fn fail(errno: i32) -> u32 {
    nix::libc::SECCOMP_RET_ERRNO | errno as u32
}

#[test]
fn the_layout_of_the_json_output_is_kept() {
    let place = Place::new();
    let program = place.write("program", "");
    cache_with(&place, &[("1.0", &program)]);
    let mut command = place.sekexe(["detect", "--format", "json"]);
    let mut found = found(Ran::from(command.env("XDG_CACHE_HOME", place.path("cache")).output().unwrap()));
    // Null where there is none.
    found["ci"] = json!({ "name": "github" });
    found["container"] = json!({ "kind": "docker", "mark": "/.dockerenv", "github_job": false });
    let mut layout = Vec::new();
    names(&found, "", &mut layout);
    insta::assert_snapshot!(layout.join("\n"), @r#"
ci
ci.name
container
container.github_job
container.kind
container.mark
control_groups
control_groups.controllers
control_groups.delegated
control_groups.limits
control_groups.limits.cpus
control_groups.limits.cpuset
control_groups.limits.memory_bytes
control_groups.limits.processes
control_groups.path
control_groups.versions
fuse
kernels
kernels.boot
kernels.current
kernels.label
kernels.path
kernels.release
kvm
landlock
landlock.abi
landlock.enforced
limits
limits.available_bytes
limits.cpus
limits.memory_bytes
limits.open_files
limits.processes
namespaces
namespaces.cgroup
namespaces.ipc
namespaces.mount
namespaces.nested
namespaces.network
namespaces.overlay
namespaces.pid
namespaces.privilege
namespaces.proc
namespaces.subordinate_ids
namespaces.time
namespaces.user
namespaces.uts
places
places.exec
places.free
places.memory
places.path
places.size
places.usable
privileges
privileges.capabilities
privileges.no_new_privs
privileges.real_root
privileges.uid
programs
programs.found
programs.name
programs.path
ptrace
schema
seccomp
seccomp.filter
seccomp.filters
seccomp.listener
seccomp.mode
sekexe_ci
tun
tun.device
tun.tap
verdict
verdict.better
verdict.better.gain
verdict.better.remedy
verdict.machine
verdict.reason
"#);
}

/// Fills a cache of the place's own with kernels of these versions.
fn cache_with(place: &Place, kernels: &[(&str, &Path)]) {
    let cache = Cache::new(place.path("cache/sekexe-ci"));
    for (version, kernel) in kernels {
        let record = Record {
            version: (*version).into(),
            release: "as-built".into(),
            profile: "default".into(),
            recipe: String::new(),
            source: String::new(),
            compiler: String::new(),
            built_at: 1,
            build_seconds: 1,
            steps: 1,
            size: 1,
            sha256: String::new(),
            features: Features::default(),
        };
        cache.insert("key", kernel, kernel, record).unwrap();
    }
}

#[test]
fn what_is_there_is_what_other_programs_get() {
    let found = detect_under(&Place::new(), &[]);
    let works = |arguments: &[&str]| {
        let output = Command::new(arguments[0]).args(&arguments[1..]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let mounting = ["unshare", "--user", "--map-root-user", "--mount", "true"];
    assert_eq!(found["namespaces"]["mount"]["supported"], works(&mounting), "{found}");
    let devices = [("/kvm", "/dev/kvm"), ("/tun/device", "/dev/net/tun"), ("/fuse", "/dev/fuse")];
    for (pointer, device) in devices {
        let opens = std::fs::OpenOptions::new().read(true).write(true).open(device).is_ok();
        let answer = &found.pointer(pointer).unwrap()["supported"];
        // One that opens may still not do.
        assert!(opens || answer == false, "{device}: {answer}");
    }
    assert_eq!(found["privileges"]["uid"], nix::unistd::geteuid().as_raw());
    assert_eq!(
        found["limits"]["cpus"].as_array().unwrap().len(),
        std::thread::available_parallelism().unwrap().get()
    );
}

#[test]
fn the_ci_is_named_as_an_option_names_it() {
    let place = Place::new();
    let ci = |variables: &[(&str, &str)]| {
        let mut command = place.sekexe(["detect", "--format", "json"]);
        command.envs(variables.iter().copied());
        found(Ran::from(command.output().unwrap()))["ci"].take()
    };
    assert_eq!(ci(&[("CI", "true"), ("GITHUB_ACTIONS", "true")]), json!({ "name": "github" }));
    assert_eq!(ci(&[("CI", "true")]), json!({ "name": "unknown" }));
    assert_eq!(ci(&[]), Value::Null);
}

#[test]
fn it_is_told_that_no_user_namespaces_are_left() {
    require!(userns);
    let place = Place::new();
    let limited = |limit: u32, more: &[&str]| {
        let script = format!("echo {limit} > /proc/sys/user/max_user_namespaces && exec \"$@\"");
        let prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", &script, "sh"];
        detect_under(&place, &[&prefix, more].concat())
    };
    let found = limited(0, &[]);
    insta::assert_snapshot!(denial(&found, "/namespaces/user"), @"user.max_user_namespaces is 0 (ENOSPC); sudo sysctl -w user.max_user_namespaces=15000");
    // With all capabilities where we are, the others need no user namespace.
    assert_eq!(found["namespaces"]["privilege"], "real-root");
    assert_eq!(found["verdict"]["machine"], "namespaces", "{found}");
    assert_eq!(found["namespaces"]["overlay"]["supported"], true, "{found}");

    let found = limited(0, &["setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
    assert_eq!(found["namespaces"]["privilege"], "none");
    assert_eq!(found["verdict"]["machine"], "uml");
    let better = found["verdict"]["better"][0]["remedy"].as_str();
    assert_eq!(better, Some("sudo sysctl -w user.max_user_namespaces=15000"), "{found}");
    insta::assert_snapshot!(denial(&found, "/namespaces/network"), @"it takes a user namespace, or root with CAP_SYS_ADMIN; sudo sysctl -w user.max_user_namespaces=15000");

    let found = limited(1, &[]);
    assert_eq!(found["namespaces"]["user"]["supported"], true);
    insta::assert_snapshot!(denial(&found, "/namespaces/nested"), @"user.max_user_namespaces is used up, here or in an outer namespace (ENOSPC); sudo sysctl -w user.max_user_namespaces=15000");
}

#[test]
fn mounts_below_a_directory_do_not_stand_in_the_way_of_an_overlay() {
    require!(userns);
    let script = "mount -t tmpfs none /usr/share && exec \"$@\"";
    let prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"];
    let found = detect_under(&Place::new(), &prefix);
    assert_eq!(found["namespaces"]["overlay"]["supported"], true, "{}", found["namespaces"]["overlay"]);
}

#[test]
fn a_filter_that_denies_namespaces_is_named() {
    require!(python3);
    use nix::libc::{EPERM, SECCOMP_RET_KILL_PROCESS, SYS_clone3, SYS_sethostname, SYS_unshare};
    let place = Place::new();
    let found = detect_filtered(&place, fail(EPERM), &[SYS_unshare, SYS_clone3]);
    assert_eq!(found["namespaces"]["privilege"], "none");
    assert_eq!(found["seccomp"]["mode"], 2);
    insta::assert_snapshot!(denial(&found, "/namespaces/user"), @"a seccomp filter of our ancestors' denies a user namespace (EPERM); start it without the filter; for a systemd service: RestrictNamespaces=no and no SystemCallFilter=");
    let found = detect_filtered(&place, SECCOMP_RET_KILL_PROCESS, &[SYS_unshare, SYS_clone3]);
    insta::assert_snapshot!(denial(&found, "/namespaces/user"), @"a seccomp filter kills who asks for a user namespace; start it without the filter; for a systemd service: RestrictNamespaces=no and no SystemCallFilter=");
    // What else there is does not suffer.
    let found = detect_filtered(&place, SECCOMP_RET_KILL_PROCESS, &[SYS_sethostname]);
    assert!(denial(&found, "/namespaces/uts").contains("kills who asks for a uts namespace"));
    if support::have::userns().is_ok() {
        let denied = |name: &str| found["namespaces"][name]["supported"] == false;
        assert!(!["user", "time", "overlay", "nested"].into_iter().any(denied), "{found}");
    }
}

#[test]
fn a_mount_that_is_denied_inside_is_named() {
    require!(python3, userns);
    let found = detect_filtered(&Place::new(), fail(nix::libc::EACCES), &[nix::libc::SYS_mount]);
    assert_eq!(found["namespaces"]["privilege"], "none");
    assert_eq!(found["namespaces"]["network"]["supported"], true);
    insta::assert_snapshot!(denial(&found, "/namespaces/mount"), @"a seccomp filter of our ancestors' denies a mount namespace (EACCES); start it without the filter; for a systemd service: RestrictNamespaces=no and no SystemCallFilter=");
    insta::assert_snapshot!(denial(&found, "/namespaces/overlay"), @"it takes a mount namespace; start it without the filter; for a systemd service: RestrictNamespaces=no and no SystemCallFilter=");
}

#[test]
fn tracing_filters_and_landlock_that_are_denied_are_named() {
    require!(python3);
    use nix::libc::{ENOSYS, EPERM, SYS_landlock_create_ruleset, SYS_ptrace, SYS_seccomp};
    let place = Place::new();
    let found = detect_filtered(&place, fail(EPERM), &[SYS_ptrace, SYS_seccomp]);
    assert!(denial(&found, "/ptrace").contains("EPERM"));
    insta::assert_snapshot!(denial(&found, "/seccomp/filter"), @"installing a filter: Operation not permitted (EPERM); a kernel with CONFIG_SECCOMP_FILTER=y, and nothing above us that denies seccomp");
    let found = detect_filtered(&place, fail(ENOSYS), &[SYS_landlock_create_ruleset]);
    insta::assert_snapshot!(denial(&found, "/landlock/enforced"), @"the kernel has no Landlock (ENOSYS); a kernel from 5.13 on with CONFIG_SECURITY_LANDLOCK=y");
    assert_eq!(found["landlock"]["abi"], 0);
}

#[test]
fn a_chroot_is_named() {
    require!(userns, static_program);
    let place = Place::new();
    let root = place.path("root");
    for directory in ["proc", "tmp"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy(support::program(), root.join("sekexe-ci")).unwrap();
    let detect = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).current_dir(&root);
        found(Ran::from(command.output().unwrap()))
    };
    let found = detect("mount --rbind /proc proc && exec chroot . /sekexe-ci detect --format json");
    insta::assert_snapshot!(denial(&found, "/namespaces/user"), @"we are in a chroot, where the kernel gives a user namespace to nobody (EPERM); enter the directory by a mount namespace, such as bwrap's or systemd-nspawn's, not by chroot");
    let found = detect("exec chroot . /sekexe-ci detect --format json");
    insta::assert_snapshot!(denial(&found, "/namespaces/user"), @"a user namespace was refused, and without /proc nobody can tell why (EPERM); mount -t proc proc /proc");
}

#[test]
fn a_file_system_that_does_not_answer_costs_its_deadline_and_no_more() {
    require!(python3, userns);
    let place = Place::new();
    let hung = place.path("hung");
    std::fs::create_dir(&hung).unwrap();
    // A server that never reads a request.
    let script = "
import ctypes, os, sys
fuse = os.open('/dev/fuse', os.O_RDWR)
os.set_inheritable(fuse, True)
options = b'fd=%d,rootmode=40000,user_id=0,group_id=0' % fuse
assert ctypes.CDLL(None).mount(b'hung', sys.argv[1].encode(), b'fuse', 0, options) == 0
os.environ['TMPDIR'] = sys.argv[1]
os.execvp(sys.argv[2], sys.argv[2:])
";
    if detect_under(&place, &[])["fuse"]["supported"] != true {
        eprintln!("skipped: no file system in user space can be mounted");
        return;
    }
    let hung = hung.to_str().unwrap();
    let prefix = ["unshare", "--user", "--map-root-user", "--mount", "python3", "-c", script, hung];
    let found = detect_under(&place, &prefix);
    assert!(denial(&found, "/places/0/usable").contains("no answer within"));
}

#[test]
fn a_control_group_is_ours_where_nobody_else_is_in_it() {
    require!(uml);
    let place = Place::new();
    let program = support::program();
    let program = program.to_str().unwrap();
    let alone = place.exec_with(["--", program, "detect", "--format", "json"]);
    let found = self::found(alone);
    assert_eq!(found["control_groups"]["versions"], json!([2]), "{found}");
    assert_eq!(found["control_groups"]["delegated"]["supported"], true, "{found}");
    let left = "find /sys/fs/cgroup -name 'sekexe*'";
    let script = format!("'{program}' detect --format json; test -z \"$({left})\"");
    let shared = place.exec(&script);
    assert!(denial(&self::found(shared), "/control_groups/delegated").contains("other processes than us"));
}

#[test]
fn a_kernel_without_some_of_it_says_what_it_was_built_without() {
    require!(uml_6_1);
    let kernel = support::kernel("6.1/small").unwrap();
    let mut command = Command::new(support::program());
    command.args(["exec", "--isolation", "uml", "--ro", "--kernel"]).arg(kernel).arg("--");
    let ran =
        Ran::from(command.arg(support::program()).args(["detect", "--format", "json"]).output().unwrap());
    let found = found(ran);
    assert_eq!(found["namespaces"]["user"]["supported"], true, "{found}");
    assert_eq!(found["namespaces"]["overlay"]["supported"], true, "{found}");
    insta::assert_snapshot!(denial(&found, "/namespaces/uts"), @"the kernel was built without uts namespaces (EINVAL); a kernel with CONFIG_UTS_NS=y");
    insta::assert_snapshot!(denial(&found, "/landlock/enforced"), @"the kernel has no Landlock (ENOSYS); a kernel from 5.13 on with CONFIG_SECURITY_LANDLOCK=y");
    insta::assert_snapshot!(denial(&found, "/fuse"), @"there is no /dev/fuse; sudo modprobe fuse");
}

#[test]
fn ranges_of_ids_are_really_mapped() {
    require!(userns, newuidmap);
    let found = detect_under(&Place::new(), &[]);
    assert_eq!(found["namespaces"]["subordinate_ids"]["supported"], true, "{found}");
    // A program that is there and does nothing is not enough.
    let place = Place::new();
    let broken = place.path("bin");
    std::fs::create_dir(&broken).unwrap();
    for name in ["newuidmap", "newgidmap"] {
        std::os::unix::fs::symlink("/bin/true", broken.join(name)).unwrap();
    }
    let mut command = place.sekexe(["detect", "--format", "json"]);
    let found = self::found(Ran::from(command.env("PATH", &broken).output().unwrap()));
    assert!(denial(&found, "/namespaces/subordinate_ids").contains("the map is not complete"));
}

#[test]
fn the_table_for_people_says_the_same() {
    require!(userns);
    let place = Place::new();
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"];
    let less = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let command = support::under(&[&prefix[..], &less].concat(), &place.sekexe(["detect"])).output().unwrap();
    let ran = Ran::from(command).ended_with(0);
    let section = ran.stdout.split("\n\n").find(|part| part.starts_with("Namespaces")).unwrap();
    let section = section.lines().filter(|line| !line.contains("subordinate")).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(section.split_once("newuidmap").map_or(&*section, |(before, _)| before), @r#"
Namespaces
  user namespace          no   user.max_user_namespaces is 0 (ENOSPC)
                               try: sudo sysctl -w user.max_user_namespaces=15000
  mount namespace         no   it takes a user namespace, or root with CAP_SYS_ADMIN
                               try: sudo sysctl -w user.max_user_namespaces=15000
  pid namespace           no   it takes a user namespace, or root with CAP_SYS_ADMIN
                               try: sudo sysctl -w user.max_user_namespaces=15000
  network namespace       no   it takes a user namespace, or root with CAP_SYS_ADMIN
                               try: sudo sysctl -w user.max_user_namespaces=15000
  ipc namespace           no   it takes a user namespace, or root with CAP_SYS_ADMIN
                               try: sudo sysctl -w user.max_user_namespaces=15000
  uts namespace           no   it takes a user namespace, or root with CAP_SYS_ADMIN
                               try: sudo sysctl -w user.max_user_namespaces=15000
  cgroup namespace        no   it takes a user namespace, or root with CAP_SYS_ADMIN
                               try: sudo sysctl -w user.max_user_namespaces=15000
  time namespace          no   it takes a user namespace, or root with CAP_SYS_ADMIN
                               try: sudo sysctl -w user.max_user_namespaces=15000
  overlayfs inside        no   it takes a user namespace, or root with CAP_SYS_ADMIN
                               try: sudo sysctl -w user.max_user_namespaces=15000
  new /proc inside        no   it takes a user namespace, or root with CAP_SYS_ADMIN
                               try: sudo sysctl -w user.max_user_namespaces=15000
  another user namespace  no   it takes a user namespace, or root with CAP_SYS_ADMIN
                               try: sudo sysctl -w user.max_user_namespaces=15000
                               try: apt-get install uidmap
"#);
}

#[test]
fn a_kernel_that_does_not_boot_says_why_and_one_that_does_says_its_release() {
    require!(uml);
    let place = Place::new();
    let broken = place.write("broken", "#!/bin/sh\nexit 1\n");
    cache_with(&place, &[("1.0", &support::kernel("7.3").unwrap()), ("2.0", &broken)]);
    let mut command = place.sekexe(["detect", "--boot", "--format", "json"]);
    let found = found(Ran::from(command.env("XDG_CACHE_HOME", place.path("cache")).output().unwrap()));
    let kernels = found["kernels"].as_array().unwrap();
    let boot = |label: &str| &kernels.iter().find(|kernel| kernel["label"] == label).unwrap()["boot"];
    assert_eq!(boot("1.0")["works"]["supported"], true, "{found}");
    assert!(boot("1.0")["release"].as_str().unwrap() != "as-built", "{found}");
    assert!(boot("1.0")["boot_ms"].as_f64().unwrap() > 0.0, "{found}");
    assert_eq!(boot("2.0")["works"]["supported"], false, "{found}");
    assert!(boot("2.0")["works"]["reason"].as_str().unwrap().contains("kernel"), "{found}");
}

#[test]
fn containers_of_docker_are_known_with_their_limits_and_their_profile() {
    require!(docker, static_program);
    docker::with_daemon(|daemon| {
        let image = place_with_program(daemon);
        daemon.import(&image, "detect");
        let detect = |options: &[&str]| {
            let run = ["run", "--rm", "--network", "none"];
            found(
                daemon
                    .run(&[&run, options, &["detect", "/sekexe-ci", "detect", "--format", "json"]].concat()),
            )
        };
        for user in ["1000:1000", "0:0"] {
            let found = detect(&["--user", user]);
            assert_eq!(found["container"]["kind"], "docker", "{found}");
            assert_eq!(found["namespaces"]["privilege"], "none", "{found}");
            let why = denial(&found, "/namespaces/user");
            assert!(why.contains("Docker's default") && why.contains("seccomp=unconfined"), "{why}");
            let why = denial(&found, "/kvm");
            assert!(why.contains("docker run --device /dev/kvm"), "{why}");
        }
        let found = detect(&["--user", "1000:1000", "--security-opt", "seccomp=unconfined"]);
        assert_eq!(found["namespaces"]["privilege"], "user-namespace", "{found}");
        let why = denial(&found, "/namespaces/proc");
        assert!(why.contains("systempaths=unconfined"), "{why}");
        let open = ["--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined"];
        let found = detect(&open);
        assert_eq!(found["namespaces"]["proc"]["supported"], true, "{found}");
        let found = detect(&["--memory", "256m", "--cpus", "0.5", "--pids-limit", "99"]);
        let limits = &found["control_groups"]["limits"];
        assert_eq!((&limits["memory_bytes"], &limits["cpus"]), (&json!(256 << 20), &json!(0.5)), "{found}");
        assert_eq!(limits["processes"], 99, "{found}");
        assert_eq!(found["limits"]["memory_bytes"], 256 << 20, "{found}");
    });
}

/// An image's files with nothing but our program.
fn place_with_program(daemon: &docker::Daemon) -> std::path::PathBuf {
    let image = daemon.place.path("detect");
    std::fs::create_dir_all(image.join("tmp")).unwrap();
    std::fs::copy(support::program(), image.join("sekexe-ci")).unwrap();
    image
}
