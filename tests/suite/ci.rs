//! What a CI is told: each in its own words, and the command's own bytes unchanged.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::{Place, Ran, on_every_machine, require};

/// A repository with one file, in the directory that scripts run in.
fn repository() -> Place {
    let place = Place::new();
    fs::create_dir_all(place.path("work/.git")).unwrap();
    fs::create_dir_all(place.path("work/src")).unwrap();
    place.write("work/src/a.c", "int main(void) {\n\treturn x;\n}\n");
    place
}

const GITHUB: (&str, &str) = ("GITHUB_ACTIONS", "true");
const FINDING: &str = "echo \"src/a.c:2:9: error: 'x' undeclared\"";

fn exec(place: &Place, variables: &[(&str, &str)], arguments: &[&str]) -> Ran {
    ran(place.sekexe(["exec"]).args(arguments).envs(variables.iter().copied()))
}

fn ran(command: &mut Command) -> Ran {
    Ran::from(command.output().expect("our program starts"))
}

#[test]
fn on_github_an_error_that_a_tool_prints_becomes_an_annotation() {
    require!(uml);
    let ran = exec(&repository(), &[GITHUB], &[FINDING]).ended_with(0);
    assert_eq!(ran.stdout, "src/a.c:2:9: error: 'x' undeclared\n");
    insta::assert_snapshot!(ran.stderr, @"::error file=src/a.c,line=2,col=9,title=gcc::'x' undeclared");
}

#[test]
fn outside_of_a_ci_nothing_is_looked_for() {
    require!(uml);
    let place = repository();
    for arguments in [&[FINDING][..], &["--group", "build", FINDING], &["--ci", "none", FINDING]] {
        assert_eq!(exec(&place, &[], arguments).ended_with(0).stderr, "", "{arguments:?}");
    }
    let none = exec(&place, &[GITHUB], &["--matchers", "none", FINDING]).ended_with(0);
    assert_eq!(none.stderr, "");
}

