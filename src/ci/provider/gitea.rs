//! Gitea Actions: its runner passes GitHub's commands on to the log, where the web page colours them.

use std::time::SystemTime;

use super::{Group, Lookup, Provider, github, is_true};
use crate::ci::annotation::Annotation;

pub struct Gitea;

impl Provider for Gitea {
    fn name(&self) -> &'static str {
        "gitea"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        is_true(lookup, "GITEA_ACTIONS")
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Some("GITHUB_WORKSPACE")
    }

    fn file_variables(&self) -> &'static [&'static str] {
        github::GitHub.file_variables()
    }

    fn temporary_variable(&self) -> Option<&'static str> {
        github::GitHub.temporary_variable()
    }

    fn is_plain(&self) -> bool {
        false
    }

    fn annotation(&self, annotation: &Annotation, _color: bool) -> String {
        located(annotation)
    }

    fn open_group(&self, group: &Group<'_>) -> Option<String> {
        github::GitHub.open_group(group)
    }

    fn close_group(&self, group: &Group<'_>, now: SystemTime) -> Option<String> {
        github::GitHub.close_group(group, now)
    }

    fn fence(&self, token: &str) -> Option<[String; 2]> {
        github::GitHub.fence(token)
    }

    fn mask(&self, secret: &str) -> Option<String> {
        github::GitHub.mask(secret)
    }

    fn summary_variable(&self) -> Option<&'static str> {
        github::GitHub.summary_variable()
    }
}

/// GitHub's command with the place in its text too: the page shows the line of the log, and nothing
/// beside the code.
pub fn located(annotation: &Annotation) -> String {
    let Some(place) = &annotation.place else { return github::command(annotation) };
    let message = format!("{place}: {}", annotation.message);
    github::command(&Annotation { message, ..annotation.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ci::annotation::{Level, Place};

    #[test]
    fn the_place_stands_in_the_text() {
        let place = Place { file: "a.c".into(), line: Some(3), ..Place::default() };
        let annotation = Annotation { place: Some(place), ..Annotation::new(Level::Error, "gcc", "no") };
        insta::assert_snapshot!(located(&annotation), @"::error file=a.c,line=3,title=gcc::a.c:3: no");
    }
}
