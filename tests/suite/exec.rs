//! `exec` as its users see it: statuses, streams, environment, files.

use std::io::{Read, Write};
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Place, Ran, have, on_every_machine, require, with_input};

#[test]
fn the_script_is_root_in_another_kernel_and_its_status_passes_through() {
    require!(uml);
    let ran = Place::new().exec("id -u; uname -r; env; exit 42").ended_with(42);
    let mut lines = ran.stdout.lines();
    assert_eq!(lines.next(), Some("0"));
    let host = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    assert_ne!(lines.next(), Some(host.as_str()));
    assert!(ran.stderr.ends_with("the command exited with status 42\n"), "{}", ran.stderr);
}

#[test]
fn every_exit_status_is_the_commands() {
    on_every_machine(|place| {
        for status in [0, 1, 2, 124, 125, 126, 127, 128, 255] {
            place.exec(&format!("exit {status}")).ended_with(status);
        }
        place.assert_nothing_left();
    });
}

#[test]
fn a_killed_script_exits_with_128_plus_signal() {
    on_every_machine(|place| {
        place.exec("kill -9 $$").ended_with(137).says("SIGKILL");
        place.exec("kill -15 $$").ended_with(143).says("SIGTERM");
        place.exec("kill -11 $$").ended_with(139).says("SIGSEGV");
    });
}

#[test]
fn a_program_that_is_not_there_or_cannot_be_run_is_told_apart() {
    on_every_machine(|place| {
        place.exec_with(["--", "no-such-program"]).ended_with(127).says("not found");
        place.exec_with(["--", "/etc/passwd"]).ended_with(126).says("cannot be run");
    });
}

#[test]
fn standard_output_and_error_stay_apart_and_binary_clean() {
    on_every_machine(|place| {
        let script = "head -c 200000 /dev/zero; printf '\\377\\000\\r\\n'; echo err >&2";
        let ran = place.exec(script).ended_with(0);
        let mut expected = vec![0; 200_000];
        expected.extend(b"\xff\0\r\n");
        assert!(ran.stdout_bytes == expected, "{} bytes", ran.stdout_bytes.len());
        assert_eq!(ran.stderr, "err\n");
    });
}

