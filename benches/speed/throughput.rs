//! Bytes per second through standard output and standard input.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::guest::Sekexe;
use crate::measure::{self, Bench, Contender, Figures, seconds};
use crate::table::{Bar, Line, Measure};

const STDOUT: &str = "stdout to /dev/null";
const STDIN: &str = "stdin from a pipe";

const PEERS: &[(&str, Option<Bar>)] = &[("native cat", None)];

const MEASURES: [Measure; 2] = [
    Measure { what: STDOUT, unit: "MB/s", bar: Some(Bar::AtLeast(100.0)), peers: PEERS },
    Measure { what: STDIN, unit: "MB/s", bar: Some(Bar::AtLeast(50.0)), peers: PEERS },
];

/// Megabytes to carry.
const AMOUNT: u32 = 512;

/// Measures both. The guest's start-up is not part of it.
pub fn run(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let sekexe = &bench.sekexe;
    let contenders = vec![
        Contender::new("native cat", || {
            let both = rate(native()?);
            Ok(Figures::from([(STDOUT, both), (STDIN, both)]))
        }),
        Contender::new("ours", || {
            Ok(Figures::from([(STDOUT, rate(out_of(sekexe)?)), (STDIN, rate(into(sekexe)?))]))
        }),
    ];
    let medians = bench.take_turns("throughput", contenders);
    Ok(MEASURES.iter().flat_map(|measure| measure.lines(&medians, "ours")).collect())
}

fn rate(seconds: f64) -> f64 {
    f64::from(AMOUNT) / seconds
}

/// Seconds that a native `cat` takes.
fn native() -> Result<f64> {
    let mut source = zeroes()?;
    let output = source.stdout.take().context("a pipe")?;
    let time = seconds(|| measure::run(Command::new("cat").stdin(output).stdout(Stdio::null())))?;
    source.wait()?;
    Ok(time)
}

/// Seconds that a guest takes to write.
fn out_of(sekexe: &Sekexe) -> Result<f64> {
    let amount = format!("{AMOUNT}MB");
    let (time, _) = sekexe.timed(|exec| {
        exec.stdout(Stdio::null()).args(["--", "head", "-c", &amount, "/dev/zero"]);
    })?;
    Ok(time)
}

/// Seconds that a guest takes to read.
fn into(sekexe: &Sekexe) -> Result<f64> {
    let mut source = zeroes()?;
    let output = source.stdout.take().context("a pipe")?;
    let (time, _) = sekexe.timed(|exec| {
        exec.stdin(output).arg("cat > /dev/null");
    })?;
    source.wait()?;
    Ok(time)
}

fn zeroes() -> Result<Child> {
    let amount = format!("{AMOUNT}MB");
    let mut head = Command::new("head");
    Ok(head.args(["-c", &amount, "/dev/zero"]).stdout(Stdio::piped()).spawn()?)
}
