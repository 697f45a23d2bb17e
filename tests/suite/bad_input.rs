//! What bad input and bad surroundings get: a message that says what failed, why and what to try,
//! and never a success, a hang or something left behind.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Place, Ran, on_every_machine, on_every_machine_in, require, under, with_input};

/// Runs `exec` and fails unless it ends with 125 and says all of this.
#[track_caller]
fn refused(ran: Ran, words: &[&str]) {
    let ran = words.iter().fold(ran.ended_with(125), |ran, word| ran.says(word));
    assert!(ran.stdout.is_empty(), "{}", ran.stdout);
}

/// `exec` with a kernel of the test's choice, whatever the suite runs on.
fn exec_on(place: &Place, kernel: impl AsRef<std::ffi::OsStr>, more: &[&str]) -> Ran {
    let mut command = Command::new(crate::support::program());
    command.args(["exec", "--kernel"]).arg(kernel).args(more).env_clear().env("PATH", "/usr/bin:/bin");
    command.env("HOME", place.path("home")).env("TMPDIR", place.path("tmp"));
    command.current_dir(place.path("work")).output().unwrap().into()
}

/// A program that answers as a kernel would, until it is to boot.
fn pretended_kernel(place: &Place, boot: &str) -> std::path::PathBuf {
    let answers = "case $1 in --version) echo 7.3.4; exit;; --help) echo User Mode Linux; exit;; \
                   --showconfig) echo CONFIG_OVERLAY_FS=y; exit;; esac";
    let path = place.write("kernel", format!("#!/bin/sh\n{answers}\n{boot}\n"));
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[test]
fn nothing_to_run_is_refused() {
    on_every_machine(|place| {
        refused(place.exec_with::<&str>([]), &["nothing to run", "exec --script FILE"]);
        for empty in ["", " \n\t\n"] {
            refused(place.exec_with([empty]), &["the script is empty", "exec true"]);
            let file = place.write("empty", empty);
            refused(place.exec_with(["--script".as_ref(), file.as_os_str()]), &["the script is empty"]);
            refused(with_input(&mut place.sekexe(["exec", "-"]), empty.as_bytes()), &["the script is empty"]);
        }
        refused(place.exec_with(["--script", "missing.sh"]), &["missing.sh", "No such file"]);
        refused(place.exec_with(["--no-such-option", "true"]), &["--no-such-option"]);
        refused(place.exec_with(["true", "--", "true"]), &["cannot be used with"]);
    });
}

#[test]
fn a_megabyte_of_any_bytes_is_a_script() {
    on_every_machine(|place| {
        let mut script = b"'\"`$(id)\n\r\0\xff\xfe\\".repeat(80_000);
        script.extend(b"end");
        let file = place.write("script", &script);
        let ran =
            place.exec_with(["--shell".as_ref(), "cat {0}".as_ref(), "--script".as_ref(), file.as_os_str()]);
        assert!(ran.ended_with(0).stdout_bytes == script);
        let ran = with_input(&mut place.sekexe(["exec", "--shell", "cat {0}", "-"]), &script);
        assert!(ran.ended_with(0).stdout_bytes == script);
    });
}

#[test]
fn names_with_spaces_and_newlines_are_names() {
    on_every_machine(|place| {
        let odd = "work/a b\nc,d:e=f\\040'\"";
        fs::create_dir(place.path(odd)).unwrap();
        let path = place.path(odd);
        let mut command = place.sekexe(["exec", "--env", "ODD=x y\nz", "--rw"]);
        command.arg(&path).arg("--workdir").arg(&path).arg("printf '%s' \"$ODD\" > file; cat file");
        let ran = Ran::from(command.output().unwrap()).ended_with(0);
        assert_eq!(ran.stdout, "x y\nz");
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "x y\nz");
    });
}

#[test]
fn what_is_no_kernel_is_told_from_what_cannot_be_run() {
    let place = Place::new();
    let plain = place.write("plain", "#!/bin/sh\n");
    refused(exec_on(&place, place.path("missing"), &["true"]), &["no kernel at", "missing", "--kernel auto"]);
    refused(exec_on(&place, "no-such-kernel", &["true"]), &["no-such-kernel", "--kernel auto"]);
    refused(exec_on(&place, &plain, &["true"]), &["not executable", "chmod +x"]);
    refused(exec_on(&place, place.path("work"), &["true"]), &["is not a file"]);
    refused(exec_on(&place, "/bin/true", &["true"]), &["not a User Mode Linux kernel", "--kernel auto"]);
    place.assert_nothing_left();
}

