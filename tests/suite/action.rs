//! The Action, executed as the runner does it: each step's script by bash, with the inputs as
//! variables and its outputs in files.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde::Deserialize;

use crate::support::{Place, Ran, program, require};

#[derive(Deserialize)]
struct Action {
    inputs: BTreeMap<String, Input>,
    outputs: BTreeMap<String, Output>,
    runs: Runs,
}

#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    default: String,
}

#[derive(Deserialize)]
struct Output {
    value: String,
}

#[derive(Deserialize)]
struct Runs {
    using: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    id: Option<String>,
    #[serde(rename = "if")]
    condition: Option<String>,
    uses: Option<String>,
    run: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

fn action() -> Action {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/action.yml");
    serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What a run of the Action showed: its last step, and the Action's outputs.
struct Acted {
    ran: Ran,
    outputs: BTreeMap<String, String>,
}

/// Runs the Action's own steps; the cache is the runner's business.
fn act(place: &Place, inputs: &[(&str, &str)]) -> Acted {
    let action = action();
    assert_eq!(action.runs.using, "composite");
    for name in ["work", "runner"] {
        fs::create_dir_all(place.path(name)).unwrap();
    }
    let mut contexts: BTreeMap<String, String> =
        action.inputs.iter().map(|(name, input)| (format!("inputs.{name}"), input.default.clone())).collect();
    for (name, value) in inputs {
        assert!(contexts.insert(format!("inputs.{name}"), (*value).into()).is_some(), "no input {name}");
    }
    contexts.insert("github.action_ref".into(), "v0.1.0".into());
    contexts.insert("github.action_repository".into(), "owner/repository".into());
    let mut last = None;
    for step in &action.runs.steps {
        let wanted = match step.condition.as_deref() {
            None => true,
            Some("inputs.run != ''") => !contexts["inputs.run"].is_empty(),
            Some(other) => panic!("a condition that this test does not know: {other}"),
        };
        let Some(script) = step.run.as_ref().filter(|_| wanted) else { continue };
        assert!(!script.contains("${{"), "an input would become part of a script: {script}");
        let output = place.write("runner/output", "");
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]);
        command.current_dir(place.path("work")).env_clear();
        let ours = place.sekexe(["exec"]);
        command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
            .env("GITHUB_ACTIONS", "true")
            .env("GITHUB_ACTION_PATH", env!("CARGO_MANIFEST_DIR"))
            .env("GITHUB_WORKSPACE", place.path("work"))
            .env("RUNNER_TEMP", place.path("runner"))
            .env("RUNNER_OS", "Linux")
            .env("RUNNER_ARCH", "X64")
            .env("GITHUB_OUTPUT", &output)
            .env("GITHUB_PATH", place.path("runner/path"))
            .env("GITHUB_ENV", place.path("runner/env"))
            .envs(step.env.iter().map(|(name, value)| (name, evaluate(value, &contexts))));
        let ran = Ran::from(command.output().expect("bash starts"));
        let written = fs::read_to_string(&output).unwrap();
        for (name, value) in written.lines().filter_map(|line| line.split_once('=')) {
            let id = step.id.as_deref().expect("a step with outputs has an id");
            contexts.insert(format!("steps.{id}.outputs.{name}"), value.into());
        }
        let failed = ran.status != 0;
        last = Some(ran);
        if failed {
            break;
        }
    }
    let outputs =
        action.outputs.iter().map(|(name, output)| (name.clone(), evaluate(&output.value, &contexts)));
    Acted { outputs: outputs.collect(), ran: last.expect("a step ran") }
}

/// An expression that is a context's value and nothing more; one that is not there is empty.
fn evaluate(text: &str, contexts: &BTreeMap<String, String>) -> String {
    let name = text.strip_prefix("${{ ").and_then(|rest| rest.strip_suffix(" }}"));
    let name = name.unwrap_or_else(|| panic!("an expression that this test does not know: {text}"));
    contexts.get(name).cloned().unwrap_or_default()
}