#[test]
fn standard_input_passes_unharmed_and_ends() {
    on_every_machine(|place| {
        let mut input: Vec<u8> =
            (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        input.extend(b"\x04\x00\xff");
        let ran = with_input(&mut place.sekexe(["exec", "cat"]), &input).ended_with(0);
        assert!(ran.stdout_bytes == input, "{} of {} bytes", ran.stdout_bytes.len(), input.len());
    });
}

#[test]
fn a_gigabyte_on_standard_input_arrives_whole() {
    require!(uml);
    let place = Place::new();
    let mut command = place.sekexe(["exec", "sha256sum"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n * 31 + (n >> 8)) as u8).collect();
    let mut expected = sha2::Sha256::default();
    for _ in 0..1024 {
        sha2::Digest::update(&mut expected, &block);
        stdin.write_all(&block).unwrap();
    }
    drop(stdin);
    let ran = Ran::from(child.wait_with_output().unwrap()).ended_with(0);
    let expected: String = sha2::Digest::finalize(expected).iter().map(|b| format!("{b:02x}")).collect();
    assert!(ran.stdout.starts_with(&expected), "{}", ran.stdout);
}

#[test]
fn a_closed_standard_output_ends_the_writer() {
    on_every_machine(|place| {
        let mut command = place.sekexe(["exec", "--", "yes"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 2];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut first).unwrap();
        drop(stdout);
        assert_eq!(&first, b"y\n");
        Ran::from(child.wait_with_output().unwrap()).ended_with(141).says("SIGPIPE");
    });
}

#[test]
fn a_background_process_does_not_hold_the_step_up() {
    on_every_machine(|place| {
        let begun = std::time::Instant::now();
        let ran = place.exec("sleep 1000 & echo done").ended_with(0);
        assert_eq!(ran.stdout, "done\n");
        assert!(begun.elapsed().as_secs() < 100);
    });
}

#[test]
fn the_environment_is_an_allow_list() {
    on_every_machine(|place| {
        place.write("vars", "# a comment\nFROM_FILE=\"x y\"\n");
        let mut command = place.sekexe(["exec", "--env", "GIVEN=a=b", "--env", "NAMED", "--env-file"]);
        command.arg(place.path("vars")).args(["env", "--env", "MISSING"]);
        command
            .env("NAMED", "n")
            .env("AWS_SECRET_ACCESS_KEY", "s")
            .env("GITHUB_TOKEN", "t")
            .env("CI", "true");
        let ran = Ran::from(command.output().unwrap()).ended_with(0);
        let mut names: Vec<&str> =
            ran.stdout.lines().filter_map(|l| l.split_once('=')).map(|(n, _)| n).collect();
        names.sort();
        let expected = [
            "CI",
            "FROM_FILE",
            "GIVEN",
            "HOME",
            "LOGNAME",
            "NAMED",
            "PATH",
            "PWD",
            "SHELL",
            "SHLVL",
            "USER",
            "_",
        ];
        assert_eq!(names, expected);
        assert!(ran.stdout.contains("GIVEN=a=b\n") && ran.stdout.contains("FROM_FILE=x y\n"));
    });
}

#[test]
fn roots_programs_are_found_although_the_callers_path_lacks_them() {
    on_every_machine(|place| {
        let mut command = place.sekexe(["exec", "command -v ldconfig"]);
        let ran = Ran::from(command.env("PATH", "/usr/bin:/bin").output().unwrap()).ended_with(0);
        assert!(ran.stdout.contains("sbin/ldconfig\n"), "{}", ran.stdout);
    });
}

#[test]
fn arguments_and_scripts_travel_untouched() {
    on_every_machine(|place| {
        let arguments = ["--", "printf", "%s|", "a b", "new\nline", "$(id)", "'\"", "", "ü"];
        let ran = place.exec_with(arguments).ended_with(0);
        assert_eq!(ran.stdout, "a b|new\nline|$(id)|'\"||ü|");

        let file = place.write(
            "script.py",
            b"# coding: latin-1\nimport sys\nsys.stdout.buffer.write('\xff'.encode('latin-1'))\n",
        );
        let ran = place.exec_with([
            "--shell".as_ref(),
            "python3 -B {0}".as_ref(),
            "--script".as_ref(),
            file.as_os_str(),
        ]);
        assert!(ran.ended_with(0).stdout_bytes.contains(&0xff));
    });
}

#[test]
fn a_script_of_a_megabyte_runs() {
    on_every_machine(|place| {
        let mut script = "# ".to_owned() + &"x".repeat(1 << 20);
        script.push_str("\necho \"it's $((6 * 7))\"\n");
        let ran = with_input(&mut place.sekexe(["exec", "-"]), script.as_bytes()).ended_with(0);
        assert_eq!(ran.stdout, "it's 42\n");
    });
}

#[test]
fn shells_have_githubs_flags() {
    on_every_machine(|place| {
        place.exec("false; echo unreachable").ended_with(1);
        place.exec("false | true").ended_with(0);
        place.exec_with(["--shell", "bash", "false | true; echo unreachable"]).ended_with(1);
        place.exec_with(["--shell", "sh", "false | true"]).ended_with(0);
        let ran = place.exec_with(["--shell", "python", "print(6 * 7)"]).ended_with(0);
        assert_eq!(ran.stdout, "42\n");
    });
}

#[test]
fn only_the_current_directory_can_be_changed() {
    on_every_machine(|place| {
        let script = "echo new > file; mkdir -p deep/er; echo x > /etc/created; echo y > \"$HOME/created\"; cat /etc/created";
        let ran = place.exec(script).ended_with(0);
        assert_eq!(ran.stdout, "x\n");
        assert_eq!(std::fs::read_to_string(place.path("work/file")).unwrap(), "new\n");
        assert!(place.path("work/deep/er").is_dir());
        assert!(!std::path::Path::new("/etc/created").exists());
    });
}

#[test]
fn with_ro_even_the_current_directory_is_left_alone() {
    on_every_machine(|place| {
        place.write("work/file", "before");
        let ran = place.exec_with(["--ro", "cat file; echo after > file; cat file"]).ended_with(0);
        assert_eq!(ran.stdout, "beforeafter\n");
        assert_eq!(std::fs::read_to_string(place.path("work/file")).unwrap(), "before");
    });
}

#[test]
fn the_result_file_tells_everything() {
    on_every_machine(|place| {
        let result = place.path("result.json");
        place.exec_with(["--result".as_ref(), result.as_os_str(), "exit 7".as_ref()]).ended_with(7);
        let value: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
        assert_eq!(value["outcome"], serde_json::json!({ "kind": "exited", "code": 7 }));
        assert_eq!(value["exit_status"], 7);
        assert_eq!(value["machine"]["kind"], place.kind());
        assert_eq!(value["confinement"]["no_new_privs"], true);
        assert!(value["times"]["command_ms"].as_f64().unwrap() > 0.0);
        assert!(value["peak_memory"]["machine_bytes"].as_u64().unwrap() > 1 << 20);
    });
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    on_every_machine(|place| {
        place.exec_with(["--timeout", "1s", "sleep 1000"]).ended_with(124).says("did not end in time");
        place.assert_nothing_left();
    });
}

#[test]
fn the_user_can_be_chosen() {
    on_every_machine(|place| {
        // What others get is a row of the parity table.
        let has_users = place.kind() == "uml" || have::root().or(have::subordinate_ids()).is_ok();
        if !has_users {
            return;
        }
        assert_eq!(place.exec_with(["--user", "nobody", "id -un"]).ended_with(0).stdout, "nobody\n");
        let ran = place.exec_with(["--user", "1234:4321", "id -u; id -g"]);
        assert_eq!(ran.ended_with(0).stdout, "1234\n4321\n");
        place.exec_with(["--user", "no-such-user", "true"]).ended_with(125).says("no-such-user");
    });
}

#[test]
fn many_descriptors_of_a_large_tree_are_no_trouble() {
    require!(uml);
    let ran =
        Place::new().exec("find /usr -type f -name '*.h' -o -name '*.py' | xargs cat | wc -c").ended_with(0);
    assert!(ran.stdout.trim().parse::<u64>().unwrap() > 0);
}
