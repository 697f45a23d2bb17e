//! `annotate`.

use std::path::PathBuf;

use clap::Args;

use super::ci::{AUTO, FindArgs, systems};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  make 2>&1 | tee log; sekexe-ci annotate --check build log
  sekexe-ci exec --report-sarif found.sarif --result result.json 'make test'
  sekexe-ci annotate --check tests --comment --report found.sarif --result result.json
  sekexe-ci annotate --comment --result build.json --result test.json

The token is taken from GITHUB_TOKEN, else GH_TOKEN. A check run takes one of a GitHub App, or of
Actions, with `checks: write`; a comment any with `pull-requests: write`.")]
pub struct AnnotateArgs {
    /// What commands printed, in files; - for standard input
    #[arg(value_name = "LOG")]
    pub logs: Vec<PathBuf>,
    #[command(flatten)]
    pub find: FindArgs,
    /// How a command ended, as exec --result has written it; else errors mean that it failed. Several
    /// give a timeline, in which each has its file's name. Without --check and --comment it goes where
    /// the CI shows a step's summary
    #[arg(long, value_name = "FILE", help_heading = "Annotations")]
    pub result: Vec<PathBuf>,
    /// In whose words to say it, where neither --check nor --comment is wanted
    #[arg(long, value_name = "CI", default_value = AUTO, hide_default_value = true, value_parser = systems(), help_heading = "Annotations")]
    pub ci: String,

    /// Create or update the check run of this name beside the commit, with annotations
    #[arg(long, value_name = "NAME", help_heading = "GitHub")]
    pub check: Option<String>,
    /// Keep one comment on the pull request up to date; NAME tells several of them apart
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "sekexe-ci", help_heading = "GitHub")]
    pub comment: Option<String>,
    /// The repository, as OWNER/NAME [default: as the CI says]
    #[arg(long, value_name = "REPOSITORY", help_heading = "GitHub")]
    pub repository: Option<String>,
    /// The commit [default: as the CI says]
    #[arg(long, value_name = "SHA", help_heading = "GitHub")]
    pub sha: Option<String>,
    /// The pull request [default: as the CI says]
    #[arg(long, value_name = "NUMBER", help_heading = "GitHub")]
    pub pull_request: Option<u64>,
    /// Read the token from a file
    #[arg(long, value_name = "FILE", help_heading = "GitHub")]
    pub token_file: Option<PathBuf>,
    /// Where the API is, for an Enterprise Server [default: GITHUB_API_URL, else
    /// https://api.github.com]
    #[arg(long, value_name = "URL", help_heading = "GitHub")]
    pub api_url: Option<String>,
}
