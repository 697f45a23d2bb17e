//! CircleCI: its log has no commands; what it shows of tests it takes from `--report-junit`.

use super::{Lookup, Provider};

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
}
