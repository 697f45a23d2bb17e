//! Drone: a log and nothing else.

use super::{Lookup, Provider};

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
}
