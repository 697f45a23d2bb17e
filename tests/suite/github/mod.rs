//! Check runs and comments on GitHub, for jobs of other systems.

mod server;

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::examples;
use crate::support::{Place, Ran, require, with_input};
use server::{APP, Fault, PERSON, READER, Server};

/// A repository with one file, in the directory that the test runs in.
fn repository() -> Place {
    let place = Place::new();
    fs::create_dir_all(place.path("work/.git")).unwrap();
    fs::write(place.path("work/a.c"), "int main;\n").unwrap();
    place
}

/// A log with so many errors, on a line each.
fn log(errors: usize) -> String {
    (1..=errors).map(|line| format!("a.c:{line}:3: error: number {line:03}\n")).collect()
}

/// The messages of the errors of [`log`].
fn messages(errors: usize) -> Vec<String> {
    (1..=errors).map(|line| format!("number {line:03}")).collect()
}

/// `annotate` in a job of Travis on a pull request.
fn annotate(place: &Place, server: &Server, token: &str, arguments: &[&str]) -> Command {
    let mut command = place.sekexe(["annotate"]);
    command.args(arguments).envs([
        ("TRAVIS", "true"),
        ("TRAVIS_REPO_SLUG", "o/r"),
        ("TRAVIS_COMMIT", "merged"),
        ("TRAVIS_PULL_REQUEST", "7"),
        ("TRAVIS_PULL_REQUEST_SHA", "abc123"),
        ("TRAVIS_JOB_WEB_URL", "https://travis.test/o/r/jobs/1"),
        ("GITHUB_API_URL", &server.url),
        ("GITHUB_TOKEN", token),
    ]);
    command
}

fn check(place: &Place, server: &Server, token: &str, log: &str) -> Ran {
    with_input(&mut annotate(place, server, token, &["--check", "the tests", "-"]), log.as_bytes())
}

#[test]
fn errors_of_a_log_become_a_check_run_with_annotations() {
    let (place, server) = (repository(), Server::start());
    let log = format!("{}/etc/other.c:1:1: warning: elsewhere\n", log(120));
    check(&place, &server, APP, &log)
        .ended_with(0)
        .says("check run the tests: https://github.test/o/r/runs/");
    let state = server.state();
    let [run] = &state.runs[..] else { panic!("{:?}", state.runs) };
    assert_eq!((&run["name"], &run["head_sha"]), (&"the tests".into(), &"abc123".into()));
    assert_eq!((&run["status"], &run["conclusion"]), (&"completed".into(), &"failure".into()));
    assert_eq!(run["details_url"], "https://travis.test/o/r/jobs/1");
    assert_eq!(run["output"]["title"], "120 errors, 1 warning");
    assert!(run["output"]["summary"].as_str().unwrap().contains("/etc/other.c:1:1: elsewhere"));
    assert_eq!(state.messages(run), messages(120));
    let first = &state.notes[&run["id"].as_u64().unwrap()][0];
    assert_eq!(
        (&first["path"], &first["start_line"], &first["start_column"]),
        (&"a.c".into(), &1.into(), &3.into())
    );
    assert_eq!((&first["annotation_level"], &first["title"]), (&"failure".into(), &"gcc".into()));
    assert_eq!((state.count("POST", ""), state.count("PATCH", "")), (1, 3));
}

