//! Drone: a log and nothing else.

use super::{Lookup, Project, Provider, project};

pub struct Drone;

impl Provider for Drone {
    fn name(&self) -> &'static str {
        "drone"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        super::is_true(lookup, "DRONE")
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Some("DRONE_WORKSPACE")
    }

    fn project(&self, lookup: &Lookup<'_>) -> Project {
        Project {
            repository: lookup("DRONE_REPO"),
            commit: lookup("DRONE_COMMIT_SHA"),
            pull_request: lookup("DRONE_PULL_REQUEST").as_deref().and_then(project::number),
            page: lookup("DRONE_BUILD_LINK"),
        }
    }
}
