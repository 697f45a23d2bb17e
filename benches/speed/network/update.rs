//! How long `apt-get update` takes, which is many small downloads and name lookups. Directories of its
//! own let an ordinary user run it on the host, too.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::measure::{self, Bench, Contender, Figures};
use crate::table::{Bar, Line, Measure};

const NATIVE: &str = "the host's own";
const PEERS: &[(&str, Option<Bar>)] = &[(NATIVE, Some(Bar::TimesPeer(1.5)))];

const NAMESPACES: Measure =
    Measure { what: "namespaces: apt-get update", unit: "s", bar: None, peers: PEERS };
const GUEST: Measure = Measure { what: "guest: apt-get update", unit: "s", bar: None, peers: PEERS };

/// Prints how many seconds it took.
const SCRIPT: &str = "set -e
at=$(mktemp -d); mkdir -p $at/lists/partial $at/cache
begun=$(date +%s.%N)
apt-get -qq -o Dir::State::lists=$at/lists -o Dir::Cache=$at/cache -o APT::Sandbox::User=$(id -un) update >&2
ended=$(date +%s.%N)
rm -rf $at
echo $begun $ended";

/// Measures it.
pub fn run(bench: &Bench<'_>) -> Vec<Line> {
    let native = || took(Command::new("sh").args(["-c", SCRIPT]));
    let ours = |isolation: &str| took(bench.sekexe.exec_in(isolation).args(["--", "sh", "-c", SCRIPT]));
    let contenders = vec![
        Contender::new(NATIVE, native),
        Contender::new("namespaces", || ours("namespaces")),
        Contender::new("guest", || ours("uml")),
    ];
    let medians = bench.take_turns("apt-get update", contenders);
    [NAMESPACES.lines(&medians, "namespaces"), GUEST.lines(&medians, "guest")].concat()
}

fn took(command: &mut Command) -> Result<Figures> {
    let output = measure::run(command.stdin(Stdio::null()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (begun, ended) = text.trim().split_once(' ').context("it said no times")?;
    let seconds = ended.parse::<f64>()? - begun.parse::<f64>()?;
    Ok(Figures::from([(NAMESPACES.what, seconds), (GUEST.what, seconds)]))
}
