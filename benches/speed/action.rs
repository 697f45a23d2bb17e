//! What the GitHub Action adds to `exec`: finding the program in the tool cache, its digest, turning
//! inputs into options. What `actions/cache` and the runner take is theirs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::guest::PROGRAM;
use crate::measure::{self, Bench, Contender, seconds};
use crate::table::{Bar, Line, Measure};

const ADDED: Measure =
    Measure { what: "the Action, beyond exec", unit: "ms", bar: Some(Bar::AtMost(300.0)), peers: &[] };

/// Inputs of `action.yml` that are set to nothing.
const INPUTS: [&str; 17] = [
    "BINARY",
    "VERSION",
    "SHELL",
    "ISOLATION",
    "NEED",
    "FAIL_ON_FALLBACK",
    "KERNEL",
    "MEMORY",
    "CPUS",
    "TIMEOUT",
    "WORKING_DIRECTORY",
    "RW",
    "ENV",
    "NETWORK",
    "ALLOW_NET",
    "MATCHERS",
    "RUN",
];

/// Measures it.
pub fn run(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let place = bench.path("action");
    let cached = place.join("tools/sekexe-ci/v0.1.0/x86_64/sekexe-ci");
    for directory in [cached.parent().unwrap_or(&place), &place.join("runner"), &place.join("work")] {
        fs::create_dir_all(directory)?;
    }
    fs::copy(PROGRAM, &cached)?;
    let script = place.join("script");
    fs::write(&script, "true\n")?;
    let contender = Contender::of("ours", ADDED.what, || {
        let mut install = step(&place, "install.sh");
        let mut run = step(&place, "run.sh");
        run.env("SEKEXE_CI", &cached).env("INPUT_RUN", "true");
        let whole = seconds(|| measure::run(&mut install))? + seconds(|| measure::run(&mut run))?;
        let mut exec = Command::new(&cached);
        exec.args(["exec", "--rw"]).arg(place.join("work")).arg("--rw").arg(place.join("runner"));
        exec.arg("--script").arg(&script).current_dir(place.join("work"));
        Ok(1000.0 * (whole - seconds(|| measure::run(&mut exec))?))
    });
    Ok(ADDED.lines(&bench.take_turns("action", vec![contender]), "ours"))
}

/// One of the Action's scripts, with what the runner gives it.
fn step(place: &Path, name: &str) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ci/action").join(name);
    let runner = place.join("runner");
    let files: BTreeMap<&str, PathBuf> = BTreeMap::from([
        ("GITHUB_OUTPUT", runner.join("output")),
        ("GITHUB_PATH", runner.join("path")),
        ("GITHUB_WORKSPACE", place.join("work")),
        ("RUNNER_TEMP", runner),
        ("RUNNER_TOOL_CACHE", place.join("tools")),
    ]);
    let mut command = Command::new("bash");
    command.arg(script).envs(files).envs(INPUTS.map(|name| (format!("INPUT_{name}"), "")));
    command.env("INPUT_FAIL_ON_FALLBACK", "false").env("ACTION_REF", "v0.1.0").env("RUNNER_ARCH", "X64");
    // The job's token would be asked for the release's provenance only where it is fetched.
    command.env("ACTION_REPOSITORY", "owner/repository").env("GITHUB_ACTIONS", "true");
    command
}
