//! A check run: a mark beside a commit, with annotations beside the code.
//!
//! GitHub adds the annotations of each request to those that are there, at most fifty at a time, and
//! none can be taken back. So a pass reads which are there and sends those that are missing. A run of
//! the same job that has others, because something else was found then, is left as it is: the page
//! shows the newest of a name, and that is a new one.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::Write;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::api::Api;
use super::cut;
use crate::ci::annotation::{Annotation, Level};

/// Annotations that a request may hold.
const OF_A_REQUEST: usize = 50;
/// Most bytes of a summary.
const SUMMARY: usize = 65_535;
/// Most bytes of a message.
const MESSAGE: usize = 64 << 10;
/// Most characters of a title.
const TITLE: usize = 255;
/// What a token needs.
const RIGHT: &str = "one of a GitHub App, or of Actions, with `checks: write`";

/// What the check run shall show.
#[derive(Debug, Clone, Copy)]
pub struct Check<'a> {
    /// Its name beside the commit.
    pub name: &'a str,
    /// The commit.
    pub sha: &'a str,
    /// What tells this job from others; the same for each try.
    pub job: &'a str,
    /// Where there is more to read.
    pub page: Option<&'a str>,
    /// A few words.
    pub title: &'a str,
    /// Markdown.
    pub summary: &'a str,
    /// Whether the mark is a red one.
    pub failed: bool,
    /// What was found; without a place it belongs to the summary.
    pub annotations: &'a [Annotation],
}

/// A check run as the API tells of it.
#[derive(Deserialize)]
struct Run {
    id: u64,
    external_id: Option<String>,
    html_url: Option<String>,
}

/// An annotation in the API's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    path: String,
    start_line: u32,
    end_line: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_column: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_column: Option<u32>,
    annotation_level: String,
    message: String,
    title: Option<String>,
}

impl Note {
    /// Nothing for one without a place.
    fn new(annotation: &Annotation) -> Option<Self> {
        let place = annotation.place.as_ref()?;
        let start_line = place.line.unwrap_or(1);
        let end_line = place.end_line.unwrap_or(start_line).max(start_line);
        // Columns are taken for one line only.
        let start_column = place.column.filter(|_| start_line == end_line);
        let end_column = start_column.map(|start| place.end_column.unwrap_or(start).max(start));
        Some(Self {
            path: place.file.clone(),
            start_line,
            end_line,
            start_column,
            end_column,
            annotation_level: match annotation.level {
                Level::Error => "failure",
                Level::Warning => "warning",
                Level::Notice => "notice",
            }
            .into(),
            message: cut(&printable(&annotation.message), MESSAGE),
            title: Some(printable(&annotation.title()).chars().take(TITLE).collect()),
        })
    }

    /// What makes two the same.
    fn key(&self) -> (&str, u32, &str, &str, &str) {
        let title = self.title.as_deref().unwrap_or_default();
        (&self.path, self.start_line, &self.annotation_level, title, &self.message)
    }
}

/// Without what a database may refuse or change.
fn printable(text: &str) -> String {
    let text: String = text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect();
    let text = text.trim();
    if text.is_empty() { "-".into() } else { text.into() }
}

/// Brings the check run up to date and returns its page.
pub async fn post(api: &Api<'_>, check: &Check<'_>) -> Result<String> {
    let notes: Vec<Note> = check.annotations.iter().filter_map(Note::new).collect();
    let id = identity(check.job);
    let own = Cell::new(None);
    let what = format!("check run {}", check.name);
    api.persist(&what, RIGHT, async || {
        let (run, missing) = begin(api, check, &id, &notes, &own).await?;
        finish(api, check, &run, &missing).await
    })
    .await
}

