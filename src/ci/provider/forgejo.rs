//! Forgejo Actions, which is Gitea's to a job, under a name of its own.

use std::time::SystemTime;

use super::{Group, Lookup, Provider, gitea::Gitea, is_true};
use crate::ci::annotation::Annotation;

pub struct Forgejo;

impl Provider for Forgejo {
    fn name(&self) -> &'static str {
        "forgejo"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        is_true(lookup, "FORGEJO_ACTIONS")
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Gitea.workspace_variable()
    }

    fn file_variables(&self) -> &'static [&'static str] {
        Gitea.file_variables()
    }

    fn temporary_variable(&self) -> Option<&'static str> {
        Gitea.temporary_variable()
    }

    fn is_plain(&self) -> bool {
        Gitea.is_plain()
    }

    fn annotation(&self, annotation: &Annotation, color: bool) -> String {
        Gitea.annotation(annotation, color)
    }

    fn open_group(&self, group: &Group<'_>) -> Option<String> {
        Gitea.open_group(group)
    }

    fn close_group(&self, group: &Group<'_>, now: SystemTime) -> Option<String> {
        Gitea.close_group(group, now)
    }

    fn fence(&self, token: &str) -> Option<[String; 2]> {
        Gitea.fence(token)
    }

    fn mask(&self, secret: &str) -> Option<String> {
        Gitea.mask(secret)
    }

    fn summary_variable(&self) -> Option<&'static str> {
        Gitea.summary_variable()
    }
}