#[test]
fn a_kernel_that_is_cut_off_is_recognised() {
    require!(uml);
    let place = Place::new();
    let kernel = crate::support::kernel("7.3").unwrap();
    let whole = fs::read(kernel).unwrap();
    for part in [40, 4096, whole.len() / 2] {
        let path = place.write("cut-off", &whole[..part]);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        refused(exec_on(&place, &path, &["true"]), &["truncated", "again"]);
    }
}

#[test]
fn a_kernel_that_hangs_at_boot_is_given_up_and_quoted() {
    let place = Place::new();
    let kernel = pretended_kernel(&place, "echo probing the flux; exec sleep 1000");
    let ran = exec_on(&place, kernel, &["--boot-timeout", "1s", "true"]);
    refused(ran, &["did not come up in time", "--boot-timeout", "last words", "probing the flux"]);
    place.assert_nothing_left();
}

#[test]
fn a_kernel_that_ends_at_boot_is_quoted_with_its_status() {
    let place = Place::new();
    let kernel = pretended_kernel(&place, "echo no flux; exit 3");
    refused(exec_on(&place, kernel, &["true"]), &["machine died", "exit status: 3", "no flux"]);
    place.assert_nothing_left();
}

#[test]
fn sizes_that_cannot_be_had_are_refused() {
    on_every_machine(|place| {
        if place.kind() == "uml" {
            let words = ["--memory 1K", "at least 64M", "try --memory 1G"];
            refused(place.exec_with(["--memory", "1k", "true"]), &words);
            refused(place.exec_with(["--memory", "99T", "true"]), &["this host has", "try --memory"]);
        }
        refused(place.exec_with(["--memory", "much", "true"]), &["--memory", "2G"]);
        refused(place.exec_with(["--cpus", "0", "true"]), &["--cpus 0", "at least one"]);
        refused(place.exec_with(["--cpus", "5000", "true"]), &["--cpus 5000", "try --cpus"]);
        refused(place.exec_with(["--timeout", "0", "true"]), &["--timeout", "more than nothing"]);
        place.assert_nothing_left();
    });
}

#[test]
fn paths_that_cannot_be_given_are_refused() {
    on_every_machine(|place| {
        refused(
            place.exec_with(["--rw", "missing", "true"]),
            &["--rw missing", "does not exist", "create it"],
        );
        refused(place.exec_with(["--rw", "/", "true"]), &["--rw /", "every file", "name the directories"]);
        refused(place.exec_with(["--rw", "/proc", "true"]), &["--rw /proc", "the guest has its own"]);
        refused(place.exec_with(["--hide", "missing", "true"]), &["--hide missing", "does not exist"]);
        refused(place.exec_with(["--rootfs", "missing", "true"]), &["--rootfs missing", "exists"]);
        refused(place.exec_with(["--env-file", "missing", "true"]), &["--env-file missing"]);
        refused(place.exec_with(["--env", "=x", "true"]), &["--env =x", "NAME=VALUE"]);
        symlink("nowhere", place.path("work/dangling")).unwrap();
        refused(place.exec_with(["--rw", "dangling", "true"]), &["--rw dangling", "does not exist"]);
    });
}

#[test]
fn a_file_a_link_and_nested_directories_can_be_given() {
    on_every_machine_in(Path::new("/var/tmp"), |place| {
        place.write("file", "old");
        fs::create_dir_all(place.path("real/deep/er")).unwrap();
        symlink("real", place.path("link")).unwrap();
        let mut command = place.sekexe(["exec"]);
        for name in ["file", "link", "real/deep", "real/deep/er"] {
            command.arg("--rw").arg(place.path(name));
        }
        let script = format!(
            "cd {0}; echo new > file; echo a > link/a; echo b > real/deep/b; echo c > real/deep/er/c; echo no > other",
            place.path("").display()
        );
        Ran::from(command.arg(script).output().unwrap()).ended_with(0);
        let read = |name: &str| fs::read_to_string(place.path(name)).unwrap();
        let contents = ["file", "real/a", "real/deep/b", "real/deep/er/c"].map(read);
        assert_eq!(contents, ["new\n", "a\n", "b\n", "c\n"]);
        assert!(!place.path("other").exists());
    });
}

