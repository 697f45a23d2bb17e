//! What it costs to find out what the host can do: all of it, and the part that `exec` asks.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::Result;
use sekexe_ci::detect::namespaces::{probe, probe_cached};

use crate::measure::{self, Bench, Contender, seconds};
use crate::table::{Bar, Line, Measure};

const PATH: &str = "/usr/bin:/bin";

const ALL: Measure = Measure { what: "detect", unit: "ms", bar: Some(Bar::AtMost(1500.0)), peers: &[] };
const NAMESPACES: Measure = Measure {
    what: "namespaces tried",
    unit: "ms",
    bar: Some(Bar::AtMost(3.0)),
    peers: &[("unshare", Some(Bar::TimesPeer(1.0)))],
};
const REMEMBERED: Measure =
    Measure { what: "namespaces remembered", unit: "ms", bar: Some(Bar::AtMost(1.0)), peers: &[] };

/// Measures it. The peer is the program that everybody tries it with.
pub fn run(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let milliseconds = |what: &mut dyn FnMut() -> Result<()>| Ok(1000.0 * seconds(what)?);
    let cache = bench.path("namespaces");
    let mut detect = bench.sekexe.command("detect");
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "--net"]);
    unshare.args(["--ipc", "--uts", "--cgroup", "--time", "true"]);
    let path = OsStr::new(PATH);
    let contenders = vec![
        Contender::of("all", ALL.what, move || milliseconds(&mut || measure::run(&mut detect).map(drop))),
        Contender::of("tried", NAMESPACES.what, move || {
            milliseconds(&mut || {
                probe(path);
                Ok(())
            })
        }),
        Contender::of("unshare", NAMESPACES.what, move || {
            milliseconds(&mut || measure::run(&mut unshare).map(drop))
        }),
        Contender::of("remembered", REMEMBERED.what, move || {
            milliseconds(&mut || {
                probe_cached(path, Some(&cache));
                Ok(())
            })
        }),
    ];
    let medians = bench.take_turns("detect", contenders);
    let lines = [(ALL, "all"), (NAMESPACES, "tried"), (REMEMBERED, "remembered")];
    Ok(lines.iter().flat_map(|(measure, ours)| measure.lines(&medians, ours)).collect())
}
