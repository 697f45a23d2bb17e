//! Buildkite: groups in the log, and one annotation above it, which `buildkite-agent` posts.

use super::{Group, Lookup, Post, Project, Provider, Told, is_true, project};

pub struct Buildkite;

impl Provider for Buildkite {
    fn name(&self) -> &'static str {
        "buildkite"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        is_true(lookup, "BUILDKITE")
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Some("BUILDKITE_BUILD_CHECKOUT_PATH")
    }

    /// A group ends where the next begins, so there is nothing that closes one.
    fn open_group(&self, group: &Group<'_>) -> Option<String> {
        Some(format!("--- {}\n", group.title.replace(['\r', '\n'], " ")))
    }

    fn posts(&self, told: &Told<'_>, _lookup: &Lookup<'_>) -> Vec<Post> {
        let style = if told.failed { "error" } else { "info" };
        // Of the same context, so that several commands of one step add to one annotation.
        let command = ["buildkite-agent", "annotate", "--append", "--context", "sekexe-ci", "--style", style];
        vec![Post { command: command.map(str::to_owned).into(), input: told.summary.to_owned() }]
    }

    fn project(&self, lookup: &Lookup<'_>) -> Project {
        let page = || Some(format!("{}#{}", lookup("BUILDKITE_BUILD_URL")?, lookup("BUILDKITE_JOB_ID")?));
        Project {
            repository: lookup("BUILDKITE_REPO").as_deref().and_then(project::repository),
            commit: lookup("BUILDKITE_COMMIT"),
            pull_request: lookup("BUILDKITE_PULL_REQUEST").as_deref().and_then(project::number),
            page: page(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_posted_by_the_agent() {
        let told = Told { annotations: &[], summary: "| a |", failed: true };
        let [post] = &Buildkite.posts(&told, &|_| None)[..] else { panic!("one program") };
        assert_eq!(
            post.command.join(" "),
            "buildkite-agent annotate --append --context sekexe-ci --style error"
        );
        assert_eq!(post.input, "| a |");
    }
}