#[test]
fn a_working_directory_that_is_not_there_is_named() {
    on_every_machine(|place| {
        refused(
            place.exec_with(["--workdir", "/no/such", "true"]),
            &["never started", "/no/such", "--workdir"],
        );
        refused(place.exec_with(["--workdir", "/etc/passwd", "true"]), &["/etc/passwd", "Not a directory"]);
    });
}

#[test]
fn a_shell_without_a_place_for_the_script_is_refused() {
    on_every_machine(|place| {
        for shell in ["zsh", "perl -w", "{0}", ""] {
            refused(place.exec_with(["--shell", shell, "true"]), &["--shell", "{0}", "try"]);
        }
    });
}

#[test]
fn an_output_that_cannot_be_written_is_our_failure() {
    on_every_machine(|place| {
        for script in ["echo lost", "yes"] {
            let mut command = place.sekexe(["exec", script]);
            let full = File::options().write(true).open("/dev/full").unwrap();
            let ran = Ran::from(command.stdout(full).output().unwrap());
            refused(ran, &["cannot write the command's output", "No space left"]);
        }
        place.assert_nothing_left();
    });
}

#[test]
fn a_result_or_a_log_that_cannot_be_written_is_told() {
    on_every_machine(|place| {
        refused(place.exec_with(["--result", "/dev/full", "true"]), &["/dev/full", "No space left"]);
        let late = "touch ran; false";
        refused(place.exec_with(["--result", "no/where", late]), &["no/where", "No such file"]);
        if place.kind() == "uml" {
            refused(place.exec_with(["--kernel-log", "no/where", late]), &["--kernel-log no/where"]);
            let ran = place.exec_with(["--kernel-log", "/dev/full", "exit 3"]).ended_with(3);
            ran.says("--kernel-log").says("No space left");
        }
        assert!(!place.path("work/ran").exists(), "the command ran although its result would be lost");
    });
}

#[test]
fn a_full_or_read_only_temporary_directory_is_named() {
    require!(uml, userns);
    let place = Place::new();
    let at = place.path("tmp");
    for (options, words) in [
        ("size=64k", ["free", "TMPDIR"]),
        ("size=8m", ["free", "TMPDIR"]),
        ("size=1g,noexec", ["noexec", "TMPDIR"]),
        ("ro", ["Read-only file system", "TMPDIR"]),
    ] {
        let mount = format!("mount -t tmpfs -o {options} none {} && exec \"$@\"", at.display());
        let mut command = under(
            &["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"],
            &place.sekexe(["exec", "true"]),
        );
        refused(command.output().unwrap().into(), &words);
    }
}

#[test]
fn shared_memory_may_be_tiny_or_without_execution() {
    require!(userns);
    on_every_machine(|place| {
        for options in ["size=64k", "noexec"] {
            let mount = format!("mount -t tmpfs -o {options} none /dev/shm && exec \"$@\"");
            let mut command = under(
                &["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"],
                &place.sekexe(["exec", "echo fine"]),
            );
            assert_eq!(Ran::from(command.output().unwrap()).ended_with(0).stdout, "fine\n");
        }
    });
}

#[test]
fn no_home_directory_is_needed() {
    require!(uml);
    let place = Place::new();
    let kernel = crate::support::kernel("7.3").unwrap();
    let run = |home: Option<&str>| {
        let mut command = Command::new(crate::support::program());
        command.args(["exec", "--kernel"]).arg(&kernel).arg("echo \"$HOME\"").env_clear();
        command.env("PATH", "/usr/bin:/bin").env("TMPDIR", place.path("tmp"));
        command.envs(home.map(|home| ("HOME", home))).current_dir(place.path("work"));
        Ran::from(command.output().unwrap()).ended_with(0).stdout
    };
    assert_eq!([run(None), run(Some("/proc")), run(Some("/no/such"))], ["/root\n"; 3]);
}

#[test]
fn a_full_throw_away_layer_is_an_error_of_the_writer() {
    require!(uml, memory_directory);
    // Without a disk there is no swap, and what can be written is half of a small memory.
    let place = Place::in_memory();
    let fill = "for at in / /tmp /run /dev/shm; do dd if=/dev/zero of=$at/big bs=1M && exit 9; done; \
                rm /big /tmp/big /run/big /dev/shm/big; echo alive > /alive; cat /alive";
    let ran = place.exec_with(["--memory", "128M", "--shell", "sh {0}", fill]).ended_with(0);
    assert_eq!(ran.stdout, "alive\n");
    assert_eq!(ran.stderr.matches("No space left on device").count(), 4, "{}", ran.stderr);
}

