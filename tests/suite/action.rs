//! The Action, executed as the runner does it: each step's script by bash, with the inputs as
//! variables and its outputs in files.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::docker;
use crate::support::{Place, Ran, on_every_machine_in, program, require};

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
    act_on(place, inputs, &[])
}

/// The same on a runner whose variables differ.
fn act_on(place: &Place, inputs: &[(&str, &str)], runner: &[(&str, &str)]) -> Acted {
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
    contexts.insert("github.token".into(), "token".into());
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
            .envs(runner.iter().copied())
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
fn in_a_plain_container_it_falls_back_annotates_and_returns_the_code() {
    require!(uml, docker, static_program, checkout);
    let Some(mut more) = docker::cached_kernel() else { return };
    docker::with_daemon(|daemon| {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ci/action");
        for name in ["install.sh", "run.sh"] {
            more.push((format!("action/{name}"), scripts.join(name).to_str().unwrap().to_owned()));
        }
        // A piece of Debian's userland, such as a job's container brings with it.
        more.extend(docker::programs(&[
            "bash",
            "cat",
            "cut",
            "dirname",
            "grep",
            "id",
            "mktemp",
            "realpath",
            "sha256sum",
        ]));
        more.push(("etc/passwd".into(), "/etc/passwd".into()));
        let more: Vec<_> = more.iter().map(|(to, from)| (to.as_str(), from.as_str())).collect();
        let image = docker::files(&daemon.place, "job", &more);
        for directory in ["tmp", "proc", "sys", "dev", "run", "work", "temp"] {
            fs::create_dir_all(image.join(directory)).unwrap();
            fs::set_permissions(image.join(directory), fs::Permissions::from_mode(0o1777)).unwrap();
        }
        fs::write(image.join("work/a.c"), "int x;\n").unwrap();
        daemon.import(&image, "job");
        let steps = "cd /work; bash /action/install.sh >&2; export SEKEXE_CI=$INPUT_BINARY; status=0; \
            bash /action/run.sh || status=$?; cat /temp/output; exit $status";
        let mut environment: Vec<String> = action()
            .inputs
            .iter()
            .map(|(name, input)| format!("INPUT_{}={}", name.to_uppercase().replace('-', "_"), input.default))
            .collect();
        let job = [
            "INPUT_BINARY=/sekexe-ci",
            "INPUT_RUN=id -u; echo 'a.c:1:5: error: no'; echo WORD=said >> \"$GITHUB_OUTPUT\"; exit 3",
            "GITHUB_ACTIONS=true",
            "GITHUB_WORKSPACE=/work",
            "GITHUB_OUTPUT=/temp/output",
            "GITHUB_PATH=/temp/path",
            "RUNNER_TEMP=/temp",
            "HOME=/home",
            "CI=true",
        ];
        environment.extend(job.map(str::to_owned));
        for user in ["1000:1000", "0:0"] {
            let mut arguments = vec!["run", "--rm", "--network", "none", "--user", user];
            environment.iter().for_each(|variable| arguments.extend(["--env", variable]));
            arguments.extend(["job", "/usr/bin/bash", "-c", steps]);
            let ran = daemon.run(&arguments).ended_with(3);
            assert!(ran.stdout.starts_with("0\na.c:1:5: error: no\n"), "{} {}", ran.stdout, ran.stderr);
            assert!(
                ran.stdout.contains("WORD=said\nexit-code=3\noutcome=exited\nisolation=uml\n"),
                "{}",
                ran.stdout
            );
            let annotations =
                ["::error file=a.c,line=1,col=5,title=gcc::no\n", "::notice title=sekexe-ci fall-back::"];
            assert!(annotations.iter().all(|one| ran.stderr.contains(one)), "{}", ran.stderr);
        }
    });
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
fn a_step_in_a_machine_speaks_to_the_runner_and_writes_nothing_else() {
    // Not where machines have a directory of their own.
    on_every_machine_in(Path::new("/var/tmp"), |place| {
        let files = ["GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STATE", "GITHUB_STEP_SUMMARY"];
        fs::create_dir_all(place.path("runner/commands")).unwrap();
        fs::create_dir_all(place.path("work/sub")).unwrap();
        let path = |name: &str| place.write(&format!("runner/commands/{name}"), "");
        let mut variables: Vec<(&str, PathBuf)> = files.iter().map(|name| (*name, path(name))).collect();
        variables.push(("GITHUB_WORKSPACE", place.path("work")));
        variables.push(("RUNNER_TEMP", place.path("runner")));
        let writes = files.map(|name| format!("echo {name} >> \"${name}\"")).join("; ");
        let elsewhere = place.path("home/elsewhere");
        let script = place.write(
            "runner/step.sh",
            format!("{writes}; touch ../made \"$RUNNER_TEMP/made\"; touch {} || true\n", elsewhere.display()),
        );
        let run = |options: &[&str]| {
            let mut command = place.sekexe(["exec"]);
            command.args(options).args(["--matchers", "none", "--shell", "bash"]).arg(&script);
            command.envs(variables.iter().cloned()).env("GITHUB_ACTIONS", "true");
            Ran::from(command.current_dir(place.path("work/sub")).output().unwrap()).ended_with(0)
        };
        run(&[]);
        for (name, path) in &variables[..files.len()] {
            assert!(fs::read_to_string(path).unwrap().starts_with(&format!("{name}\n")), "{name}");
        }
        assert!(place.path("work/made").exists() && place.path("runner/made").exists());
        assert!(!elsewhere.exists());
        // Where the paths are named, only the files by which it speaks are added to them.
        fs::remove_file(place.path("work/made")).unwrap();
        fs::remove_file(place.path("runner/made")).unwrap();
        run(&["--rw", "."]);
        let env = fs::read_to_string(&variables[0].1).unwrap();
        assert_eq!(env, "GITHUB_ENV\nGITHUB_ENV\n");
        assert!(!place.path("work/made").exists() && !place.path("runner/made").exists());
        run(&["--ro"]);
        assert_eq!(fs::read_to_string(&variables[0].1).unwrap(), env);
    });
}

/// A server that has a release: each path and what it answers. Gives its address.
fn releases(files: Vec<(String, Vec<u8>)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let mut line = String::new();
            let _ = reader.read_line(&mut line);
            let mut header = String::new();
            while reader.read_line(&mut header).is_ok_and(|count| count > 2) {
                header.clear();
            }
            let path = line.split(' ').nth(1).unwrap_or_default();
            let file = files.iter().find(|(known, _)| known == path);
            let status = if file.is_some() { "200 OK" } else { "404 Not Found" };
            let body = file.map_or(&[][..], |(_, body)| body);
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = (&stream).write_all(&[head.as_bytes(), body].concat());
        }
    });
    address
}