/// The run to write to, and what it lacks.
async fn begin(
    api: &Api<'_>,
    check: &Check<'_>,
    id: &str,
    notes: &[Note],
    own: &Cell<Option<u64>>,
) -> octocrab::Result<(Run, Vec<Note>)> {
    let name = encode(check.name);
    let route = api.route(&format!(
        "commits/{}/check-runs?check_name={name}&filter=all&per_page=100",
        encode(check.sha)
    ));
    let runs: Vec<Run> = api.list(&route, "check_runs").await?;
    let ours = runs.into_iter().filter(|run| run.external_id.as_deref() == Some(id));
    if let Some(run) = ours.max_by_key(|run| run.id) {
        let route = api.route(&format!("check-runs/{}/annotations?per_page=100", run.id));
        let posted: Vec<Note> = api.list(&route, "").await?;
        // One that this call has begun holds nothing but our own, however it was changed on the way.
        let begun = own.get() == Some(run.id);
        let rest = || begun.then(|| notes.get(posted.len()..).unwrap_or_default().to_vec());
        if let Some(missing) = missing(notes, &posted).or_else(rest) {
            api.got_to(1 + posted.len());
            own.set(Some(run.id));
            return Ok((run, missing));
        }
    }
    let mut body = json!({
        "name": check.name,
        "head_sha": check.sha,
        "external_id": id,
        "status": "in_progress",
    });
    if let Some(page) = check.page {
        body["details_url"] = page.into();
    }
    let run: Run = api.post(&api.route("check-runs"), &body).await?;
    own.set(Some(run.id));
    Ok((run, notes.to_vec()))
}

/// Sends what is missing, and with the last of it how it ended.
async fn finish(api: &Api<'_>, check: &Check<'_>, run: &Run, missing: &[Note]) -> octocrab::Result<String> {
    let route = api.route(&format!("check-runs/{}", run.id));
    let conclusion = if check.failed { "failure" } else { "success" };
    let mut rest = missing;
    loop {
        let (batch, behind) = rest.split_at(rest.len().min(OF_A_REQUEST));
        rest = behind;
        let mut body = json!({
            "output": {
                "title": check.title.chars().take(TITLE).collect::<String>(),
                "summary": cut(check.summary, SUMMARY),
                "annotations": batch,
            },
        });
        if rest.is_empty() {
            body["status"] = "completed".into();
            body["conclusion"] = conclusion.into();
        }
        let run: Run = api.patch(&route, &body).await?;
        if rest.is_empty() {
            return Ok(run.html_url.unwrap_or_default());
        }
    }
}

/// Those that are not there yet; nothing if some are there that are not ours.
fn missing(notes: &[Note], posted: &[Note]) -> Option<Vec<Note>> {
    let mut there: HashMap<_, usize> = HashMap::new();
    posted.iter().for_each(|note| *there.entry(note.key()).or_default() += 1);
    let mut missing = Vec::new();
    for note in notes {
        match there.get_mut(&note.key()).filter(|count| **count > 0) {
            Some(count) => *count -= 1,
            None => missing.push(note.clone()),
        }
    }
    there.values().all(|count| *count == 0).then_some(missing)
}

/// What we are to GitHub: the same for each try of the same job.
fn identity(job: &str) -> String {
    format!("sekexe-ci:{}", digest(job))
}

/// A short name of a text.
pub fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Text as a part of an address.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => encoded.push(byte.into()),
            _ => write!(encoded, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ci::annotation::Place;

    fn note(line: u32, column: Option<u32>, end_line: Option<u32>) -> Note {
        let place = Place { file: "a.c".into(), line: Some(line), column, end_line, ..Place::default() };
        Note::new(&Annotation { place: Some(place), ..Annotation::new(Level::Error, "gcc", " no\0\r\n") })
            .unwrap()
    }

    #[test]
    fn an_annotation_is_in_the_apis_words() {
        let json = |note: &Note| serde_json::to_string(note).unwrap();
        insta::assert_snapshot!(json(&note(3, Some(7), None)), @r#"{"path":"a.c","start_line":3,"end_line":3,"start_column":7,"end_column":7,"annotation_level":"failure","message":"no","title":"gcc"}"#);
        insta::assert_snapshot!(json(&note(3, Some(7), Some(5))), @r#"{"path":"a.c","start_line":3,"end_line":5,"annotation_level":"failure","message":"no","title":"gcc"}"#);
        assert_eq!(Note::new(&Annotation::new(Level::Notice, "sekexe-ci", "so")), None);
    }

    #[test]
    fn what_is_there_is_not_missing() {
        let [one, two, three] = [1, 2, 3].map(|line| note(line, None, None));
        let all = [one.clone(), two.clone(), two.clone()];
        assert_eq!(missing(&all, &[]).unwrap().len(), 3);
        assert_eq!(missing(&all, std::slice::from_ref(&two)).unwrap(), [one.clone(), two.clone()]);
        assert_eq!(missing(&all, &all).unwrap(), []);
        assert_eq!(missing(&all, &[one, three]), None);
    }

    #[test]
    fn a_name_is_one_part_of_an_address() {
        assert_eq!(encode("a b/c?d&ü"), "a%20b%2Fc%3Fd%26%C3%BC");
    }
}
