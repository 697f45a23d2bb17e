//! GitLab: collapsible sections. Annotations come from the reports that a job keeps as artifacts
//! (`--report-codequality`, `--report-junit`); the log shows them as a terminal would.

use std::time::SystemTime;

use super::{Group, Lookup, Project, Provider, is_true, project};
use crate::ci::clock::seconds;

pub struct GitLab;

impl Provider for GitLab {
    fn name(&self) -> &'static str {
        "gitlab"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        is_true(lookup, "GITLAB_CI")
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Some("CI_PROJECT_DIR")
    }

    fn open_group(&self, group: &Group<'_>) -> Option<String> {
        let began = seconds(group.opened);
        Some(format!("\x1b[0Ksection_start:{began}:{}\r\x1b[0K{}\n", group.id, one_line(group.title)))
    }

    fn close_group(&self, group: &Group<'_>, now: SystemTime) -> Option<String> {
        Some(format!("\x1b[0Ksection_end:{}:{}\r\x1b[0K\n", seconds(now), group.id))
    }

    /// Of a project that GitLab builds for GitHub; what it builds for itself is none of GitHub's.
    fn project(&self, lookup: &Lookup<'_>) -> Project {
        Project {
            repository: lookup("CI_EXTERNAL_PULL_REQUEST_TARGET_REPOSITORY"),
            commit: lookup("CI_EXTERNAL_PULL_REQUEST_SOURCE_BRANCH_SHA").or_else(|| lookup("CI_COMMIT_SHA")),
            pull_request: lookup("CI_EXTERNAL_PULL_REQUEST_IID").as_deref().and_then(project::number),
            page: lookup("CI_JOB_URL"),
        }
    }
}

/// A title may not break out of its line.
fn one_line(title: &str) -> String {
    title.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_section_has_the_same_name_at_both_ends() {
        let opened = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let group = Group { id: "step_1", title: "make\rtest\n", opened };
        let open = GitLab.open_group(&group).unwrap();
        assert_eq!(open, "\x1b[0Ksection_start:1000:step_1\r\x1b[0Kmaketest\n");
        let close = GitLab.close_group(&group, opened + Duration::from_secs(5)).unwrap();
        assert_eq!(close, "\x1b[0Ksection_end:1005:step_1\r\x1b[0K\n");
    }
}
