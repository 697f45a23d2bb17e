//! What a run shows of itself to the CI that it runs in: reads the environment and the matcher files,
//! writes the words that [`crate::ci`] composes.
//!
//! Our words go to standard error, unless a system reads them elsewhere, and never into the middle of
//! a line of the command's.

mod fence;
pub mod matchers;
pub mod reports;

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use sekexe_init::protocol;

use super::Environment;
use crate::ci::annotation::{Annotation, Level};
use crate::ci::matcher::{Obey, Scanner};
use crate::ci::places::Places;
use crate::ci::provider::{self, Group, Limits, PLAIN, Provider, Stream, Told};
use crate::ci::{events, selection, summary};
use crate::cli::ci::{AUTO, NONE};
use crate::cli::exec::{ExecArgs, MachineArgs};
use crate::machine::hidden;
use crate::report::status;
use crate::session::Output;
use crate::step;
use reports::Reports;

/// The name of our group, which is the only one.
const GROUP: &str = "sekexe_ci";

/// The face, before and while the command runs.
pub struct Face {
    provider: Option<&'static dyn Provider>,
    scanner: Option<Rc<RefCell<Scanner>>>,
    stream: Stream,
    color: bool,
    group: Option<(String, SystemTime)>,
    token: Option<String>,
    summary: Option<PathBuf>,
    outputs: Option<PathBuf>,
    title: String,
    places: Places,
    reports: Reports,
    began: SystemTime,
}

/// What a face is told when the command has ended.
pub struct Ending {
    /// How, and what worked less well than asked for.
    pub events: Vec<Annotation>,
    /// Whether it failed.
    pub failed: bool,
    /// How it ended in words, unless it succeeded.
    pub line: Option<String>,
    /// From the command's start to its end.
    pub command_time: Duration,
    /// Facts for other steps.
    pub outputs: Vec<(&'static str, String)>,
    /// Facts for the summary.
    pub facts: Vec<(&'static str, Option<String>)>,
}

impl Face {
    /// The face that was asked for, or that the CI has; nothing where there is neither.
    pub fn new(args: &ExecArgs, env: &Environment) -> Result<Option<Self>> {
        let ExecArgs { ci: args, machine, .. } = args;
        let lookup = lookup(env);
        let reports = Reports::new(args)?;
        let find = &args.find;
        let findings = !find.matchers.is_empty() || !find.matcher.is_empty() || reports.are_wanted();
        let asked = findings || args.group.is_some();
        let provider = provider_for(&args.ci, env).or_else(|| (asked && args.ci == AUTO).then_some(PLAIN));
        let files = args.summary.is_some() || args.outputs.is_some();
        if provider.is_none() && !files && !asked {
            return Ok(None);
        }
        let workspace = provider.and_then(|ci| lookup(ci.workspace_variable()?)).map(PathBuf::from);
        let current_dir = std::env::current_dir().context("find the current directory")?;
        let hidden = hidden::existing(env.home.as_deref(), &current_dir, &machine.hide, &machine.show);
        let workdir =
            machine.workdir.as_ref().map_or(current_dir.clone(), |workdir| current_dir.join(workdir));
        let places = Places::new(workspace.as_deref(), &workdir, hidden);
        let token = args.fence_commands.then(|| provider.map(fence::token)).flatten().transpose()?.flatten();
        let summary = args.summary.clone();
        // Outside of a CI nobody who only wants a group has asked for findings.
        let in_ci = provider.is_some_and(|ci| ci.name() != PLAIN.name() || ci.name() == args.ci);
        let obey = match provider {
            _ if args.fence_commands => Obey::Nothing,
            Some(provider) if provider.has_matchers() => Obey::Leaving,
            _ => Obey::Everything,
        };
        Ok(Some(Self {
            scanner: matchers::scanner(find, in_ci || reports.are_written(), obey, &places)?,
            stream: match &token {
                Some(_) if !fence::is_file(std::io::stdout().as_fd()) => Stream::Stdout,
                _ => provider.map_or(Stream::Stderr, Provider::stream),
            },
            color: env.color,
            group: args.group.clone().map(|title| (title, SystemTime::now())),
            summary: summary
                .or_else(|| provider.and_then(|ci| lookup(ci.summary_variable()?)).map(PathBuf::from)),
            outputs: args.outputs.clone(),
            provider,
            token,
            reports,
            began: SystemTime::now(),
            title: args.group.clone().unwrap_or_else(|| "sekexe-ci".into()),
            places,
        }))
    }

    /// Says what comes before the command's output. Secrets that it is given are kept out of the log.
    pub fn open(&self, machine: &MachineArgs, env: &Environment) {
        let Some(provider) = self.provider else { return };
        for secret in secrets(machine, env) {
            self.say(&provider.mask(&secret).unwrap_or_default());
        }
        if let Some(group) = self.group() {
            self.say(&provider.open_group(&group).unwrap_or_default());
        }
        if let Some([stop, _]) = self.fence() {
            self.say(&stop);
        }
    }

    /// The same output, looked at on its way.
    pub fn watch(&self, stream: protocol::Stream, fd: OwnedFd) -> Output {
        let Some(scanner) = self.scanner.clone() else { return Output::Fd(fd) };
        Output::Watched(fd, Box::new(move |bytes| scanner.borrow_mut().feed(stream as usize, bytes)))
    }

    /// Says what comes after the command's output, before anything else is said.
    pub fn close(&self) {
        let Some(provider) = self.provider else { return };
        if self.scanner.as_ref().is_some_and(|scanner| scanner.borrow().is_inside_a_line()) {
            self.say("\n");
        }
        if let Some([_, resume]) = self.fence() {
            fence::wait_for_readers();
            self.say(&resume);
        }
        if let Some(group) = self.group() {
            self.say(&provider.close_group(&group, SystemTime::now()).unwrap_or_default());
        }
    }

    /// Shows what was found and how it ended, and writes the reports that were asked for. Returns what
    /// could not be shown.
    pub fn show(self, ending: &Ending, env: &Environment) -> Result<Vec<String>> {
        let (mut found, more, mut complaints) =
            self.scanner.as_ref().map_or_else(Default::default, |scanner| {
                let mut scanner = scanner.borrow_mut();
                scanner.finish();
                scanner.take_found()
            });
        found.extend(self.reports.read(&self.places, self.began, &mut complaints));
        let show_source = self.provider.is_some_and(Provider::is_plain);
        let mut all = ending.events.clone();
        all.extend(found.into_iter().map(|found| self.places.annotate(found, show_source)));
        let all = selection::causes(all);
        self.reports.write(&all, ending, &self.title)?;
        let limits = self.provider.map_or(Limits::NONE, Provider::limits);
        let selected = selection::select(&all, more, limits);
        let lookup = lookup(env);
        let markdown = summary::markdown(&self.title, &ending.facts, &selected);
        if let Some(provider) = self.provider {
            for annotation in &selected.shown {
                // In a log that nobody interprets our own messages say it already.
                if !provider.is_plain() || annotation.source != events::SOURCE {
                    self.say(&provider.annotation(annotation, self.color));
                }
            }
            let told = Told { annotations: &selected.shown, summary: &markdown, failed: ending.failed };
            complaints
                .extend(provider.posts(&told, &lookup).iter().filter_map(|post| run(post).err()).map(words));
        }
        if let Some(path) = &self.summary {
            complaints.extend(append(path, &markdown).err().map(words));
        }
        self.put_out(&ending.outputs)?;
        Ok(complaints)
    }

    /// Says that nothing came of it.
    pub fn fail(&self, error: &anyhow::Error) -> Result<()> {
        if let Some(provider) = self.provider.filter(|provider| !provider.is_plain()) {
            let annotation = Annotation::new(Level::Error, events::SOURCE, format!("{error:#}"));
            self.say(&provider.annotation(&annotation, self.color));
        }
        self.put_out(&[("exit-code", status::OURS.to_string()), ("outcome", "failed".into())])
    }

    fn put_out(&self, outputs: &[(&str, String)]) -> Result<()> {
        let Some(path) = &self.outputs else { return Ok(()) };
        let lines = outputs.iter().map(|(name, value)| format!("{name}={value}\n"));
        append(path, &lines.collect::<String>())
    }

    fn group(&self) -> Option<Group<'_>> {
        let (title, opened) = self.group.as_ref()?;
        Some(Group { id: GROUP, title, opened: *opened })
    }

    fn fence(&self) -> Option<[String; 2]> {
        self.provider?.fence(self.token.as_ref()?)
    }

    fn say(&self, text: &str) {
        say(self.stream, text);
    }
}

/// Tells the CI of an error where there is no face yet.
pub fn complain(error: &str, ci: &str, env: &Environment) {
    if let Some(provider) = provider_for(ci, env).filter(|provider| !provider.is_plain()) {
        let annotation = Annotation::new(Level::Error, events::SOURCE, error);
        say(provider.stream(), &provider.annotation(&annotation, false));
    }
}

/// Who is told what: the one that `--ci` names, or that this is a job of.
pub fn provider_for(ci: &str, env: &Environment) -> Option<&'static dyn Provider> {
    match ci {
        AUTO => provider::detect(&lookup(env)),
        NONE => None,
        name => provider::named(name),
    }
}

