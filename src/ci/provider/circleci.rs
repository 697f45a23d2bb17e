//! CircleCI: its log has no commands; what it shows of tests it takes from `--report-junit`.

use super::{Lookup, Project, Provider, project};

pub struct CircleCi;

impl Provider for CircleCi {
    fn name(&self) -> &'static str {
        "circleci"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        super::is_true(lookup, "CIRCLECI")
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Some("CIRCLE_WORKING_DIRECTORY")
    }

    fn project(&self, lookup: &Lookup<'_>) -> Project {
        let name =
            || Some([lookup("CIRCLE_PROJECT_USERNAME")?, lookup("CIRCLE_PROJECT_REPONAME")?].join("/"));
        Project {
            repository: name(),
            commit: lookup("CIRCLE_SHA1"),
            pull_request: lookup("CIRCLE_PULL_REQUEST").as_deref().and_then(project::number),
            page: lookup("CIRCLE_BUILD_URL"),
        }
    }
}
