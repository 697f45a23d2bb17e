//! Jenkins: annotations come from a file that the plugin warnings-ng reads (`--report-warnings`).

use super::{Lookup, Project, Provider, project};

pub struct Jenkins;

impl Provider for Jenkins {
    fn name(&self) -> &'static str {
        "jenkins"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        lookup("JENKINS_URL").is_some()
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Some("WORKSPACE")
    }

    fn project(&self, lookup: &Lookup<'_>) -> Project {
        Project {
            repository: lookup("GIT_URL").as_deref().and_then(project::repository),
            commit: lookup("GIT_COMMIT"),
            pull_request: lookup("CHANGE_ID").as_deref().and_then(project::number),
            page: lookup("BUILD_URL"),
        }
    }
}
