//! What single operations cost a program: in the guest, natively, in other kernels.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};

use crate::measure::{self, Bench, Contender, Figures};
use crate::table::{Bar, Line, Measure};

/// The program that does the operations, and says what each cost.
const SOURCE: &str = include_str!("syscalls.c");

const PEERS: &[(&str, Option<Bar>)] =
    &[("native", None), ("ours, 1 CPU", None), ("7.3 unpatched", None), ("Debian's linux.uml", None)];

const MEASURES: [Measure; 5] = [
    Measure { what: "getppid", unit: "µs", bar: Some(Bar::AtMost(10.0)), peers: PEERS },
    Measure { what: "pipe write+read", unit: "µs", bar: None, peers: PEERS },
    Measure { what: "page fault", unit: "µs", bar: Some(Bar::AtMost(30.0)), peers: PEERS },
    Measure { what: "fork+exit+wait", unit: "µs", bar: None, peers: PEERS },
    Measure { what: "fork+exec of true", unit: "µs", bar: Some(Bar::AtMost(3500.0)), peers: PEERS },
];

const NATIVE: &[(&str, Option<Bar>)] = &[("native", Some(Bar::TimesPeer(1.05)))];

/// The same in namespaces, where the kernel is the host's: its name there, and the measure.
const IN_NAMESPACES: [(&str, Measure); 5] = [
    ("getppid", beside_native("getppid, namespaces")),
    ("pipe write+read", beside_native("pipe write+read, namespaces")),
    ("page fault", beside_native("page fault, namespaces")),
    ("fork+exit+wait", beside_native("fork+exit+wait, namespaces")),
    ("fork+exec of true", beside_native("fork+exec of true, namespaces")),
];

const fn beside_native(what: &'static str) -> Measure {
    Measure { what, unit: "µs", bar: None, peers: NATIVE }
}

/// Measures them.
pub fn run(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let program = compile(bench.sekexe.work())?;
    let program = program.as_path();
    let sekexe = &bench.sekexe;
    let guest = |name: &str, options: Vec<String>| {
        Contender::new(name, move || {
            parse(&measure::run(sekexe.exec().args(&options).arg("--").arg(program))?)
        })
    };
    let kernel = |path: &Path| vec![format!("--kernel={}", path.display())];
    // For both comparisons: what the figure is called beside namespaces is another name of it.
    let both = |figures: Figures| -> Figures {
        let named =
            IN_NAMESPACES.iter().filter_map(|(name, measure)| Some((measure.what, *figures.get(name)?)));
        named.collect::<Vec<_>>().into_iter().chain(figures.clone()).collect()
    };
    let native =
        Contender::new("native", move || Ok(both(parse(&measure::run(&mut Command::new(program))?)?)));
    let namespaces = Contender::new("namespaces", move || {
        Ok(both(parse(&measure::run(sekexe.exec_in("namespaces").arg("--").arg(program))?)?))
    });
    let mut contenders = vec![
        native,
        namespaces,
        guest("ours", vec![]),
        guest("ours, 1 CPU", vec!["--cpus=1".into()]),
        guest("Debian's linux.uml", kernel(&bench.options.debian)),
    ];
    contenders.extend(bench.options.stock.iter().map(|path| guest("7.3 unpatched", kernel(path))));
    let medians = bench.take_turns("syscalls", contenders);
    let mut lines: Vec<Line> = MEASURES.iter().flat_map(|measure| measure.lines(&medians, "ours")).collect();
    lines.extend(IN_NAMESPACES.iter().flat_map(|(_, measure)| measure.lines(&medians, "namespaces")));
    Ok(lines)
}

fn compile(place: &Path) -> Result<PathBuf> {
    let (source, program) = (place.join("syscalls.c"), place.join("syscalls"));
    fs::write(&source, SOURCE)?;
    measure::run(Command::new("cc").args(["-O2", "-static", "-o"]).args([&program, &source]))
        .context("compile the program that does the operations")?;
    Ok(program)
}

/// Reads lines of a name, a tab and microseconds.
fn parse(output: &Output) -> Result<Figures> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut figures = Figures::new();
    for (what, value) in text.lines().filter_map(|line| line.split_once('\t')) {
        let known = MEASURES.iter().find(|measure| measure.what == what).context("an unknown measure")?;
        figures.insert(known.what, value.parse()?);
    }
    Ok(figures)
}
