//! The CI systems: how each is recognised, and in which words it takes what we have to say.
//!
//! Pure: a provider turns an annotation, a group or a token into text; who writes it, and where, is
//! decided by `commands`. A new one is a file here and a line in [`ALL`]. What a system has no words
//! for is left out: its log then shows what a terminal would.

mod azure;
mod bitbucket;
mod buildkite;
mod circleci;
mod drone;
mod forgejo;
mod gitea;
mod github;
mod gitlab;
mod jenkins;
mod plain;
mod project;
mod teamcity;
mod travis;
mod woodpecker;

use std::time::SystemTime;

use super::annotation::Annotation;
pub use project::Project;

/// Asks for one of the environment's variables.
pub type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Every provider. The first that recognises its surroundings is taken, so those that also pretend
/// to be another stand before that other.
const ALL: [&dyn Provider; 13] = [
    &forgejo::Forgejo,
    &gitea::Gitea,
    &github::GitHub,
    &gitlab::GitLab,
    &travis::Travis,
    &azure::Azure,
    &buildkite::Buildkite,
    &circleci::CircleCi,
    &teamcity::TeamCity,
    &bitbucket::Bitbucket,
    &woodpecker::Woodpecker,
    &drone::Drone,
    // Agents of other systems are sometimes started by it.
    &jenkins::Jenkins,
];

/// The provider for a terminal, and for logs that nobody interprets.
pub const PLAIN: &dyn Provider = &plain::Plain;

/// The names for `--ci`, beside `none`.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|provider| provider.name()).chain([PLAIN.name()])
}

/// The provider of this name.
pub fn named(name: &str) -> Option<&'static dyn Provider> {
    ALL.into_iter().chain([PLAIN]).find(|provider| provider.name() == name)
}

/// Whose job this is, if it is one of a CI that is known.
pub fn detect(lookup: &Lookup<'_>) -> Option<&'static dyn Provider> {
    ALL.into_iter().find(|provider| provider.recognises(lookup))
}

/// How many annotations are shown; more are counted and summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of each level, in one step.
    pub of_each_level: usize,
    /// In one job.
    pub of_a_job: usize,
}

impl Limits {
    /// No limits.
    pub const NONE: Self = Self { of_each_level: usize::MAX, of_a_job: usize::MAX };
}

/// Which of our streams a system reads its words from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A folded part of the log: its name, what stands on the fold, and when it began and ended.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// Letters, digits and `_`; the same at both ends.
    pub id: &'a str,
    /// What people read.
    pub title: &'a str,
    /// When it was opened.
    pub opened: SystemTime,
}

/// A program that must be run to show annotations, with what it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// What it reads on standard input.
    pub input: String,
}

/// What is told when the command has ended.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// What was found, as far as it is shown.
    pub annotations: &'a [Annotation],
    /// The summary in Markdown.
    pub summary: &'a str,
    /// Whether the command failed.
    pub failed: bool,
}

/// A CI system.
pub trait Provider: Sync {
    /// Its name for `--ci`.
    fn name(&self) -> &'static str;

    /// Whether the job with these variables is one of its.
    fn recognises(&self, lookup: &Lookup<'_>) -> bool;

    /// The variable that holds the directory of the checked-out repository.
    fn workspace_variable(&self) -> Option<&'static str> {
        None
    }

    /// Variables that name files by which a step speaks to the system: it may write to them, whatever
    /// else it may.
    fn file_variables(&self) -> &'static [&'static str] {
        &[]
    }

    /// The variable that names a directory for a job's temporary files.
    fn temporary_variable(&self) -> Option<&'static str> {
        None
    }

    /// How many annotations it shows.
    fn limits(&self) -> Limits {
        Limits::NONE
    }

    /// Where it reads its words.
    fn stream(&self) -> Stream {
        Stream::Stderr
    }

    /// Whether it has no words for annotations, so that they stand in the log as people read them, with
    /// the line of code in question.
    fn is_plain(&self) -> bool {
        true
    }

    /// An annotation, ending with a newline.
    fn annotation(&self, annotation: &Annotation, color: bool) -> String {
        plain::render(annotation, color)
    }

    /// What opens a group, with its newline.
    fn open_group(&self, _group: &Group<'_>) -> Option<String> {
        None
    }

    /// What closes it.
    fn close_group(&self, _group: &Group<'_>, _now: SystemTime) -> Option<String> {
        None
    }

    /// What stops the system from obeying what it reads, and what lets it obey again. `token` is a
    /// word that nobody can guess.
    fn fence(&self, _token: &str) -> Option<[String; 2]> {
        None
    }

    /// Whether the system obeys what a command prints, so that it matters that it can be stopped.
    fn obeys_output(&self) -> bool {
        false
    }

    /// What keeps a value out of the log.
    fn mask(&self, _secret: &str) -> Option<String> {
        None
    }

    /// Whether the system obeys `::add-matcher::` of a script by itself.
    fn has_matchers(&self) -> bool {
        false
    }

    /// The variable that names a file for a summary in Markdown.
    fn summary_variable(&self) -> Option<&'static str> {
        None
    }

    /// What is built, where that may be a repository on GitHub.
    fn project(&self, _lookup: &Lookup<'_>) -> Project {
        Project::default()
    }

    /// Programs to run, where that is how a system is told.
    fn posts(&self, _told: &Told<'_>, _lookup: &Lookup<'_>) -> Vec<Post> {
        Vec::new()
    }
}

