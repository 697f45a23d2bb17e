//! Travis CI: folds with their time.

use std::time::SystemTime;

use super::{Group, Lookup, Project, Provider, is_true, project};
use crate::ci::clock::nanoseconds;

/// Returns to the line's beginning and clears it, so that nobody reads the marker.
const CLEAR: &str = "\r\x1b[0K";

pub struct Travis;

impl Provider for Travis {
    fn name(&self) -> &'static str {
        "travis"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        is_true(lookup, "TRAVIS")
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Some("TRAVIS_BUILD_DIR")
    }

    fn open_group(&self, group: &Group<'_>) -> Option<String> {
        let Group { id, title, .. } = group;
        let title: String = title.chars().filter(|c| !c.is_control()).collect();
        Some(format!("travis_fold:start:{id}{CLEAR}travis_time:start:{id}{CLEAR}{title}\n"))
    }

    fn close_group(&self, group: &Group<'_>, now: SystemTime) -> Option<String> {
        let (start, finish) = (nanoseconds(group.opened), nanoseconds(now));
        let duration = finish.saturating_sub(start);
        let id = group.id;
        Some(format!(
            "travis_time:end:{id}:start={start},finish={finish},duration={duration}{CLEAR}travis_fold:end:{id}{CLEAR}\n"
        ))
    }

    fn project(&self, lookup: &Lookup<'_>) -> Project {
        let commit = lookup("TRAVIS_PULL_REQUEST_SHA").filter(|sha| !sha.is_empty());
        Project {
            repository: lookup("TRAVIS_REPO_SLUG"),
            commit: commit.or_else(|| lookup("TRAVIS_COMMIT")),
            pull_request: lookup("TRAVIS_PULL_REQUEST").as_deref().and_then(project::number),
            page: lookup("TRAVIS_JOB_WEB_URL"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_fold_tells_its_time() {
        let opened = SystemTime::UNIX_EPOCH + Duration::from_nanos(5);
        let group = Group { id: "step_1", title: "make test", opened };
        assert_eq!(
            Travis.open_group(&group).unwrap(),
            "travis_fold:start:step_1\r\x1b[0Ktravis_time:start:step_1\r\x1b[0Kmake test\n"
        );
        assert_eq!(
            Travis.close_group(&group, opened + Duration::from_nanos(10)).unwrap(),
            "travis_time:end:step_1:start=5,finish=15,duration=10\r\x1b[0Ktravis_fold:end:step_1\r\x1b[0K\n"
        );
    }
}
