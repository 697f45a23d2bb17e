//! Looking for errors and warnings in what a command prints: all built-in matchers over a large log.
//!
//! The log is what a build prints: mostly lines of no interest, and now and then what one of the tools
//! really says (`src/ci/matchers/samples`). Beside it `grep` looks for two words. And what it adds to
//! the way of a line from a command to whoever reads our output.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sekexe_ci::ci::matcher::{Obey, Scanner, builtin};

use crate::measure::{self, Bench, Contender, Figures, seconds};
use crate::table::{Bar, Line, Measure};

const SPEED: &str = "matchers over a log";
const DELAY: &str = "longest look at one write";
const ADDED: &str = "added to the way of a line";

const MEASURES: [Measure; 3] = [
    Measure { what: SPEED, unit: "MB/s", bar: Some(Bar::AtLeast(200.0)), peers: &[("grep -E", None)] },
    Measure { what: DELAY, unit: "ms", bar: Some(Bar::AtMost(5.0)), peers: &[] },
    Measure { what: ADDED, unit: "ms", bar: Some(Bar::AtMost(5.0)), peers: &[] },
];

/// Bytes of the log.
const SIZE: usize = 100_000_000;
/// Bytes that are looked at in one go: as many as are written in one.
const WRITE: usize = 64 << 10;
/// Lines that go to a command and back.
const TRIPS: u32 = 500;
/// Ordinary lines between two samples.
const BETWEEN: usize = 400;

/// Measures all of it.
pub fn run(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let path = bench.path("log");
    write_log(&path)?;
    let log = fs::read(&path)?;
    let contenders = vec![
        Contender::new("ours", || {
            let (whole, longest) = look(&log)?;
            let speed = rate(whole.as_secs_f64());
            Ok(Figures::from([(SPEED, speed), (DELAY, 1000.0 * longest.as_secs_f64())]))
        }),
        Contender::of("grep -E", SPEED, || {
            // Its count goes to a pipe: with /dev/null it would stop at the first match.
            let mut grep = Command::new("grep");
            grep.args(["-acE", "(error|warning): "]).arg(&path).env("LC_ALL", "C");
            Ok(rate(seconds(|| measure::run(&mut grep))?))
        }),
    ];
    let medians = bench.take_turns("matchers", contenders);
    let way = Contender::of("ours", ADDED, || Ok(trip(bench, "all")? - trip(bench, "none")?));
    let way = bench.take_turns("the way of a line", vec![way]);
    let [speed, delay, added] = &MEASURES;
    let lines = [speed.lines(&medians, "ours"), delay.lines(&medians, "ours"), added.lines(&way, "ours")];
    Ok(lines.concat())
}

/// How long a line takes to a command in namespaces and back, on average, in milliseconds.
fn trip(bench: &Bench<'_>, matchers: &str) -> Result<f64> {
    let mut command = bench.sekexe.exec_in("namespaces");
    command.args(["--network", "none", "--matchers", matchers, "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut input = child.stdin.take().context("no input")?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    let mut line = String::new();
    let mut trip = || -> Result<()> {
        // One that a matcher takes, so that it is looked at closely.
        input.write_all(b"src/main.c:12:3: error: this line comes again\n")?;
        line.clear();
        if output.read_line(&mut line)? == 0 {
            bail!("the command has ended");
        }
        Ok(())
    };
    trip()?;
    let begun = Instant::now();
    (0..TRIPS).try_for_each(|_| trip())?;
    let took = begun.elapsed();
    drop(input);
    child.wait()?;
    Ok(1000.0 * took.as_secs_f64() / f64::from(TRIPS))
}

fn rate(seconds: f64) -> f64 {
    SIZE as f64 / 1e6 / seconds
}

/// How long it takes in all, with what it takes to begin, and for the slowest write.
fn look(log: &[u8]) -> Result<(Duration, Duration)> {
    let begun = Instant::now();
    let load = Box::new(|_: &str| bail!("no script adds a matcher here"));
    let mut scanner = Scanner::new(builtin::load(|_| true)?, Obey::Everything, load)?;
    let mut longest = Duration::ZERO;
    for bytes in log.chunks(WRITE) {
        let one = Instant::now();
        scanner.feed(0, bytes);
        longest = longest.max(one.elapsed());
    }
    scanner.finish();
    if scanner.take_found().0.is_empty() {
        bail!("nothing was found");
    }
    Ok((begun.elapsed(), longest))
}

fn write_log(path: &Path) -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ci/matchers/samples");
    let names = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let mut names: Vec<_> = names.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    names.retain(|name| name.extension().is_some_and(|extension| extension == "log"));
    names.sort();
    let samples: Vec<Vec<u8>> = names.iter().map(|name| Ok(fs::read(name)?)).collect::<Result<_>>()?;
    let mut log = Vec::with_capacity(SIZE + (1 << 16));
    let mut number = 0;
    for sample in samples.iter().cycle() {
        for _ in 0..BETWEEN {
            ordinary(&mut log, number)?;
            number += 1;
        }
        log.extend_from_slice(sample);
        if log.len() >= SIZE {
            break;
        }
    }
    log.truncate(SIZE);
    Ok(fs::write(path, log)?)
}

/// A line of a build without news.
fn ordinary(log: &mut Vec<u8>, number: usize) -> std::io::Result<()> {
    match number % 6 {
        0 => writeln!(log, "  CC      drivers/net/ethernet/vendor{number}/main.o"),
        1 => writeln!(
            log,
            "   Compiling some-crate-{number} v1.{}.0 (/src/crates/some-crate-{number})",
            number % 40
        ),
        2 => writeln!(log, "test module_{number}::tests::a_test_with_a_longer_name ... ok"),
        3 => writeln!(
            log,
            "2026-11-22T10:{:02}:{:02}Z INFO  [worker-{}] request {number} took 12 ms",
            number % 60,
            number % 59,
            number % 8
        ),
        4 => writeln!(
            log,
            "gcc -O2 -Wall -Wextra -Iinclude -DVERSION={number} -c -o build/obj/file{number}.o src/lib/file{number}.c"
        ),
        _ => writeln!(
            log,
            "Get:{number} http://deb.example.org/debian stable/main amd64 libsomething{number} amd64 1.2-3 [{number} kB]"
        ),
    }
}