#[test]
fn a_terminal_is_shown_the_line_in_question_if_it_was_asked_for() {
    require!(uml);
    let ran = exec(&repository(), &[], &["--matchers", "gcc", FINDING]).ended_with(0);
    insta::assert_snapshot!(ran.stderr, @r"
    error: 'x' undeclared [gcc]
     --> src/a.c:2:9
    2 | 	return x;
      | 	       ^
    ");
}

#[test]
fn an_annotation_never_continues_a_line_of_the_commands() {
    require!(uml);
    let script = format!("{FINDING}; printf unfinished >&2");
    let ran = exec(&repository(), &[GITHUB], &[&script]).ended_with(0);
    assert!(ran.stderr.starts_with("unfinished\n::error file="), "{}", ran.stderr);
}

#[test]
fn no_more_is_shown_than_github_takes_and_the_rest_is_summed_up() {
    require!(uml);
    let place = repository();
    let summary = place.path("work/summary.md");
    let script = "for n in $(seq 30); do echo src/a.c:$n: warning: w$n; echo src/a.c:$n:1: error: e; done";
    let variables = [GITHUB, ("GITHUB_STEP_SUMMARY", summary.to_str().unwrap())];
    let ran = exec(&place, &variables, &[script]).ended_with(0);
    let count = |what: &str| ran.stderr.lines().filter(|line| line.starts_with(what)).count();
    assert_eq!((count("::error "), count("::warning ")), (10, 10), "{}", ran.stderr);
    assert!(ran.stderr.contains("::21 more errors: src/a.c:10:1, src/a.c:11:1"), "{}", ran.stderr);
    let summary = fs::read_to_string(summary).unwrap();
    assert!(summary.contains("| outcome | the command succeeded |"), "{summary}");
    assert!(summary.contains("30 errors, 30 warnings"), "{summary}");
}

#[test]
fn how_a_command_ended_is_an_annotation_and_still_the_last_line() {
    require!(uml);
    let place = repository();
    let ran = exec(&place, &[GITHUB], &["--timeout", "1s", "sleep 100"]).ended_with(124);
    insta::assert_snapshot!(ran.stderr, @r"
    ::error title=sekexe-ci timed-out::the command did not end in time and was killed (--timeout)
    sekexe-ci: the command did not end in time and was killed (--timeout)
    ");
    let ran = exec(&place, &[GITHUB], &["kill -9 $$"]).ended_with(137);
    assert!(ran.stderr.contains("::error title=sekexe-ci signalled::the command was ended by SIGKILL"));
    assert!(ran.stderr.ends_with("\nsekexe-ci: the command was ended by SIGKILL (signal 9)\n"));
    let ran = exec(&place, &[GITHUB], &["--kernel", "/no/such", "true"]).ended_with(125);
    assert!(ran.stderr.starts_with("::error title=sekexe-ci::"), "{}", ran.stderr);
}

#[test]
fn a_kernels_panic_is_an_annotation_with_its_last_lines() {
    require!(uml);
    let script = "sleep 0.2; echo c > /proc/sysrq-trigger; sleep 1000";
    let ran = exec(&repository(), &[GITHUB], &[script]).ended_with(125);
    let died = ran.stderr.lines().find(|line| line.starts_with("::error title=sekexe-ci machine-died::"));
    let died = died.unwrap_or_else(|| panic!("{}", ran.stderr));
    assert!(died.contains("kernel panic: sysrq triggered crash"), "{died}");
    assert!(died.matches("%0A[").count() > 3, "{died}");
}

#[test]
fn memory_that_ran_out_is_an_annotation() {
    require!(uml, memory_directory);
    let place = Place::in_memory();
    let ran = exec(&place, &[GITHUB], &["--memory", "128M", "tail /dev/zero"]).ended_with(137);
    assert!(
        ran.stderr.contains("::error title=sekexe-ci out-of-memory::the command ran out of memory"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_connection_that_was_refused_is_an_annotation() {
    require!(python3);
    on_every_machine(|place| {
        let script = "python3 -c \"import socket; socket.create_connection(('192.0.2.1', 80), 5)\" 2> /dev/null || true";
        let ran = exec(place, &[GITHUB], &["--deny-net", "192.0.2.0/24", script]).ended_with(0);
        let warning = ran.stderr.lines().find(|line| line.starts_with("::warning title=sekexe-ci::"));
        assert!(
            warning.is_some_and(|line| line.contains("refused") && line.contains("192.0.2.1")),
            "{}",
            ran.stderr
        );
    });
}

#[test]
fn processes_that_a_command_leaves_behind_are_a_notice() {
    on_every_machine(|place| {
        let options = ["--result", "result.json", "--verbose"];
        let left = |script: &str| {
            let ran = exec(place, &[GITHUB], &[&options[..], &[script]].concat()).ended_with(0);
            let text = fs::read_to_string(place.path("work/result.json")).unwrap();
            let result: serde_json::Value = serde_json::from_str(&text).unwrap();
            (ran.stderr, result["left_behind"].clone())
        };
        let (said, names) = left("sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & sleep 0.1");
        let names: Vec<&str> = names.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert_eq!(names.iter().filter(|name| **name == "sleep").count(), 3, "{names:?}");
        let notice = "::notice title=sekexe-ci left-behind::the command left 4 processes behind, ended with the machine: ";
        assert!(said.contains(notice) && said.contains("sleep (3 times)"), "{said}");
        let (said, names) = left("sleep 0.01 & (exit 3) & wait; echo x | cat; cat <(sleep 0.01)");
        assert_eq!(names.as_array().unwrap().len(), 0, "{said}");
        assert!(!said.contains("left-behind"), "{said}");
    });
}

#[test]
fn what_is_fenced_is_not_obeyed() {
    require!(uml);
    let script = format!("echo ::set-env name=A::b; {FINDING}; echo ::error::forged >&2; printf end");
    let ran = exec(&repository(), &[GITHUB], &["--fence-commands", &script]).ended_with(0);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let token = lines[0].strip_prefix("::stop-commands::").unwrap_or_else(|| panic!("{lines:?}"));
    assert!(token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
    assert_eq!(lines[1..4], ["::set-env name=A::b", "src/a.c:2:9: error: 'x' undeclared", "end"]);
    assert_eq!(lines[4], format!("::{token}::"));
    assert!(lines[5].starts_with("::error file=src/a.c,line=2"), "{lines:?}");
    assert_eq!(ran.stderr, "::error::forged\n");
    let refused = exec(&repository(), &[("TF_BUILD", "True")], &["--fence-commands", "true"]).ended_with(125);
    refused.says("--fence-commands: azure has no word that stops it");
}

#[test]
fn secrets_that_are_handed_in_are_masked() {
    require!(uml);
    let arguments = ["--env", "API_TOKEN", "--env", "COLOR=red", "echo $API_TOKEN"];
    let ran = exec(&repository(), &[GITHUB, ("API_TOKEN", "hush")], &arguments).ended_with(0);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("hush\n", "::add-mask::hush\n"));
}

#[test]
fn groups_are_in_the_words_of_each_ci() {
    require!(uml);
    let place = repository();
    for (ci, begins, ends) in [
        ("github", "::group::make it\nout", "::endgroup::\n"),
        ("forgejo", "::group::make it\nout", "::endgroup::\n"),
        ("azure", "##[group]make it\nout", "##[endgroup]\n"),
        ("buildkite", "--- make it\nout", "out\n"),
        ("gitlab", "\x1b[0Ksection_start:", ":sekexe_ci\r\x1b[0K\n"),
        ("travis", "travis_fold:start:sekexe_ci\r\x1b[0K", "travis_fold:end:sekexe_ci\r\x1b[0K\n"),
        ("circleci", "out\n", "out\n"),
    ] {
        let ran = exec(&place, &[], &["--ci", ci, "--group", "make it", "echo out >&2"]).ended_with(0);
        // There is no agent here that would post.
        let said = ran.stderr.split("sekexe-ci: warning").next().unwrap_or_default();
        assert!(said.starts_with(begins) && said.ends_with(ends), "{ci}: {said:?}");
    }
    let ran = exec(&place, &[], &["--ci", "teamcity", "--group", "it's", "echo out"]).ended_with(0);
    assert_eq!(
        ran.stdout,
        "##teamcity[blockOpened name='it|'s']\nout\n##teamcity[blockClosed name='it|'s']\n"
    );
}

#[test]
fn buildkites_agent_posts_the_summary() {
    require!(uml);
    let place = repository();
    let agent = place.write("home/buildkite-agent", "#!/bin/sh\n{ echo \"$*\"; cat; } > \"$HOME/posted\"\n");
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", place.path("home").display());
    let ran = exec(&place, &[("BUILDKITE", "true"), ("PATH", &path)], &[FINDING]).ended_with(0);
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    let posted = fs::read_to_string(place.path("home/posted")).unwrap();
    assert!(posted.starts_with("annotate --append --context sekexe-ci --style info\n### "), "{posted}");
    assert!(posted.contains("src/a.c:2:9"), "{posted}");
}

#[test]
fn a_users_matcher_is_asked_first() {
    require!(uml);
    let place = repository();
    let matcher = r#"{"problemMatcher": [{"owner": "mine", "severity": "notice",
        "pattern": [{"regexp": "^(\\S+):(\\d+):\\d+: error: (.*)$", "file": 1, "line": 2, "message": 3}]}]}"#;
    let file = place.write("home/mine.json", matcher);
    let ran = exec(&place, &[GITHUB], &["--matcher", file.to_str().unwrap(), FINDING]).ended_with(0);
    assert_eq!(ran.stderr, "::notice file=src/a.c,line=2,title=mine::'x' undeclared\n");
    place.write("home/mine.json", matcher.replace("(.*)", "(.*"));
    let ran = exec(&place, &[GITHUB], &["--matcher", file.to_str().unwrap(), FINDING]).ended_with(125);
    ran.says("::error title=sekexe-ci::--matcher ").says("mine.json, line 2: the expression cannot be used");
}

#[test]
fn a_script_adds_a_matcher_of_its_repository_and_no_other() {
    require!(uml);
    let place = repository();
    let matcher =
        r#"{"problemMatcher": [{"owner": "mine", "pattern": [{"regexp": "^mine (.*)$", "message": 1}]}]}"#;
    place.write("work/mine.json", matcher);
    let elsewhere = place.write("home/other.json", matcher);
    let add = |path: &str| format!("echo ::add-matcher::{path}; echo mine words");
    let gitlab = [("GITLAB_CI", "true")];
    let ran = exec(&place, &gitlab, &[&add("mine.json")]).ended_with(0);
    assert_eq!(ran.stderr, "error: words [mine]\n");
    let ran = exec(&place, &gitlab, &[&add(elsewhere.to_str().unwrap())]).ended_with(0);
    assert!(ran.stderr.contains("there is no such file in the repository"), "{}", ran.stderr);
    // GitHub's runner obeys by itself.
    assert_eq!(exec(&place, &[GITHUB], &[&add("mine.json")]).ended_with(0).stderr, "");
}

#[test]
fn reports_that_the_command_writes_are_annotated_too() {
    require!(uml);
    let place = repository();
    let junit = "<testsuite><testcase name=\"sums\" file=\"src/a.c\" line=\"2\"><failure message=\"1 is not 2\"/></testcase></testsuite>";
    place.write("home/old.xml", junit);
    let sarif = r#"{"runs": [{"tool": {"driver": {"name": "lint"}}, "results": [{"ruleId": "R1", "level": "note",
        "message": {"text": "so so"}, "locations": [{"physicalLocation": {"artifactLocation": {"uri": "src/a.c"},
        "region": {"startLine": 1, "endLine": 3}}}]}]}]}"#;
    let script = format!(
        "mkdir out; echo '{junit}' > out/j.xml; echo '{sarif}' > out/s.sarif; echo '<a>' > out/broken.xml; \
         cp out/j.xml out/old.xml; touch -d '1 hour ago' out/old.xml"
    );
    let arguments = ["--report", "out/*", "--report", "no.xml", "--report", "../home/old.xml", &script];
    let ran = exec(&place, &[GITHUB], &arguments).ended_with(0);
    insta::assert_snapshot!(ran.stderr, @r"
    ::error file=src/a.c,line=2,title=test sums::1 is not 2
    ::notice file=src/a.c,line=1,endLine=3,title=lint R1::so so
    sekexe-ci: warning: --report out/broken.xml: it ends too early, perhaps because its tool did
    sekexe-ci: warning: --report out/old.xml: it is older than this run
    sekexe-ci: warning: --report no.xml: the command wrote no such file
    sekexe-ci: warning: --report ../home/old.xml: it is no file of the repository
    ");
}

