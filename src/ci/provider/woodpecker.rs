//! Woodpecker: a log and nothing else. Older versions also call themselves Drone.

use super::{Lookup, Project, Provider, project};

pub struct Woodpecker;

impl Provider for Woodpecker {
    fn name(&self) -> &'static str {
        "woodpecker"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        lookup("CI").is_some_and(|name| name == "woodpecker")
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Some("CI_WORKSPACE")
    }

    fn project(&self, lookup: &Lookup<'_>) -> Project {
        Project {
            repository: lookup("CI_REPO"),
            commit: lookup("CI_COMMIT_SHA"),
            pull_request: lookup("CI_COMMIT_PULL_REQUEST").as_deref().and_then(project::number),
            page: lookup("CI_PIPELINE_URL"),
        }
    }
}
