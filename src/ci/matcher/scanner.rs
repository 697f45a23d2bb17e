//! Looks at the lines of a script's two streams.
//!
//! As for GitHub's runner each stream has its own half-finished matches, the newest matcher is asked
//! first, and the first one to match a line has it.

use anyhow::Result;

use super::Found;
use super::command::Command;
use super::format::{Matcher, Property};
use super::gate::Gate;
use super::lines::{Lines, without_orders};
use super::regexp::Regexp;
use super::running::{Running, Said};
use crate::ci::annotation::Level;

/// Findings kept; more are counted. Nobody shows as many, and a script may print for hours.
const KEPT: usize = 5000;
/// A line that may be a command for us.
const COMMANDS: &str =
    r"^\s*::(?i:add-matcher|remove-matcher|stop-commands)|##\[(?i:add-matcher|remove-matcher|stop-commands)";

/// Reads the matchers of the file that a script names.
pub type Load = Box<dyn Fn(&str) -> Result<Vec<Matcher>>>;

/// What to do with a script's commands about matchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obey {
    /// They are bytes like any other.
    Nothing,
    /// They are obeyed.
    Everything,
    /// The CI obeys them too: what it takes over is no longer looked for here.
    Leaving,
}

/// Looks at what is printed.
pub struct Scanner {
    matchers: Vec<Matcher>,
    commands: Regexp,
    gate: Gate,
    streams: [Stream; 2],
    obey: Obey,
    load: Load,
    /// The word that lets commands be obeyed again.
    stopped: Option<String>,
    found: Vec<Found>,
    uncounted: [usize; 3],
    complaints: Vec<String>,
}

#[derive(Default)]
struct Stream {
    lines: Lines,
    running: Vec<Running>,
    /// Whether one of them waits for the next line.
    busy: bool,
    plain: Vec<u8>,
}

impl Scanner {
    /// One that begins with these matchers.
    pub fn new(matchers: Vec<Matcher>, obey: Obey, load: Load) -> Result<Self> {
        let commands = Regexp::try_from(COMMANDS.to_owned()).map_err(anyhow::Error::msg)?;
        let gate = gate(&matchers, &commands)?;
        let mut scanner = Self {
            matchers,
            commands,
            gate,
            streams: Default::default(),
            obey,
            load,
            stopped: None,
            found: Vec::new(),
            uncounted: [0; 3],
            complaints: Vec::new(),
        };
        scanner.forget();
        Ok(scanner)
    }

    /// Looks at bytes of standard output (0) or standard error (1).
    pub fn feed(&mut self, stream: usize, bytes: &[u8]) {
        let mut lines = std::mem::take(&mut self.streams[stream].lines);
        lines.feed(bytes, |line| self.take(stream, line));
        self.streams[stream].lines = lines;
    }

    /// Looks at what no line feed ended.
    pub fn finish(&mut self) {
        for stream in 0..self.streams.len() {
            let mut lines = std::mem::take(&mut self.streams[stream].lines);
            lines.finish(|line| self.take(stream, line));
            self.streams[stream].lines = lines;
        }
    }

    /// Whether a stream ended within a line.
    pub fn is_inside_a_line(&self) -> bool {
        self.streams.iter().any(|stream| stream.lines.is_inside())
    }

    /// Gives away what was found, how many of each level beyond that, and which of the script's
    /// commands could not be obeyed.
    pub fn take_found(&mut self) -> (Vec<Found>, [usize; 3], Vec<String>) {
        let Self { found, uncounted, complaints, .. } = self;
        (std::mem::take(found), std::mem::take(uncounted), std::mem::take(complaints))
    }

    fn take(&mut self, stream: usize, line: &[u8]) {
        let Self { gate, streams, matchers, .. } = self;
        let Stream { plain, running, busy, .. } = &mut streams[stream];
        let line = without_orders(line, plain);
        let passed = gate.pass(line);
        if passed.is_empty() && !*busy && self.stopped.is_none() {
            return;
        }
        let is_command = passed.last() == Some(&matchers.len());
        let mut complete = None;
        for (at, matcher) in matchers.iter().enumerate() {
            let first = passed.contains(&at);
            if !first && running[at].is_idle() {
                continue;
            }
            let Some(said) = running[at].advance(matcher, line, first) else { continue };
            running.iter_mut().enumerate().filter(|(other, _)| *other != at).for_each(|(_, r)| r.reset());
            complete = found(matcher, said);
            if complete.is_some() {
                break;
            }
        }
        *busy = !running.iter().all(Running::is_idle);
        if self.obey != Obey::Nothing && (is_command || self.stopped.is_some()) {
            let line = String::from_utf8_lossy(line).into_owned();
            if let Some(command) = Command::parse(&line) {
                self.obey(&command);
            }
        }
        match complete {
            Some(found) if self.found.len() < KEPT => self.found.push(found),
            Some(found) => self.uncounted[found.level as usize] += 1,
            None => {}
        }
    }

    fn obey(&mut self, command: &Command) {
        if let Some(token) = &self.stopped {
            if command.name.eq_ignore_ascii_case(token) {
                self.stopped = None;
            }
            return;
        }
        let changed = match command.name.as_str() {
            "stop-commands" => {
                self.stopped = Some(command.data.clone()).filter(|token| !token.is_empty());
                return;
            }
            "add-matcher" => (self.load)(&command.data).map(|mut added| {
                self.remove(|owner| added.iter().any(|new| owner.eq_ignore_ascii_case(&new.owner)));
                if self.obey == Obey::Everything {
                    added.append(&mut self.matchers);
                    self.matchers = added;
                }
            }),
            "remove-matcher" => match command.property("owner") {
                Some(gone) => {
                    self.remove(|owner| owner.eq_ignore_ascii_case(gone));
                    Ok(())
                }
                None => (self.load)(&command.data).map(|gone| {
                    self.remove(|owner| gone.iter().any(|matcher| owner.eq_ignore_ascii_case(&matcher.owner)))
                }),
            },
            _ => return,
        };
        let changed = changed.and_then(|()| gate(&self.matchers, &self.commands));
        match changed {
            Ok(gate) => self.gate = gate,
            Err(error) => self.complaints.push(format!("{}: {error:#}", command.name)),
        }
        self.forget();
    }

    fn remove(&mut self, gone: impl Fn(&str) -> bool) {
        self.matchers.retain(|matcher| !gone(&matcher.owner));
    }

    fn forget(&mut self) {
        for stream in &mut self.streams {
            stream.running = self.matchers.iter().map(Running::new).collect();
            stream.busy = false;
        }
    }
}

/// The gate for the first pattern of each matcher, and behind them for commands.
fn gate(matchers: &[Matcher], commands: &Regexp) -> Result<Gate> {
    let first = matchers.iter().map(|matcher| &matcher.patterns[0].regexp);
    Gate::new(first.chain([commands]).cloned().collect())
}

/// What a complete match says; nothing where it has no message or a severity that is none.
fn found(matcher: &Matcher, mut said: Said) -> Option<Found> {
    let mut get = |property: Property| {
        said[property as usize].take().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let number = |text: Option<String>| text?.parse().ok().filter(|number| *number > 0);
    let level = match get(Property::Severity) {
        Some(word) => Level::parse(&word)?,
        None => matcher.severity.unwrap_or(Level::Error),
    };
    Some(Found {
        owner: matcher.owner.clone(),
        level,
        message: get(Property::Message)?,
        code: get(Property::Code),
        file: get(Property::File),
        from_path: get(Property::FromPath),
        line: number(get(Property::Line)),
        column: number(get(Property::Column)),
        ..Found::default()
    })
}
