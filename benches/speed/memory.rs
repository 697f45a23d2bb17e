//! Host memory that an idle guest holds: the proportional set size of all its processes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::libc;

use crate::debian::Debian;
use crate::measure::{Bench, Contender};
use crate::table::{Bar, Line, Measure};

const WHAT: &str = "memory of an idle guest";

const MEASURE: Measure = Measure {
    what: WHAT,
    unit: "MB",
    bar: Some(Bar::AtMost(40.0)),
    peers: &[("ours, 1 CPU", None), ("Debian's linux.uml", None)],
};

/// Says that it is there and does nothing until its input ends.
const IDLE: &str = "echo idle; read end || true";

/// Measures it.
pub fn run(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let sekexe = &bench.sekexe;
    let ours = |name: &str, cpus: &'static [&str]| {
        Contender::of(name, WHAT, move || idle(sekexe.exec().args(cpus).arg(IDLE)))
    };
    let mut contenders = vec![ours("ours", &[]), ours("ours, 1 CPU", &["--cpus=1"])];
    match Debian::new(&bench.options.debian, &bench.path("")) {
        Ok(debian) => {
            contenders
                .push(Contender::of("Debian's linux.uml", WHAT, move || idle(&mut debian.start(IDLE)?)));
        }
        Err(error) => bench.miss("Debian's linux.uml", &error),
    }
    let medians = bench.take_turns("memory", contenders);
    Ok(MEASURE.lines(&medians, "ours"))
}

/// Megabytes that a guest holds while its command waits.
fn idle(command: &mut Command) -> Result<f64> {
    let mut guest = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let held = wait_until_idle(&mut guest).and_then(|()| proportional_set(guest.id()));
    // Ends the command, and the guest with it.
    drop(guest.stdin.take());
    guest.wait()?;
    Ok(held? as f64 / 1e6)
}

fn wait_until_idle(guest: &mut Child) -> Result<()> {
    let output = guest.stdout.as_mut().context("a pipe")?;
    let mut lines = BufReader::new(output).lines();
    match lines.find(|line| line.as_ref().is_ok_and(|line| line.trim() == "idle")) {
        Some(_) => Ok(()),
        None => bail!("the guest ended before its command ran"),
    }
}

/// Bytes of a process and all its descendants.
fn proportional_set(process: u32) -> Result<u64> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(parent) = parent(process) {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut all = vec![process];
    let mut at = 0;
    while at < all.len() {
        all.extend(children.get(&all[at]).into_iter().flatten());
        at += 1;
    }
    all.into_iter().map(own_proportional_set).sum()
}

fn parent(process: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before it may contain spaces and parentheses.
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn own_proportional_set(process: u32) -> Result<u64> {
    let text = match fs::read_to_string(format!("/proc/{process}/smaps_rollup")) {
        // It ended since it was listed.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Ok(0),
        text => text.with_context(|| format!("read how much memory process {process} holds"))?,
    };
    // One that has ended and was not waited for has no such line.
    let Some(line) = text.lines().find_map(|line| line.strip_prefix("Pss:")) else { return Ok(0) };
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}
