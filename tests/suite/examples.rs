//! The examples that users copy: each is understood, and those whose scripts can run here do.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::docker::{cached_kernel, files, with_daemon};
use crate::support::{Place, Ran, program, require};

/// What Travis logs of a test that fails, without the times.
const TRAVIS: &str = "travis_fold:start:sekexe_ci\r\x1b[0Ktravis_time:start:sekexe_ci\r\x1b[0Ktests\n\
    tested as 0\n\
    travis_time:end:sekexe_ci:start=T,finish=T,duration=T\r\x1b[0Ktravis_fold:end:sekexe_ci\r\x1b[0K\n\
    sekexe-ci: the command exited with status 7\n";
/// The same of GitLab.
const GITLAB: &str = "\x1b[0Ksection_start:T:sekexe_ci\r\x1b[0Ktests\n\
    tested as 0\n\
    \x1b[0Ksection_end:T:sekexe_ci\r\x1b[0K\n\
    sekexe-ci: the command exited with status 7\n";

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ci-examples")
}

pub fn yaml(name: &str) -> Value {
    let text = fs::read_to_string(examples().join(name)).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A job of that CI in a repository with a `ci/test.sh`, run as it runs a script.
pub fn run(variables: &[(&str, &str)], script: &str) -> (Place, Ran) {
    let place = Place::new();
    write_test(&place.path("work"));
    symlink(program(), place.path("home/sekexe-ci")).unwrap();
    let ours = place.sekexe(["exec"]);
    let path = format!("{}:{}", place.path("home").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-e", "-o", "pipefail", "-c", &format!("exec 2>&1\n{script}")]);
    command.current_dir(place.path("work")).env_clear();
    command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ran = command.env("PATH", path).env("CI", "true").envs(variables.iter().copied()).output();
    (place, ran.expect("bash starts").into())
}

/// The test of a repository, which fails.
fn write_test(repository: &Path) {
    let test = repository.join("ci/test.sh");
    fs::create_dir_all(test.parent().unwrap()).unwrap();
    fs::write(&test, "#!/bin/sh\necho \"tested as $(id -u)\"\nexit 7\n").unwrap();
    fs::set_permissions(test, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Without what differs from run to run: times, of which the shortest are some milliseconds in
/// nanoseconds.
fn timeless(log: &str) -> String {
    let mut text = String::new();
    for part in log.split_inclusive(|c: char| !c.is_ascii_digit()) {
        let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
        text.push_str(if digits.len() >= 5 { "T" } else { digits });
        text.push_str(&part[digits.len()..]);
    }
    text
}

#[test]
fn every_example_is_named_and_can_be_read() {
    require!(checkout);
    let readme = fs::read_to_string(examples().join("README.md")).unwrap();
    let mut seen = 0;
    for directory in fs::read_dir(examples()).unwrap().map(|entry| entry.unwrap().path()) {
        for file in fs::read_dir(&directory).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            let name = file.strip_prefix(examples()).unwrap().to_str().unwrap().to_owned();
            assert!(readme.contains(&format!("({name})")), "{name} is not named");
            if name.ends_with(".yml") {
                assert!(yaml(&name).is_object(), "{name}");
            }
            assert!(fs::read_to_string(&file).unwrap().contains("ci/test.sh"), "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, readme.matches("](").count());
}

#[test]
fn on_travis_a_command_and_a_whole_script_run_in_a_machine() {
    require!(uml, checkout);
    let travis = [("TRAVIS", "true"), ("TRAVIS_BUILD_DIR", "/nowhere")];
    let (_, ran) = run(&travis, yaml("travis/exec.yml")["script"].as_str().unwrap());
    assert_eq!(timeless(&ran.ended_with(7).stdout), TRAVIS);
    let (place, ran) = run(&travis, yaml("travis/wrapper.yml")["script"].as_str().unwrap());
    assert_eq!(timeless(&ran.ended_with(7).stdout), TRAVIS);
    place.assert_nothing_left();
}

#[test]
fn on_gitlab_the_log_is_folded_and_reports_are_left() {
    require!(uml, checkout);
    let gitlab = [("GITLAB_CI", "true")];
    let (place, ran) = run(&gitlab, yaml("gitlab/shared.yml")["test"]["script"][0].as_str().unwrap());
    assert_eq!(timeless(&ran.ended_with(7).stdout), GITLAB);
    assert_eq!(fs::read_to_string(place.path("work/quality.json")).unwrap(), "[]\n");
    let junit = fs::read_to_string(place.path("work/junit.xml")).unwrap();
    assert!(junit.contains("failures=\"1\""), "{junit}");
    let (_, ran) = run(&gitlab, yaml("gitlab/kubernetes.yml")["test"]["script"][0].as_str().unwrap());
    assert_eq!(ran.ended_with(7).stdout, "tested as 0\nsekexe-ci: the command exited with status 7\n");
}

#[test]
fn in_a_plain_container_a_job_logs_the_same() {
    require!(uml, docker, static_program, busybox, checkout);
    let Some(mut more) = cached_kernel() else { return };
    with_daemon(|daemon| {
        let applets =
            ["sh", "id", "cat", "echo"].map(|name| (format!("bin/{name}"), "/bin/busybox".to_owned()));
        more.extend(applets);
        more.push(("bin/sekexe-ci".into(), program().to_str().unwrap().to_owned()));
        more.push(("etc/passwd".into(), "/etc/passwd".into()));
        let more: Vec<_> = more.iter().map(|(to, from)| (to.as_str(), from.as_str())).collect();
        let image = files(&daemon.place, "job", &more);
        for directory in ["tmp", "proc", "sys", "dev", "run", "work/ci"] {
            fs::create_dir_all(image.join(directory)).unwrap();
        }
        for directory in ["tmp", "work"] {
            fs::set_permissions(image.join(directory), PermissionsExt::from_mode(0o1777)).unwrap();
        }
        write_test(&image.join("work"));
        daemon.import(&image, "job");
        for user in ["1000:1000", "0:0"] {
            for (variable, script, log) in [
                ("TRAVIS=true", yaml("travis/exec.yml")["script"].clone(), TRAVIS),
                ("GITLAB_CI=true", yaml("gitlab/shared.yml")["test"]["script"][0].clone(), GITLAB),
            ] {
                let script = format!("exec 2>&1\n{}", script.as_str().unwrap());
                let environment = ["--env", "HOME=/home", "--env", "CI=true", "--env", variable];
                let container = ["run", "--rm", "--network", "none", "--user", user, "--workdir", "/work"];
                let command = ["job", "/bin/sh", "-e", "-c", &script];
                let ran = daemon.run(&[&container[..], &environment, &command].concat()).ended_with(7);
                let (fallen_back, rest) = ran.stdout.split_once('\n').unwrap();
                assert!(fallen_back.starts_with("sekexe-ci: warning: no namespaces here"), "{fallen_back}");
                assert_eq!(timeless(rest), log);
            }
        }
    });
}

#[test]
fn the_other_examples_run_their_test() {
    require!(uml, checkout);
    let slurm = fs::read_to_string(examples().join("slurm/job.sh")).unwrap();
    let command = |value: &Value| value.as_str().unwrap().to_owned();
    let kubernetes = &yaml("kubernetes/job.yml")["spec"]["template"]["spec"]["containers"][0]["command"];
    let words: Vec<&str> = kubernetes.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    for (variables, script) in [
        (&[("BUILDKITE", "true")][..], command(&yaml("buildkite/pipeline.yml")["steps"][0]["command"])),
        (
            &[("CIRCLECI", "true")],
            format!(
                "mkdir results\n{}",
                command(&yaml("circleci/config.yml")["jobs"]["test"]["steps"][1]["run"])
            ),
        ),
        (&[("TF_BUILD", "True")], command(&yaml("azure/azure-pipelines.yml")["steps"][0]["script"])),
        (&[("CI", "woodpecker")], command(&yaml("woodpecker/woodpecker.yml")["steps"][0]["commands"][0])),
        (&[], words.join(" ")),
        (&[("SLURM_JOB_ID", "7")], slurm),
    ] {
        let (_, ran) = run(variables, &script);
        assert!(ran.stdout.contains("tested as 0\n"), "{script}: {}", ran.stdout);
        assert_eq!(ran.status, 7, "{script}: {}", ran.stdout);
    }
}