#[test]
fn the_release_of_the_actions_own_ref_is_fetched_checked_and_kept() {
    require!(checkout, curl);
    let program = b"#!/bin/sh\necho fetched\n".to_vec();
    let digest = |bytes: &[u8]| {
        let place = Place::new();
        let file = place.write("work/file", bytes);
        let output = Command::new("sha256sum").arg(file).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap().to_owned()
    };
    let name = "sekexe-ci-x86_64-linux";
    let release = |version: &str, sums: String, program: &[u8]| {
        let at = format!("/owner/repository/releases/download/{version}");
        vec![(format!("{at}/SHA256SUMS"), sums.into_bytes()), (format!("{at}/{name}"), program.to_vec())]
    };
    let right = format!("{}  {name}\n", digest(&program));
    let mut files = release("v0.1.0", right, &program);
    files.extend(release("v0.2.0", format!("{}  {name}\n", digest(b"other")), &program));
    let server = releases(files);

    let place = Place::new();
    // What verifies the provenance says no once it is told to, and writes down what it was asked.
    let bin = place.path("bin");
    fs::create_dir(&bin).unwrap();
    let gh = place.write(
        "bin/gh",
        "#!/bin/sh\necho \"$GH_TOKEN $*\" >> \"$RUNNER_TEMP/asked\"\n[ ! -e \"$RUNNER_TEMP/forged\" ]\n",
    );
    fs::set_permissions(&gh, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let tools = place.path("tools");
    let runner = [
        ("GITHUB_SERVER_URL", server.as_str()),
        ("PATH", &path),
        ("RUNNER_TOOL_CACHE", tools.to_str().unwrap()),
    ];
    let act = |inputs: &[(&str, &str)]| act_on(&place, inputs, &runner).ran;

    act(&[]).ended_with(0);
    let kept = place.path("tools/sekexe-ci/v0.1.0/x86_64/sekexe-ci");
    assert_eq!(fs::read(&kept).unwrap(), program);
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o755);
    let asked = fs::read_to_string(place.path("runner/asked")).unwrap();
    assert!(
        asked.starts_with("token attestation verify ") && asked.ends_with("--repo owner/repository\n"),
        "{asked}"
    );
    let path_file = fs::read_to_string(place.path("runner/path")).unwrap();
    assert_eq!(path_file.trim_end(), kept.parent().unwrap().to_str().unwrap());
    // What is kept is not fetched again.
    fs::write(&kept, "#!/bin/sh\n").unwrap();
    act(&[]).ended_with(0);
    assert_eq!(fs::read(&kept).unwrap(), b"#!/bin/sh\n");

    let refused = |inputs: &[(&str, &str)], said: &str| {
        let ran = act(inputs).ended_with(1);
        assert!(
            ran.stdout.starts_with("::error title=sekexe-ci::") && ran.stdout.contains(said),
            "{}",
            ran.stdout
        );
    };
    refused(&[("version", "v0.2.0")], "does not have the digest that its release names");
    refused(
        &[("version", "v9.9.9")],
        "cannot be fetched; name a release with version, or a program with binary",
    );
    fs::remove_file(&kept).unwrap();
    place.write("runner/forged", "");
    refused(&[], "has no valid provenance");
    assert!(!kept.exists());
}