#[test]
fn an_api_that_fails_half_way_is_told_everything_once() {
    let (place, server) = (repository(), Server::start());
    // Created, but nobody hears of it; then a batch that arrives unheard, one that does not, one that
    // is answered with an error though it was taken, limits, and half an answer.
    server.fail("POST", "/check-runs", Fault::CutAfter);
    server.fail("PATCH", "", Fault::CutAfter);
    server.fail("GET", "/annotations", Fault::CutWithin);
    server.fail("PATCH", "", Fault::Answer(502, &[], "Bad Gateway"));
    server.fail("PATCH", "", Fault::StumbleAfter);
    let second = [("retry-after", "1")];
    let limited = "You have exceeded a secondary rate limit. Please wait a few minutes.";
    server.fail("PATCH", "", Fault::Answer(403, Box::leak(Box::new(second)), limited));
    server.fail("PATCH", "", Fault::CutWithin);
    server.fail("PATCH", "", Fault::CutBefore);
    server.fail("PATCH", "", Fault::Answer(429, Box::leak(Box::new(second)), "Too many requests"));
    let ran = check(&place, &server, APP, &log(230)).ended_with(0);
    let state = server.state();
    let [run] = &state.runs[..] else { panic!("{:?}", state.runs) };
    assert_eq!(state.messages(run), messages(230), "{}", ran.stderr);
    assert_eq!((&run["status"], &run["conclusion"]), (&"completed".into(), &"failure".into()));
    ran.says("secondary rate limit. Please wait a few minutes.; trying again in 1 s")
        .says("Bad Gateway; trying again");
    // What has not changed is not sent again.
    assert!(state.count("GET", "304") > 0, "{:?}", state.log);
}

#[test]
fn the_same_job_brings_its_check_run_up_to_date_and_other_findings_make_a_new_one() {
    let (place, server) = (repository(), Server::start());
    for errors in [60, 60, 70] {
        check(&place, &server, APP, &log(errors)).ended_with(0);
        let state = server.state();
        assert_eq!(state.runs.len(), 1);
        assert_eq!(state.messages(&state.runs[0]), messages(errors));
    }
    check(&place, &server, APP, "").ended_with(0);
    {
        let state = server.state();
        assert_eq!((state.runs.len(), &state.runs[1]["conclusion"]), (2, &"success".into()));
        assert_eq!(state.runs[1]["output"]["title"], "nothing found");
    }
    // Another job does not write to this one's.
    let mut other = annotate(&place, &server, APP, &["--check", "the tests", "-"]);
    other.env("TRAVIS_JOB_WEB_URL", "https://travis.test/o/r/jobs/2");
    with_input(&mut other, b"").ended_with(0);
    assert_eq!(server.state().runs.len(), 3);
}

#[test]
fn a_token_without_the_right_is_told_what_it_takes_and_not_tried_again() {
    let (place, server) = (repository(), Server::start());
    for (token, said) in [
        ("nonsense", "401 Bad credentials; the token is wrong or has expired"),
        (
            READER,
            "403 Resource not accessible by integration; the token has not the right; it takes one of a GitHub App",
        ),
        (PERSON, "403 You must authenticate via a GitHub App.; the token has not the right"),
    ] {
        check(&place, &server, token, &log(1)).ended_with(125).says("check run the tests: ").says(said);
    }
    let mut elsewhere = annotate(&place, &server, APP, &["--check", "x", "--repository", "o/other", "-"]);
    with_input(&mut elsewhere, b"").ended_with(125).says("there is no such thing in o/other");
    let mut reader = annotate(&place, &server, READER, &["--comment", "-"]);
    with_input(&mut reader, b"").ended_with(125).says("it takes `pull-requests: write`");
    let state = server.state();
    assert!(state.runs.is_empty() && state.comments.is_empty());
    assert_eq!(state.log.iter().filter(|line| !line.starts_with("GET")).count(), 3, "{:?}", state.log);
}

#[test]
fn a_limit_that_lasts_longer_than_anybody_waits_is_told() {
    let (place, server) = (repository(), Server::start());
    let headers = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "99999999999")];
    server.fail(
        "POST",
        "/check-runs",
        Fault::Answer(403, Box::leak(Box::new(headers)), "API rate limit exceeded"),
    );
    check(&place, &server, APP, "").ended_with(125).says("API rate limit exceeded; the limit is lifted in ");
}