#[test]
fn an_endless_writer_ends_in_time_or_in_space() {
    require!(uml, memory_directory);
    let place = Place::in_memory();
    place.exec_with(["--memory", "128M", "yes > /file"]).ended_with(1).says("No space left on device");
    let ran = place.exec_with(["--timeout", "1s", "yes"]).ended_with(124).says("--timeout");
    assert!(ran.stdout.starts_with("y\ny\n"));
    place.assert_nothing_left();
}

#[test]
fn few_open_files_are_enough() {
    require!(uml);
    let place = Place::new();
    let run = |files: u32, script: &str| {
        let limit = format!("ulimit -n {files} && exec \"$@\"");
        Ran::from(under(&["bash", "-c", &limit, "bash"], &place.sekexe(["exec", script])).output().unwrap())
    };
    // More files than descriptors, and more programs.
    let script = "find /usr/bin -type f | head -n 1500 | xargs cat 2>&1 > /dev/null | head -n 3; true | true | true | true";
    assert_eq!(run(256, script).ended_with(0).stdout, "");
    refused(run(32, "true"), &["32 open files", "ulimit -n"]);
}

#[test]
fn few_processes_are_enough_or_refused() {
    require!(uml);
    let place = Place::new();
    let run = |processes: u32| {
        let limit = format!("ulimit -u {processes} && exec \"$@\"");
        let step = place.sekexe(["exec", "true | true; echo fine"]);
        Ran::from(under(&["bash", "-c", &limit, "bash"], &step).output().unwrap())
    };
    assert_eq!(run(1000).ended_with(0).stdout, "fine\n");
    refused(run(40), &["40 processes", "ulimit -u"]);
}

#[test]
fn a_guest_kernels_panic_is_our_failure_and_is_quoted() {
    require!(uml);
    let place = Place::new();
    let begun = Instant::now();
    let mut command =
        place.sekexe(["exec", "echo before; read go; echo c > /proc/sysrq-trigger; sleep 1000"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut before = [0; 7];
    child.stdout.as_mut().unwrap().read_exact(&mut before).unwrap();
    assert_eq!(&before, b"before\n");
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap()).ended_with(125);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    ran.says("machine died").says("kernel panic: sysrq triggered crash").says("last words");
    place.assert_nothing_left();
}

#[test]
fn out_of_memory_is_told_from_a_kill() {
    require!(uml, memory_directory);
    let place = Place::in_memory();
    let hog = "tail /dev/zero";
    let run = |arguments: &[&str]| place.exec_with([&["--memory", "128M"], arguments].concat());
    run(&[hog]).ended_with(137).says("ran out of memory").says("--memory");
    run(&["--", "tail", "/dev/zero"]).ended_with(137).says("ran out of memory");
    let result = place.path("result.json");
    run(&["--result", result.to_str().unwrap(), hog]).ended_with(137);
    let value: serde_json::Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
    assert_eq!(value["outcome"]["kind"], "out-of-memory");
    // A command that survives the kill of its child decides for itself.
    run(&[&format!("{hog} || echo survived")]).ended_with(0);
    place.assert_nothing_left();
}

#[test]
fn a_fork_bomb_meets_the_limit_of_tasks() {
    require!(uml);
    let place = Place::new();
    let begun = Instant::now();
    let bomb = "bomb() { bomb | bomb & }; bomb 2> /dev/null; sleep 1000";
    let mut command = under(
        &["bash", "-c", "ulimit -n 1000 && exec \"$@\"", "bash"],
        &place.sekexe(["exec", "--timeout", "3s", "--shell", "bash {0} 2> /dev/null", bomb]),
    );
    let ran = Ran::from(command.output().unwrap()).ended_with(124);
    ran.says("did not end in time").says("could not be created because of the machine's limit");
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    place.assert_nothing_left();
}

#[test]
fn a_fork_bomb_in_little_memory_does_not_outlive_its_time() {
    require!(uml, memory_directory);
    let place = Place::in_memory();
    let begun = Instant::now();
    let bomb = "bomb() { bomb | bomb & }; bomb; sleep 1000";
    let ran = place.exec_with(["--memory", "128M", "--timeout", "3s", "--shell", "bash {0}", bomb]);
    assert!([124, 137].contains(&ran.status), "{} {}", ran.status, ran.stderr);
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    place.assert_nothing_left();
}
