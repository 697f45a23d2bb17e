//! Woodpecker: a log and nothing else. Older versions also call themselves Drone.

use super::{Lookup, Provider};

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
}