#[test]
fn one_comment_is_kept_up_to_date() {
    for (token, login, kind) in [(APP, "app[bot]", "Bot"), (PERSON, "person", "User")] {
        let (place, server) = (repository(), Server::start());
        let comment = |errors| {
            with_input(&mut annotate(&place, &server, token, &["--comment", "-"]), log(errors).as_bytes())
        };
        server.state().comment("somebody", "User", "looks good");
        server.fail("POST", "/comments", Fault::CutAfter);
        comment(2)
            .ended_with(0)
            .says("comment on pull request 7: https://github.test/o/r/pull/7#issuecomment-");
        let marker = {
            let mut state = server.state();
            assert_eq!(state.comments.len(), 2);
            let body = state.comments[1]["body"].as_str().unwrap().to_owned();
            assert!(body.contains("2 errors") && body.contains("a.c:2:3"), "{body}");
            assert!(body.contains("[The job](https://travis.test/o/r/jobs/1)"), "{body}");
            // Somebody else says that it is ours; and the list gets longer than a page.
            let marker = body.lines().next().unwrap().to_owned();
            let others = state.comments[0].clone();
            state.comments.insert(0, others);
            state.comments[0]["body"] = format!("{marker}\nforged").into();
            (0..50).for_each(|_| state.comment("somebody", "User", "more"));
            let ours = state.comments.remove(2);
            state.comments.push(ours);
            marker
        };
        comment(2).ended_with(0);
        assert_eq!(server.state().count("PATCH", ""), 0, "nothing has changed");
        server.fail("PATCH", "", Fault::CutAfter);
        comment(3).ended_with(0);
        let state = server.state();
        assert_eq!(state.comments.len(), 53);
        assert_eq!(state.comments[0]["body"], format!("{marker}\nforged"));
        let ours = state.comments.last().unwrap();
        assert_eq!((&ours["user"]["login"], &ours["user"]["type"]), (&login.into(), &kind.into()));
        assert!(ours["body"].as_str().unwrap().contains("3 errors"), "{ours}");
    }
}

#[test]
fn a_report_and_a_result_say_what_happened() {
    let (place, server) = (repository(), Server::start());
    let sarif = r#"{"runs": [{"tool": {"driver": {"name": "lint"}}, "results": [{"ruleId": "R1", "level": "warning",
        "message": {"text": "so so"}, "locations": [{"physicalLocation": {"artifactLocation": {"uri": "a.c"},
        "region": {"startLine": 1, "endLine": 3, "startColumn": 5}}}]}]}]}"#;
    place.write("work/found.sarif", sarif);
    let result = r#"{"layout": 1, "exit_status": 137, "outcome": {"kind": "out-of-memory"},
        "machine": {"kind": "uml"}, "times": {"command_ms": 1500.0}}"#;
    place.write("work/result.json", result);
    let arguments = ["--check", "t", "--comment=t", "--report", "found.sarif", "--result", "result.json"];
    Ran::from(annotate(&place, &server, APP, &arguments).output().unwrap()).ended_with(0);
    let state = server.state();
    let run = &state.runs[0];
    assert_eq!(
        (&run["conclusion"], &run["output"]["title"]),
        (&"failure".into(), &"out-of-memory, status 137; 1 warning".into())
    );
    assert!(run["output"]["summary"].as_str().unwrap().contains("| outcome | out-of-memory, status 137 |"));
    assert_eq!(state.messages(run), ["so so"]);
    assert!(state.comments[0]["body"].as_str().unwrap().contains("| time of the command | 1.5 s |"));
}