#[test]
fn what_was_found_is_written_for_other_programs() {
    require!(uml);
    let place = repository();
    let names = ["a.sarif", "a.xml", "quality.json", "issues.json"];
    let options = ["--report-sarif", "--report-junit", "--report-codequality", "--report-warnings"];
    let mut arguments: Vec<&str> =
        options.iter().zip(names).flat_map(|(option, name)| [*option, name]).collect();
    let script = format!("{FINDING}; exit 3");
    arguments.extend(["--ci", "none", &script]);
    let ran = exec(&place, &[], &arguments).ended_with(3);
    assert_eq!(ran.stderr, "sekexe-ci: the command exited with status 3\n");
    let read = |name: &str| fs::read_to_string(place.path("work").join(name)).unwrap();
    let json = |name: &str| serde_json::from_str::<serde_json::Value>(&read(name)).unwrap();
    let location = &json("a.sarif")["runs"][0]["results"][0]["locations"][0]["physicalLocation"];
    assert_eq!(
        (&location["artifactLocation"]["uri"], &location["region"]["startLine"]),
        (&"src/a.c".into(), &2.into())
    );
    assert!(read("a.xml").contains("src/a.c:2:9: &apos;x&apos; undeclared"), "{}", read("a.xml"));
    assert!(read("a.xml").contains("the command exited with status 3"), "{}", read("a.xml"));
    assert_eq!(json("quality.json")[0]["location"]["path"], "src/a.c");
    assert_eq!(json("issues.json")["issues"][0]["lineStart"], 2);
    let ran = exec(&place, &[], &["--report-sarif", "no/such/dir.sarif", "true"]).ended_with(125);
    ran.says("--report-sarif no/such/dir.sarif: it cannot be written");
}

#[test]
fn a_name_that_is_no_ci_is_refused_with_those_that_are() {
    let ran = exec(&Place::new(), &[], &["--ci", "cron", "true"]).ended_with(125);
    ran.says("cron").says("woodpecker");
    let ran = exec(&Place::new(), &[], &["--matchers", "gcc,cron", "true"]).ended_with(125);
    ran.says("cron");
    let ran = exec(&Place::new(), &[], &["--matchers", "none,gcc", "true"]).ended_with(125);
    ran.says("other matchers are asked for too");
}