/// Whether a variable says yes.
fn is_true(lookup: &Lookup<'_>, name: &str) -> bool {
    lookup(name).is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected(variables: &[(&str, &str)]) -> Option<&'static str> {
        let lookup = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        detect(&lookup).map(|provider| provider.name())
    }

    #[test]
    fn each_system_is_known_by_its_own_variable() {
        for (variables, expected) in [
            (&[("GITHUB_ACTIONS", "true")][..], "github"),
            (&[("GITHUB_ACTIONS", "true"), ("GITEA_ACTIONS", "true")], "gitea"),
            (
                &[("GITHUB_ACTIONS", "true"), ("GITEA_ACTIONS", "true"), ("FORGEJO_ACTIONS", "true")],
                "forgejo",
            ),
            (&[("GITLAB_CI", "true")], "gitlab"),
            (&[("TRAVIS", "true")], "travis"),
            (&[("TF_BUILD", "True")], "azure"),
            (&[("BUILDKITE", "true")], "buildkite"),
            (&[("CIRCLECI", "true")], "circleci"),
            (&[("JENKINS_URL", "http://ci/"), ("BUILD_ID", "7")], "jenkins"),
            (&[("TEAMCITY_VERSION", "2025.3")], "teamcity"),
            (&[("BITBUCKET_BUILD_NUMBER", "7")], "bitbucket"),
            (&[("CI", "woodpecker")], "woodpecker"),
            (&[("CI", "woodpecker"), ("DRONE", "true")], "woodpecker"),
            (&[("DRONE", "true")], "drone"),
        ] {
            assert_eq!(detected(variables), Some(expected), "{variables:?}");
        }
        assert_eq!(detected(&[("CI", "true"), ("GITHUB_ACTIONS", "false")]), None);
    }

    #[test]
    fn jobs_of_other_systems_say_which_repository_they_build() {
        let project = |name: &str, variables: &[(&str, &str)]| {
            let lookup = |wanted: &str| {
                variables.iter().find(|(known, _)| *known == wanted).map(|(_, value)| (*value).to_owned())
            };
            let Project { repository, commit, pull_request, .. } = named(name).unwrap().project(&lookup);
            (repository.unwrap_or_default(), commit.unwrap_or_default(), pull_request)
        };
        let expected = ("o/r".to_owned(), "abc".to_owned(), Some(7));
        for (name, variables) in [
            (
                "travis",
                &[
                    ("TRAVIS_REPO_SLUG", "o/r"),
                    ("TRAVIS_COMMIT", "merge"),
                    ("TRAVIS_PULL_REQUEST_SHA", "abc"),
                    ("TRAVIS_PULL_REQUEST", "7"),
                ][..],
            ),
            (
                "buildkite",
                &[
                    ("BUILDKITE_REPO", "git@github.com:o/r.git"),
                    ("BUILDKITE_COMMIT", "abc"),
                    ("BUILDKITE_PULL_REQUEST", "7"),
                ],
            ),
            (
                "circleci",
                &[
                    ("CIRCLE_PROJECT_USERNAME", "o"),
                    ("CIRCLE_PROJECT_REPONAME", "r"),
                    ("CIRCLE_SHA1", "abc"),
                    ("CIRCLE_PULL_REQUEST", "https://github.com/o/r/pull/7"),
                ],
            ),
            (
                "jenkins",
                &[("GIT_URL", "https://github.com/o/r.git"), ("GIT_COMMIT", "abc"), ("CHANGE_ID", "7")],
            ),
            (
                "azure",
                &[
                    ("BUILD_REPOSITORY_NAME", "o/r"),
                    ("SYSTEM_PULLREQUEST_SOURCECOMMITID", "abc"),
                    ("SYSTEM_PULLREQUEST_PULLREQUESTNUMBER", "7"),
                ],
            ),
            ("drone", &[("DRONE_REPO", "o/r"), ("DRONE_COMMIT_SHA", "abc"), ("DRONE_PULL_REQUEST", "7")]),
            ("woodpecker", &[("CI_REPO", "o/r"), ("CI_COMMIT_SHA", "abc"), ("CI_COMMIT_PULL_REQUEST", "7")]),
        ] {
            assert_eq!(project(name, variables), expected, "{name}");
        }
        let merge =
            [("GITHUB_REPOSITORY", "o/r"), ("GITHUB_SHA", "abc"), ("GITHUB_REF", "refs/pull/7/merge")];
        assert_eq!(project("github", &merge), ("o/r".into(), String::new(), Some(7)));
        let push = [("GITHUB_SHA", "abc"), ("GITHUB_REF", "refs/heads/main")];
        assert_eq!(project("github", &push), (String::new(), "abc".into(), None));
        let branch =
            [("TRAVIS_PULL_REQUEST", "false"), ("TRAVIS_PULL_REQUEST_SHA", ""), ("TRAVIS_COMMIT", "abc")];
        assert_eq!(project("travis", &branch), (String::new(), "abc".into(), None));
    }

    #[test]
    fn every_name_leads_to_its_provider() {
        for name in names() {
            assert_eq!(named(name).map(|provider| provider.name()), Some(name));
        }
        assert!(named("cron").is_none());
    }
}
