//! `annotate`: what a log and reports say, beside the code on GitHub, or in the words of the CI.
//!
//! For commands that did not run under `exec`, and for jobs of other systems on a repository of
//! GitHub's, whose log GitHub does not read.

use std::fs::{self, File};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::face::{self, matchers, reports};
use super::{Environment, Messages, Status};
use crate::ci::annotation::{Annotation, Level};
use crate::ci::matcher::Obey;
use crate::ci::places::Places;
use crate::ci::provider::{Limits, PLAIN, Project, Provider};
use crate::ci::selection::{self, Selection};
use crate::ci::summary::{self, Span};
use crate::cli::annotate::AnnotateArgs;
use crate::github::{Access, Check, Comment, GitHub};
use crate::machine::hidden;

/// GitHub's own API.
const API: &str = "https://api.github.com";
/// What stands above a summary that nobody has named.
const TITLE: &str = "sekexe-ci";
/// How long a command took.
const TIME: &str = "time of the command";
/// Annotations of a check run. GitHub would take more, fifty at a time; nobody reads them.
const LIMITS: Limits = Limits { of_each_level: 500, of_a_job: 1000 };

/// Runs the command.
pub fn run(args: &AnnotateArgs, env: &Environment) -> Result<Status> {
    if args.logs.is_empty() && args.find.report.is_empty() && args.result.is_empty() {
        bail!("there is nothing to annotate; name a log, - for standard input, or files with --report");
    }
    let lookup = face::lookup(env);
    let provider = face::provider_for(&args.ci, env);
    let to_github = args.check.is_some() || args.comment.is_some();
    // Who cannot be told is found out before a long log is read.
    let target = if to_github { Some(Target::new(args, env, provider)?) } else { None };

    let messages = Messages::new(env);
    let ended = args.result.iter().map(|path| read_result(path)).collect::<Result<Vec<_>>>()?;
    let ended = Ended::together(ended);
    let workspace = provider.and_then(|ci| lookup(ci.workspace_variable()?)).map(PathBuf::from);
    let current_dir = std::env::current_dir().context("find the current directory")?;
    let hidden = hidden::existing(env.home.as_deref(), &current_dir, &[], &[]);
    let places = Places::new(workspace.as_deref(), &current_dir, hidden);
    let shown = target.is_none().then(|| provider.unwrap_or(PLAIN));
    let (all, more) = find(args, &places, shown.is_some_and(Provider::is_plain), messages)?;

    if let Some(provider) = shown {
        let found = selection::select(&all, more, provider.limits());
        for annotation in &found.shown {
            face::say(provider.stream(), &provider.annotation(annotation, env.color));
        }
        let page = provider.summary_variable().and_then(&lookup).filter(|path| !path.is_empty());
        if let (Some(page), Some(_)) = (page, &ended) {
            face::append(Path::new(&page), &markdown(TITLE, &found, ended.as_ref()))?;
        }
    }
    if let Some(target) = &target {
        target.tell(args, &selection::select(&all, more, LIMITS), ended.as_ref(), messages)?;
    }
    Ok(0)
}

/// Everything that the logs and the reports say, and how much more of each level.
fn find(
    args: &AnnotateArgs,
    places: &Places,
    show_source: bool,
    messages: Messages,
) -> Result<(Vec<Annotation>, [usize; 3])> {
    reports::check(&args.find.report)?;
    let (mut found, mut more, mut complaints) = Default::default();
    if let Some(scanner) = matchers::scanner(&args.find, true, Obey::Everything, places)? {
        let mut scanner = scanner.borrow_mut();
        let mut buffer = vec![0; 128 << 10];
        for path in &args.logs {
            let context = || format!("read the log {}", path.display());
            let mut log = open(path).with_context(context)?;
            loop {
                match log.read(&mut buffer).with_context(context)? {
                    0 => break,
                    count => scanner.feed(0, &buffer[..count]),
                }
            }
            scanner.finish();
        }
        (found, more, complaints) = scanner.take_found();
    }
    found.extend(reports::read(&args.find.report, places, None, &mut complaints));
    complaints.iter().for_each(|complaint| messages.warning(complaint));
    let all = found.into_iter().map(|found| places.annotate(found, show_source)).collect();
    Ok((selection::causes(all), more))
}