#[test]
fn a_release_has_what_the_action_and_binstall_fetch() {
    require!(checkout);
    let read = |name: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let release = read(".github/workflows/release.yml");
    assert!(
        release.contains("dist/sekexe-ci-x86_64-linux\n") && release.contains("sha256sum -- * > SHA256SUMS")
    );
    assert!(read("src/ci/action/install.sh").contains("name=sekexe-ci-$arch-linux\n"));
    assert!(
        read("Cargo.toml").contains("/v{ version }/sekexe-ci-{ target-arch }-linux\"\npkg-fmt = \"bin\"\n")
    );
}

#[test]
fn what_is_not_supported_is_said_clearly() {
    require!(checkout);
    let place = Place::new();
    for (runner, said) in [
        (("RUNNER_OS", "macOS"), "there is no sekexe-ci for macOS; use a Linux runner"),
        (("RUNNER_OS", "Windows"), "there is no sekexe-ci for Windows; use a Linux runner"),
        (("RUNNER_ARCH", "ARM64"), "there is no sekexe-ci for ARM64 yet; use an x86-64 runner"),
    ] {
        let ran = act_on(&place, &[], &[runner, ("PATH", "/usr/bin:/bin")]).ran.ended_with(1);
        assert_eq!(ran.stdout, format!("::error title=sekexe-ci::{said}\n"));
    }
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
        (
            "working-directory",
            "no/such\n::set-env::",
            "working-directory: there is no no/such ::set-env:: in",
        ),
        // What contradicts the isolation.
        ("kernel", "7.3", "--kernel"),
        ("memory", "1G", "--memory"),
        ("need", "docker", "--need"),
        ("matchers", "none,gcc", "--matchers none"),
    ] {
        let contradicts = ["kernel", "need"].contains(&input) || value == "1G";
        let isolation = ("isolation", if contradicts { "none" } else { "auto" });
        let mut inputs = vec![binary, ("run", "true")];
        inputs.extend(Some(isolation).filter(|_| input != "isolation"));
        inputs.push((input, value));
        let acted = act(&place, &inputs);
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
