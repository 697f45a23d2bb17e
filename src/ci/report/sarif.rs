//! SARIF 2.1.0, the format of analysis tools; GitHub's code scanning takes it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use serde_sarif::sarif;

use crate::ci::annotation::{Annotation, Level, Place};
use crate::ci::matcher::Found;

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";
/// The base of paths, by the name that GitHub knows.
const ROOT: &str = "%SRCROOT%";

#[derive(Deserialize)]
struct Log {
    runs: Vec<Run>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    tool: Value,
    #[serde(default)]
    results: Vec<Finding>,
    #[serde(default)]
    original_uri_base_ids: BTreeMap<String, Artifact>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    level: Option<String>,
    kind: Option<String>,
    rule_id: Option<String>,
    message: Value,
    #[serde(default)]
    locations: Vec<Location>,
    #[serde(default)]
    suppressions: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Location {
    physical_location: Option<Physical>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Physical {
    artifact_location: Artifact,
    #[serde(default)]
    region: Region,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Artifact {
    uri: Option<String>,
    uri_base_id: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Region {
    start_line: Option<u32>,
    start_column: Option<u32>,
    end_line: Option<u32>,
    end_column: Option<u32>,
}

/// What a tool's file says, but for what was found good or is suppressed.
pub fn read(text: &str) -> Result<Vec<Found>> {
    let log: Log = serde_json::from_str(text).context("read it as SARIF")?;
    Ok(log.runs.into_iter().flat_map(findings).collect())
}

fn findings(run: Run) -> impl Iterator<Item = Found> {
    let tool = run.tool["driver"]["name"].as_str().unwrap_or("sarif").to_owned();
    let bases = run.original_uri_base_ids;
    let counts = |finding: &Finding| {
        finding.suppressions.is_empty()
            && finding.kind.as_deref().is_none_or(|kind| kind == "fail")
            && finding.level.as_deref() != Some("none")
    };
    run.results.into_iter().filter(counts).filter_map(move |finding| {
        let physical = finding.locations.into_iter().next().and_then(|location| location.physical_location);
        let (artifact, region) = physical.map(|at| (at.artifact_location, at.region)).unwrap_or_default();
        let base = artifact.uri_base_id.and_then(|id| path(bases.get(&id)?.uri.as_deref()?));
        let file = artifact.uri.as_deref().and_then(path);
        Some(Found {
            owner: tool.clone(),
            level: match finding.level.as_deref() {
                Some("error") => Level::Error,
                Some("note") => Level::Notice,
                _ => Level::Warning,
            },
            code: finding.rule_id,
            message: finding.message["text"].as_str()?.to_owned(),
            file: file.map(|file| base.unwrap_or_default() + &file),
            line: region.start_line,
            column: region.start_column,
            end_line: region.end_line,
            end_column: region.end_column,
            ..Found::default()
        })
    })
}

/// The path that a URI means, if it means one.
fn path(uri: &str) -> Option<String> {
    let path = match uri.split_once("://") {
        Some(("file", rest)) => &rest[rest.find('/')?..],
        Some(_) => return None,
        None => uri.strip_prefix("file:").unwrap_or(uri),
    };
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, behind @ ..] = rest {
        let code = (*first == b'%').then(|| behind.get(..2)).flatten();
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8(bytes).ok()
}

/// A relative path as a URI.
fn uri(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let encode = |byte: u8| match is_plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    path.bytes().map(encode).collect()
}

/// All annotations, with a run for each tool.
pub fn write(annotations: &[Annotation]) -> Result<Value> {
    let mut tools: BTreeMap<&str, Vec<sarif::Result>> = BTreeMap::new();
    for annotation in annotations {
        tools.entry(&annotation.source).or_default().push(result(annotation));
    }
    if tools.is_empty() {
        // Without a run a reader would not know that nothing was found.
        tools.entry(crate::ci::events::SOURCE).or_default();
    }
    let run = |(name, results): (&str, Vec<sarif::Result>)| {
        let driver = sarif::ToolComponent::builder().name(name).build();
        sarif::Run::builder().tool(sarif::Tool::builder().driver(driver).build()).results(results).build()
    };
    let log = sarif::Sarif::builder()
        .schema(SCHEMA)
        .version(json!("2.1.0"))
        .runs(tools.into_iter().map(run).collect::<Vec<_>>())
        .build();
    serde_json::to_value(log).context("write SARIF")
}

fn result(annotation: &Annotation) -> sarif::Result {
    let mut result = sarif::Result::builder()
        .level(match annotation.level {
            Level::Error => sarif::ResultLevel::Error,
            Level::Warning => sarif::ResultLevel::Warning,
            Level::Notice => sarif::ResultLevel::Note,
        })
        .message(sarif::Message::builder().text(annotation.message.clone()).build())
        .build();
    result.rule_id = annotation.code.clone();
    result.locations = annotation.place.as_ref().map(|place| vec![location(place)]);
    result
}

fn location(place: &Place) -> sarif::Location {
    let artifact = sarif::ArtifactLocation::builder().uri(uri(&place.file)).uri_base_id(ROOT).build();
    let mut physical = sarif::PhysicalLocation::builder().artifact_location(artifact).build();
    physical.region = place.line.map(|line| {
        let mut region = sarif::Region::builder().start_line(i64::from(line)).build();
        region.start_column = place.column.map(i64::from);
        region.end_line = place.end_line.map(i64::from);
        region.end_column = place.end_column.map(i64::from);
        region
    });
    sarif::Location::builder().physical_location(physical).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let place = Place {
            file: "src/ä b%.c".into(),
            line: Some(3),
            column: Some(9),
            end_line: Some(4),
            end_column: Some(2),
        };
        let code = Some("E1".into());
        let annotation =
            Annotation { place: Some(place), code, ..Annotation::new(Level::Warning, "gcc", "no\nreally") };
        let other = Annotation::new(Level::Notice, "mypy", "all is well");
        let text = write(&[annotation, other]).unwrap().to_string();
        let [first, second] = &read(&text).unwrap()[..] else { panic!("{text}") };
        assert_eq!(
            (first.file.as_deref(), first.line, first.end_column),
            (Some("src/ä b%.c"), Some(3), Some(2))
        );
        assert_eq!((first.owner.as_str(), first.code.as_deref()), ("gcc", Some("E1")));
        assert_eq!(
            (second.level, second.message.as_str(), &second.file),
            (Level::Notice, "all is well", &None)
        );
        let empty = write(&[]).unwrap();
        assert_eq!(empty["runs"][0]["results"], json!([]));
    }

    #[test]
    fn paths_may_have_a_base_and_suppressed_findings_do_not_count() {
        let text = r#"{"runs": [{"tool": {"driver": {"name": "t"}},
            "originalUriBaseIds": {"R": {"uri": "file:///src/my%20repo/"}},
            "results": [
                {"message": {"text": "a"}, "level": "error", "locations": [{"physicalLocation":
                    {"artifactLocation": {"uri": "x.c", "uriBaseId": "R"}, "region": {"startLine": 7}}}]},
                {"message": {"text": "b"}, "kind": "pass"},
                {"message": {"text": "c"}, "suppressions": [{"kind": "inSource"}]}
            ]}]}"#;
        let [found] = &read(text).unwrap()[..] else { panic!("one counts") };
        assert_eq!((found.file.as_deref(), found.line), (Some("/src/my repo/x.c"), Some(7)));
        assert_eq!(path("https://example.org/a.c"), None);
    }
}