fn open(path: &Path) -> Result<Box<dyn Read>> {
    if path.as_os_str() != "-" {
        return Ok(Box::new(File::open(path)?));
    }
    if std::io::stdin().is_terminal() {
        bail!("standard input is a terminal; lead a command's output here");
    }
    Ok(Box::new(std::io::stdin().lock()))
}

/// How a command ended, from the file that `exec --result` wrote; or how several did.
struct Ended {
    failed: bool,
    /// In a few words.
    words: String,
    facts: Vec<(String, Option<String>)>,
    /// When it ran.
    spans: Vec<Span>,
}

impl Ended {
    /// All of them as one; nothing if there is none.
    fn together(mut all: Vec<Self>) -> Option<Self> {
        if all.len() < 2 {
            return all.pop();
        }
        let failed = all.iter().filter(|one| one.failed).count();
        let words = match failed {
            0 => format!("{} commands succeeded", all.len()),
            _ => format!("{failed} of {} commands failed", all.len()),
        };
        let mut facts = vec![("outcome".into(), Some(words.clone()))];
        for one in &all {
            let time = one.facts.iter().find(|(name, _)| name == TIME).and_then(|(_, time)| time.as_deref());
            let name = one.spans.first().map_or_else(String::new, |span| span.name.clone());
            facts.push((name, Some([one.words.as_str(), time.unwrap_or_default()].join(", "))));
        }
        let spans = all.into_iter().flat_map(|one| one.spans).collect();
        Some(Self { failed: failed > 0, words, facts, spans })
    }
}