#[test]
fn several_results_make_a_timeline() {
    let (place, server) = (repository(), Server::start());
    place.write("work/summary.md", "before\n");
    for (name, status, began) in [("build", 0, 1_700_000_000_000_u64), ("test", 1, 1_700_000_002_000)] {
        let text = format!(
            r#"{{"exit_status": {status}, "outcome": {{"kind": "exited"}}, "machine": {{"kind": "uml"}},
            "times": {{"began_unix_ms": {began}, "command_ms": 900.0, "total_ms": 1500.0}}}}"#
        );
        place.write(&format!("work/{name}.json"), &text);
    }
    let arguments = ["--check", "t", "--comment=t", "--result", "build.json", "--result", "test.json"];
    Ran::from(annotate(&place, &server, APP, &arguments).output().unwrap()).ended_with(0);
    let state = server.state();
    let run = &state.runs[0];
    let (title, conclusion) = (&run["output"]["title"], &run["conclusion"]);
    assert_eq!((title, conclusion), (&"1 of 2 commands failed".into(), &"failure".into()));
    let page = place.path("work/summary.md");
    let step = [("GITHUB_ACTIONS", "true"), ("GITHUB_STEP_SUMMARY", page.to_str().unwrap())];
    let mut in_a_step = place.sekexe(["annotate", "--result", "build.json", "--result", "test.json"]);
    Ran::from(in_a_step.envs(step).output().unwrap()).ended_with(0);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.starts_with("before\n### sekexe-ci\n"), "{page}");
    let told = [&run["output"]["summary"], &state.comments[0]["body"]].map(|text| text.as_str().unwrap());
    for text in told.into_iter().chain([page.as_str()]) {
        assert!(text.contains("| build | exited, status 0, 0.9 s |"), "{text}");
        assert!(text.contains("```mermaid\ngantt\n"), "{text}");
        assert!(text.contains("  test :crit, 1700000002000, 1700000003500\n"), "{text}");
    }
}

#[test]
fn the_example_for_travis_tells_github_how_its_test_ended() {
    require!(uml, checkout);
    let server = Server::start();
    let example = examples::yaml("travis/check.yml");
    let [script, after] = ["script", "after_script"].map(|phase| example[phase].as_str().unwrap());
    let variables = [
        ("TRAVIS", "true"),
        ("TRAVIS_REPO_SLUG", "o/r"),
        ("TRAVIS_PULL_REQUEST", "7"),
        ("TRAVIS_PULL_REQUEST_SHA", "abc123"),
        ("GITHUB_API_URL", &server.url),
        ("GITHUB_TOKEN", APP),
    ];
    let (_, ran) = examples::run(&variables, &format!("{script} || status=$?\n{after}\nexit $status"));
    let ran = ran.ended_with(7);
    assert!(ran.stdout.starts_with("tested as 0\n"), "{}", ran.stdout);
    let state = server.state();
    let run = &state.runs[0];
    assert_eq!((&run["name"], &run["conclusion"]), (&"tests".into(), &"failure".into()));
    assert_eq!(run["output"]["title"], "exited, status 7");
    assert!(state.comments[0]["body"].as_str().unwrap().contains("| outcome | exited, status 7 |"));
}