/// Paths that a step of this CI may change beside what it was given: the files by which it speaks, and
/// where `all` is set also the repository and the job's temporary files.
pub fn step_paths(ci: &str, all: bool, env: &Environment) -> Vec<PathBuf> {
    let Some(provider) = provider_for(ci, env) else { return Vec::new() };
    let more = [provider.workspace_variable(), provider.temporary_variable()];
    // Who has no such files has no step that is run on by others.
    let more = more.into_iter().flatten().filter(|_| all && !provider.file_variables().is_empty());
    let names = provider.file_variables().iter().copied().chain(more);
    names.filter_map(lookup(env)).filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

/// Asks for variables that are text.
pub fn lookup(env: &Environment) -> impl Fn(&str) -> Option<String> {
    |name| env.get(name).and_then(|value| value.to_str()).map(str::to_owned)
}

/// Writes to one of our streams.
pub fn say(stream: Stream, text: &str) {
    // Nobody is left to tell when the stream is gone.
    let _ = match stream {
        Stream::Stdout => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        }
        Stream::Stderr => std::io::stderr().write_all(text.as_bytes()),
    };
}

/// Values of variables whose names say that they are secrets.
fn secrets(machine: &MachineArgs, env: &Environment) -> Vec<String> {
    let values = machine.env.iter().filter_map(|given| {
        let given = given.to_str()?;
        let (name, value) = match given.split_once('=') {
            Some((name, value)) => (name, value),
            None => (given, env.get(given)?.to_str()?),
        };
        (step::is_secret(name) && !value.is_empty()).then(|| value.to_owned())
    });
    values.collect()
}

fn run(post: &provider::Post) -> Result<()> {
    let [program, arguments @ ..] = &post.command[..] else { return Ok(()) };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(post.input.as_bytes()));
    let status = child.wait().with_context(|| format!("wait for {program}"))?;
    if !status.success() {
        bail!("{program}: {status}");
    }
    written.with_context(|| format!("write to {program}"))
}

/// Adds to a file by which a step speaks to its CI.
pub fn append(path: &Path, text: &str) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("add to {}", path.display()))
}

fn words(error: anyhow::Error) -> String {
    format!("{error:#}")
}