fn read_result(path: &Path) -> Result<Ended> {
    let context = || format!("--result {}", path.display());
    let text = fs::read_to_string(path).with_context(context)?;
    let result: Value = serde_json::from_str(&text).with_context(context)?;
    let (Some(status), Some(kind)) = (result["exit_status"].as_u64(), result["outcome"]["kind"].as_str())
    else {
        bail!("--result {}: it is not what exec --result writes", path.display());
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let seconds = |value: &Value| value.as_f64().map(|ms| format!("{:.1} s", ms / 1000.0));
    let words = format!("{kind}, status {status}");
    let failed = status != 0;
    let times = &result["times"];
    let begin = times["began_unix_ms"].as_u64().unwrap_or(0);
    let span = Span {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        begin,
        end: begin + times["total_ms"].as_f64().unwrap_or(0.0) as u64,
        failed,
    };
    let facts = [
        ("outcome", Some(words.clone())),
        ("machine", text(&result["machine"]["kind"])),
        ("kernel", text(&result["kernel"]["release"]).filter(|release| !release.is_empty())),
        (TIME, seconds(&times["command_ms"])),
        ("time in all", seconds(&times["total_ms"])),
    ];
    let facts = facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(Ended { failed, words, facts, spans: vec![span] })
}

/// The last commit of the pull request that a job of GitHub's is about.
fn commit_of_event(path: &str) -> Option<String> {
    let event: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    event["pull_request"]["head"]["sha"].as_str().map(str::to_owned)
}

/// Whom to tell on GitHub, and as whom.
struct Target {
    api_url: String,
    token: String,
    repository: String,
    project: Project,
}

impl Target {
    fn new(args: &AnnotateArgs, env: &Environment, provider: Option<&'static dyn Provider>) -> Result<Self> {
        let lookup = face::lookup(env);
        let said = provider.map(|provider| provider.project(&lookup)).unwrap_or_default();
        let project = Project {
            repository: args.repository.clone().or(said.repository),
            commit: args
                .sha
                .clone()
                .or(said.commit)
                .or_else(|| commit_of_event(&lookup("GITHUB_EVENT_PATH")?)),
            pull_request: args.pull_request.or(said.pull_request),
            page: said.page,
        };
        let named = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let token = match &args.token_file {
            Some(path) => {
                let read = fs::read_to_string(path);
                let token = read.with_context(|| format!("--token-file {}", path.display()))?;
                Some(token.trim().to_owned())
                    .filter(|token| !token.is_empty())
                    .with_context(|| format!("--token-file {}: it is empty", path.display()))?
            }
            None => named("GITHUB_TOKEN").or_else(|| named("GH_TOKEN")).context(
                "there is no token: GITHUB_TOKEN is not set, nor GH_TOKEN; set one, or name a file with --token-file",
            )?,
        };
        let Some(repository) = project.repository.clone() else {
            bail!("this job does not say which repository it builds; name it with --repository OWNER/NAME");
        };
        if args.check.is_some() && project.commit.is_none() {
            bail!("--check: this job does not say which commit it builds; name it with --sha");
        }
        let api_url = args.api_url.clone().or_else(|| named("GITHUB_API_URL")).unwrap_or_else(|| API.into());
        Ok(Self { api_url, token, repository, project })
    }

    /// Tells it, and us where.
    fn tell(
        &self,
        args: &AnnotateArgs,
        found: &Selection,
        ended: Option<&Ended>,
        messages: Messages,
    ) -> Result<()> {
        let Self { api_url, token, repository, project } = self;
        let warn = |text: &str| messages.warning(text);
        let github = GitHub::new(&Access { api_url, token, repository }, &warn)?;
        let page = project.page.as_deref();
        let failed = ended.map_or(found.totals[Level::Error as usize] > 0, |ended| ended.failed);
        if let (Some(name), Some(sha)) = (args.check.as_deref(), project.commit.as_deref()) {
            // Annotations with a place stand beside the code.
            let unplaced: Vec<_> = found.shown.iter().filter(|one| one.place.is_none()).cloned().collect();
            let unplaced = Selection { shown: unplaced, totals: found.totals };
            let summary = markdown(name, &unplaced, ended);
            let url = github.check(&Check {
                name,
                sha,
                job: page.unwrap_or_default(),
                page,
                title: &title(found, ended),
                summary: &summary,
                failed,
                annotations: &found.shown,
            })?;
            messages.note(format_args!("check run {name}: {url}"));
        }
        match (args.comment.as_deref(), project.pull_request) {
            (None, _) => {}
            (Some(_), None) => messages.note("no comment: this job is not one of a pull request"),
            (Some(name), Some(pull_request)) => {
                let mut text = markdown(args.check.as_deref().unwrap_or(name), found, ended);
                if let Some(page) = page {
                    text.push_str(&format!("\n[The job]({page})\n"));
                }
                let url = github.comment(&Comment { name, pull_request, text: &text })?;
                messages.note(format_args!("comment on pull request {pull_request}: {url}"));
            }
        }
        Ok(())
    }
}

/// What is known of how it ended, what was found, and when which command ran where they were several.
fn markdown(name: &str, found: &Selection, ended: Option<&Ended>) -> String {
    let only = vec![("outcome".to_owned(), Some(title(found, ended)))];
    let facts = ended.map_or(only, |ended| ended.facts.clone());
    let facts: Vec<_> = facts.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let timeline = ended.map(|ended| summary::timeline(&ended.spans)).unwrap_or_default();
    summary::markdown(name, &facts, found) + &timeline
}

/// How it ended and how much was found, in a few words.
fn title(found: &Selection, ended: Option<&Ended>) -> String {
    let parts = ended.map(|ended| ended.words.clone()).into_iter().chain(summary::counts(found.totals));
    let title = parts.collect::<Vec<_>>().join("; ");
    if title.is_empty() { "nothing found".into() } else { title }
}
