//! Rounds in which everybody takes a turn, and medians over them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::guest::Sekexe;
use crate::options::Options;

/// Between two turns.
const REST: Duration = Duration::from_millis(50);

/// What one turn measured, by the name of the measure.
pub type Figures = BTreeMap<&'static str, f64>;

/// One of those that take turns.
pub struct Contender<'a> {
    name: String,
    turn: Box<dyn FnMut() -> Result<Figures> + 'a>,
}

impl<'a> Contender<'a> {
    /// Somebody whose turn measures several things.
    pub fn new(name: &str, turn: impl FnMut() -> Result<Figures> + 'a) -> Self {
        Self { name: name.into(), turn: Box::new(turn) }
    }

    /// Somebody whose turn measures one thing.
    pub fn of(name: &str, what: &'static str, mut turn: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self::new(name, move || Ok(Figures::from([(what, turn()?)])))
    }
}

/// Medians by contender and measure.
#[derive(Debug, Default)]
pub struct Medians(BTreeMap<String, Figures>);

impl Medians {
    /// A median, if that contender was there.
    pub fn get(&self, who: &str, what: &str) -> Option<f64> {
        self.0.get(who)?.get(what).copied()
    }
}

/// What all programs share: options, our program, a place for files.
pub struct Bench<'a> {
    pub options: &'a Options,
    pub sekexe: Sekexe,
    place: TempDir,
    missing: RefCell<Vec<String>>,
    loads: RefCell<Vec<f64>>,
}

impl<'a> Bench<'a> {
    pub fn new(options: &'a Options) -> Result<Self> {
        // On a disk, where a swap file and a big output belong.
        let place = tempfile::Builder::new().prefix("speed-").tempdir_in("/var/tmp")?;
        let sekexe = Sekexe::new(options.kernel.as_deref(), place.path())?;
        Ok(Self { options, sekexe, place, missing: RefCell::default(), loads: RefCell::default() })
    }

    /// A path in the directory that goes when the measuring is over.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Says that a peer is not there.
    pub fn miss(&self, peer: &str, error: &anyhow::Error) {
        self.missing.borrow_mut().push(format!("{peer}: {error:#}"));
    }

    /// Lets everybody take a turn in each round, after one that does not count. Whoever fails there
    /// is left out. Nobody is always the same one's successor, and nobody pays for what the one before
    /// has left the kernel to do: the end of a network takes it milliseconds.
    pub fn take_turns(&self, topic: &str, mut contenders: Vec<Contender<'_>>) -> Medians {
        contenders.retain_mut(|contender| match (contender.turn)() {
            Ok(_) => true,
            Err(error) => {
                self.miss(&format!("{topic}, {}", contender.name), &error);
                false
            }
        });
        let mut all: BTreeMap<String, BTreeMap<&'static str, Vec<f64>>> = BTreeMap::new();
        for round in 1..=self.options.rounds {
            eprint!("\r{topic}: round {round} of {} ", self.options.rounds);
            self.loads.borrow_mut().push(load());
            let count = contenders.len();
            for turn in 0..count {
                let contender = &mut contenders[(round + turn) % count];
                std::thread::sleep(REST);
                match (contender.turn)() {
                    Ok(figures) => {
                        let mine = all.entry(contender.name.clone()).or_default();
                        figures.into_iter().for_each(|(what, f)| mine.entry(what).or_default().push(f));
                    }
                    Err(error) => self.miss(&format!("{topic}, {}, round {round}", contender.name), &error),
                }
            }
        }
        eprintln!();
        let medians = |figures: BTreeMap<&'static str, Vec<f64>>| {
            figures.into_iter().map(|(what, values)| (what, median(values))).collect()
        };
        Medians(all.into_iter().map(|(who, figures)| (who, medians(figures))).collect())
    }

    /// Under which conditions the figures came to be.
    pub fn print_conditions(&self) {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let loads = self.loads.borrow();
        let highest = loads.iter().copied().fold(0.0, f64::max);
        let lowest = loads.iter().copied().fold(highest, f64::min);
        let date = humantime::format_rfc3339_seconds(SystemTime::now());
        eprintln!("{date}: {} ({cpus} CPUs), Linux {}", cpu_name(), host_release());
        eprintln!("medians of {} rounds, load average {lowest:.1} to {highest:.1}", self.options.rounds);
        self.missing.borrow().iter().for_each(|peer| eprintln!("left out: {peer}"));
    }
}

/// Seconds that something took.
pub fn seconds<T>(what: impl FnOnce() -> Result<T>) -> Result<f64> {
    let started = Instant::now();
    what()?;
    Ok(started.elapsed().as_secs_f64())
}

/// Runs a command that must succeed. What it writes is collected, unless it was given another place.
pub fn run(command: &mut Command) -> Result<Output> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("start {name}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{name}: {}: {}", output.status, stderr.lines().last().unwrap_or_default());
    }
    Ok(output)
}

/// The middle one, or what lies between the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|l| l.split_once(": ")).map_or("unknown CPU".into(), |(_, name)| name.into())
}

fn host_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into()
}