#[test]
fn in_a_job_of_githubs_own_a_check_run_belongs_to_the_pull_requests_commit() {
    let (place, server) = (repository(), Server::start());
    let event = place.write("home/event.json", r#"{"pull_request": {"head": {"sha": "head"}}}"#);
    let mut command = place.sekexe(["annotate", "--check", "x", "-"]);
    command.env("GITHUB_EVENT_PATH", event).envs([
        ("GITHUB_ACTIONS", "true"),
        ("GITHUB_REPOSITORY", "o/r"),
        ("GITHUB_SHA", "merge"),
        ("GITHUB_REF", "refs/pull/7/merge"),
        ("GITHUB_API_URL", &server.url),
        ("GITHUB_TOKEN", APP),
    ]);
    with_input(&mut command, b"").ended_with(0);
    assert_eq!(server.state().runs[0]["head_sha"], "head");
}

#[test]
fn outside_of_a_pull_request_there_is_no_comment_and_no_failure() {
    let (place, server) = (repository(), Server::start());
    let mut command = annotate(&place, &server, APP, &["--comment", "-"]);
    command.env("TRAVIS_PULL_REQUEST", "false");
    with_input(&mut command, b"").ended_with(0).says("this job is not one of a pull request");
    assert!(server.state().log.is_empty());
}

#[test]
fn without_github_a_log_is_annotated_in_the_words_of_the_ci() {
    let place = repository();
    let file = place.write("work/log", log(2));
    let mut command = place.sekexe(["annotate"]);
    let ran = Ran::from(command.arg(&file).env("GITHUB_ACTIONS", "true").output().unwrap()).ended_with(0);
    insta::assert_snapshot!(ran.stderr, @r"
    ::error file=a.c,line=1,col=3,title=gcc::number 001
    ::error file=a.c,line=2,col=3,title=gcc::number 002
    ");
    let ran = Ran::from(place.sekexe(["annotate", "log"]).output().unwrap()).ended_with(0);
    assert!(
        ran.stderr.starts_with("error: number 001 [gcc]\n --> a.c:1:3\n1 | int main;\n"),
        "{}",
        ran.stderr
    );
}

#[test]
fn what_is_missing_is_named_before_anything_is_sent() {
    let place = repository();
    let annotate = |arguments: &[&str], token: Option<&str>| {
        let mut command = place.sekexe(["annotate"]);
        command.args(arguments).envs(token.map(|token| ("GITHUB_TOKEN", token)));
        with_input(&mut command, b"").ended_with(125)
    };
    annotate(&[], None).says("there is nothing to annotate");
    annotate(&["--check", "x", "-"], None).says("there is no token: GITHUB_TOKEN is not set");
    annotate(&["--check", "x", "-"], Some("t")).says("name it with --repository OWNER/NAME");
    annotate(&["--check", "x", "--repository", "o/r", "-"], Some("t")).says("name it with --sha");
    let whole = ["--check", "x", "--repository", "o/r", "--sha", "abc"];
    annotate(&[&whole[..], &["--api-url", "ftp://x", "-"]].concat(), Some("t"))
        .says("--api-url ftp://x: it is no address");
    annotate(&[&whole[..], &["no.log"]].concat(), Some("t")).says("read the log no.log");
    place.write("work/bad.json", "{}");
    annotate(&[&whole[..], &["--result", "bad.json"]].concat(), Some("t"))
        .says("it is not what exec --result writes");
    let file = place.write("work/token", "");
    let no_token =
        [&whole[..], &["--token-file", file.to_str().unwrap(), "--api-url", "http://127.0.0.1:9", "-"]]
            .concat();
    annotate(&no_token, None).says("is empty");
}

#[test]
fn the_server_of_these_tests_refuses_what_githubs_description_does() {
    let shapes: Value = serde_json::from_str(include_str!("requests.json")).unwrap();
    assert_eq!(shapes["output"]["properties"]["annotations"]["maxItems"], 50);
    let (place, server) = (repository(), Server::start());
    server.state().runs.push(serde_json::json!({ "id": 1 }));
    // More than fifty at a time, sent by hand.
    let note = serde_json::json!({ "path": "a", "start_line": 1, "end_line": 1, "annotation_level": "notice", "message": "m" });
    let body =
        serde_json::json!({ "output": { "title": "t", "summary": "s", "annotations": vec![note; 51] } })
            .to_string();
    let script = "import sys, urllib.request, urllib.error\n\
        request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), method='PATCH', headers={\n\
            'authorization': 'Bearer ghs_app', 'x-github-api-version': 'x'})\n\
        try: urllib.request.urlopen(request)\n\
        except urllib.error.HTTPError as error: print(error.code, error.read().decode())";
    let url = format!("{}/repos/o/r/check-runs/1", server.url);
    if let Ok(output) =
        Command::new("python3").args(["-c", script, &url, &body]).current_dir(place.path("work")).output()
    {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.starts_with("422 ") && said.contains("annotations has too many"), "{said}");
    }
}