#[test]
fn the_action_runs_a_script_and_tells_how_it_ended() {
    require!(uml, checkout);
    let place = Place::new();
    let binary = program();
    let script =
        "id -u; echo WORD=said >> \"$GITHUB_ENV\"; echo kept > file; echo 'a.c:1:2: error: no'; exit 3";
    let inputs = [("binary", binary.to_str().unwrap()), ("run", script), ("isolation", "uml")];
    let acted = act(&place, &inputs);
    let ran = acted.ran.ended_with(3);
    assert_eq!(ran.stdout, "0\na.c:1:2: error: no\n");
    assert!(ran.stderr.contains("::error title=gcc::a.c:1:2: no\n"), "{}", ran.stderr);
    let output = |name: &str| acted.outputs[name].as_str();
    assert_eq!((output("exit-code"), output("outcome"), output("isolation")), ("3", "exited", "uml"));
    assert!(!output("kernel-release").is_empty() && output("duration").parse::<f64>().unwrap() > 0.0);
    let result: serde_json::Value =
        serde_json::from_slice(&fs::read(output("result-file")).unwrap()).unwrap();
    assert_eq!(result["outcome"]["code"], 3);
    // What the script tells the runner arrives, and what it writes in the workspace stays.
    assert_eq!(fs::read_to_string(place.path("runner/env")).unwrap(), "WORD=said\n");
    assert_eq!(fs::read_to_string(place.path("work/file")).unwrap(), "kept\n");
}

#[test]
fn without_a_script_the_program_is_put_on_the_path() {
    require!(checkout);
    let place = Place::new();
    let binary = program();
    act(&place, &[("binary", binary.to_str().unwrap())]).ran.ended_with(0);
    let path = fs::read_to_string(place.path("runner/path")).unwrap();
    assert_eq!(path.trim_end(), binary.canonicalize().unwrap().parent().unwrap().to_str().unwrap());
}

#[test]
fn exec_is_the_shell_of_a_step() {
    require!(uml, checkout);
    let place = Place::new();
    let script = place.write("home/step.sh", "[[ -o pipefail ]]; echo \"$1\" in a machine; exit 5\n");
    let ran = place.exec_with(["--shell", "bash", script.to_str().unwrap()]).ended_with(5);
    assert_eq!(ran.stdout, " in a machine\n");
}

#[test]
fn no_input_is_read_by_a_shell_or_as_another_option() {
    require!(uml, checkout);
    let place = Place::new();
    let binary = program();
    let script = "printf '%s|' \"$A\" \"$B\"";
    let trap = "A=$(touch trap) `touch trap`\nB=--ro \"quoted\"";
    let inputs = [("binary", binary.to_str().unwrap()), ("run", script), ("env", trap), ("isolation", "uml")];
    let ran = act(&place, &inputs).ran.ended_with(0);
    assert_eq!(ran.stdout, "$(touch trap) `touch trap`|--ro \"quoted\"|");
    assert!(!place.path("work/trap").exists());
}

#[test]
fn a_bad_input_is_an_annotation_that_names_it() {
    require!(checkout);
    let place = Place::new();
    let binary = program();
    let binary = ("binary", binary.to_str().unwrap());
    for (input, value, named) in [
        ("memory", "lots", "--memory"),
        ("isolation", "jail", "--isolation"),
        ("timeout", "never", "--timeout"),
        ("matchers", "cobol", "--matchers"),
        ("fail-on-fallback", "maybe", "fail-on-fallback"),
    ] {
        let acted = act(&place, &[binary, ("run", "true"), (input, value)]);
        let said = acted.ran.ended_with(125);
        let said = format!("{}{}", said.stdout, said.stderr);
        let line = said.lines().find(|line| line.starts_with("::error title=sekexe-ci::"));
        assert!(line.is_some_and(|line| line.contains(named)), "{input}: {said}");
    }
    let ran = act(&place, &[("binary", "/proc/no-such-program"), ("run", "true")]).ran.ended_with(1);
    assert_eq!(
        ran.stdout,
        "::error title=sekexe-ci::binary: /proc/no-such-program cannot be executed; give the path of a program\n"
    );
}

#[test]
fn inputs_are_options_and_every_action_is_pinned() {
    require!(checkout);
    let help = Place::new().exec_with(["--help"]).ended_with(0).stdout;
    let action = action();
    // Those that are the Action's own, or that have another name.
    let own = ["run", "binary", "version", "fail-on-fallback", "working-directory"];
    for name in action.inputs.keys().filter(|name| !own.contains(&name.as_str())) {
        assert!(help.contains(&format!("--{name} <")), "there is no option --{name}");
    }
    for uses in action.runs.steps.iter().filter_map(|step| step.uses.as_ref()) {
        let (_, commit) = uses.split_once('@').expect("a version");
        assert!(commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()), "{uses}");
    }
    let passed = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/action.yml")).unwrap();
    for name in action.inputs.keys() {
        assert!(passed.contains(&format!("${{{{ inputs.{name} }}}}")), "the input {name} reaches no step");
    }
}
