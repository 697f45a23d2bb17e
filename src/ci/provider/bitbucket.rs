//! Bitbucket Pipelines: a Code Insights report of the commit, with annotations beside the code.
//!
//! Inside a pipeline its API is reached through a proxy on the loopback, which adds the credentials;
//! `curl` is what every image of a pipeline has.

use serde_json::{Value, json};

use super::{Limits, Lookup, Post, Provider, Told};
use crate::ci::annotation::{Annotation, Level};

const PROXY: &str = "http://localhost:29418";
const API: &str = "http://api.bitbucket.org/2.0/repositories";
/// Annotations that one request may hold.
const OF_A_REQUEST: usize = 100;
/// Characters that a summary may have.
const LONGEST: usize = 450;

pub struct Bitbucket;

impl Provider for Bitbucket {
    fn name(&self) -> &'static str {
        "bitbucket"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        lookup("BITBUCKET_BUILD_NUMBER").is_some()
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Some("BITBUCKET_CLONE_DIR")
    }

    fn limits(&self) -> Limits {
        Limits { of_each_level: usize::MAX, of_a_job: 1000 }
    }

    fn posts(&self, told: &Told<'_>, lookup: &Lookup<'_>) -> Vec<Post> {
        let part = |name| lookup(name);
        let (Some(repository), Some(commit), Some(number)) =
            (part("BITBUCKET_REPO_FULL_NAME"), part("BITBUCKET_COMMIT"), part("BITBUCKET_BUILD_NUMBER"))
        else {
            return Vec::new();
        };
        let report = format!("{API}/{repository}/commit/{commit}/reports/sekexe-ci-{number}");
        let description = json!({
            "title": "sekexe-ci",
            "details": format!("{} findings", told.annotations.len()),
            "report_type": "BUG",
            "reporter": "sekexe-ci",
            "result": if told.failed { "FAILED" } else { "PASSED" },
        });
        let found: Vec<Value> =
            told.annotations.iter().enumerate().map(|(n, found)| annotation(n, found)).collect();
        let pieces = found
            .chunks(OF_A_REQUEST)
            .map(|piece| request("POST", &format!("{report}/annotations"), &Value::from(piece.to_vec())));
        std::iter::once(request("PUT", &report, &description)).chain(pieces).collect()
    }
}

fn annotation(number: usize, found: &Annotation) -> Value {
    let (first, rest) = found.message.split_once('\n').unwrap_or((&found.message, ""));
    let mut value = json!({
        "external_id": format!("sekexe-ci-{number}"),
        "annotation_type": "BUG",
        "summary": first.chars().take(LONGEST).collect::<String>(),
        "severity": match found.level {
            Level::Error => "HIGH",
            Level::Warning => "MEDIUM",
            Level::Notice => "LOW",
        },
    });
    if !rest.is_empty() {
        value["details"] = rest.chars().take(LONGEST).collect::<String>().into();
    }
    if let Some(place) = &found.place {
        value["path"] = place.file.as_str().into();
        place.line.into_iter().for_each(|line| value["line"] = line.into());
    }
    value
}

fn request(method: &str, url: &str, body: &Value) -> Post {
    let command = [
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "30",
        "--retry",
        "3",
        "--proxy",
        PROXY,
        "--request",
        method,
        "--header",
        "Content-Type: application/json",
        "--data-binary",
        "@-",
        url,
    ];
    Post { command: command.map(str::to_owned).into(), input: body.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ci::annotation::Place;

    fn lookup(name: &str) -> Option<String> {
        let value = match name {
            "BITBUCKET_REPO_FULL_NAME" => "team/project",
            "BITBUCKET_COMMIT" => "abc",
            "BITBUCKET_BUILD_NUMBER" => "7",
            _ => return None,
        };
        Some(value.into())
    }

    #[test]
    fn a_report_is_put_and_annotations_follow_in_pieces() {
        let place = Place { file: "a.c".into(), line: Some(3), ..Place::default() };
        let found = Annotation { place: Some(place), ..Annotation::new(Level::Error, "gcc", "no\nreally") };
        let annotations = vec![found; 250];
        let told = Told { annotations: &annotations, summary: "", failed: true };
        let posts = Bitbucket.posts(&told, &lookup);
        let url = |post: &Post| post.command.last().unwrap().clone();
        assert_eq!(posts.len(), 4);
        assert_eq!(
            url(&posts[0]),
            "http://api.bitbucket.org/2.0/repositories/team/project/commit/abc/reports/sekexe-ci-7"
        );
        assert!(url(&posts[1]).ends_with("/reports/sekexe-ci-7/annotations"));
        let last: Vec<Value> = serde_json::from_str(&posts[3].input).unwrap();
        assert_eq!(last.len(), 50);
        insta::assert_snapshot!(last[49], @r#"{"annotation_type":"BUG","details":"really","external_id":"sekexe-ci-249","line":3,"path":"a.c","severity":"HIGH","summary":"no"}"#);
    }

    #[test]
    fn outside_of_a_commits_pipeline_nobody_is_told() {
        let told = Told { annotations: &[], summary: "", failed: false };
        assert!(Bitbucket.posts(&told, &|_| None).is_empty());
    }
}
