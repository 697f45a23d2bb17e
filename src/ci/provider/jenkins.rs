//! Jenkins: annotations come from a file that the plugin warnings-ng reads (`--report-warnings`).

use super::{Lookup, Provider};

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
}
