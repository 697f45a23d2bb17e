//! What `exec` tells a CI, and where findings come from.

use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::ci::matcher::builtin;
use crate::ci::provider;

/// The word for what is found out, and the words for everything and nothing.
pub const AUTO: &str = "auto";
pub const ALL: &str = "all";
pub const NONE: &str = "none";

#[derive(Debug, Args)]
#[command(next_help_heading = "Annotations")]
pub struct CiArgs {
    /// Whose words to use for annotations and groups [default: those of the CI that this runs in]
    #[arg(long, value_name = "CI", default_value = AUTO, hide_default_value = true, value_parser = systems())]
    pub ci: String,
    #[command(flatten)]
    pub find: FindArgs,
    /// Write all findings as SARIF (GitHub's code scanning)
    #[arg(long, value_name = "FILE")]
    pub report_sarif: Option<PathBuf>,
    /// Write how the command ended as JUnit's XML
    #[arg(long, value_name = "FILE")]
    pub report_junit: Option<PathBuf>,
    /// Write all findings as a Code Quality report (GitLab)
    #[arg(long, value_name = "FILE")]
    pub report_codequality: Option<PathBuf>,
    /// Write all findings for the plugin warnings-ng (Jenkins)
    #[arg(long, value_name = "FILE")]
    pub report_warnings: Option<PathBuf>,
    /// Fold the command's output in the CI's log, under this title
    #[arg(long, value_name = "TITLE")]
    pub group: Option<String>,
    /// Keep the CI from obeying what the command prints
    #[arg(long)]
    pub fence_commands: bool,
    /// Add how it ended to a file as NAME=VALUE lines, such as GITHUB_OUTPUT takes
    #[arg(long, value_name = "FILE")]
    pub outputs: Option<PathBuf>,
    /// Add a summary in Markdown to a file [default: where the CI shows one]
    #[arg(long, value_name = "FILE")]
    pub summary: Option<PathBuf>,
}

/// Where findings come from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Annotations")]
pub struct FindArgs {
    /// Whose errors and warnings to find in the output, separated by commas: all, none, or tools
    /// [default: all in a CI, for a report and for annotate, else none]
    #[arg(long, value_name = "TOOLS", value_delimiter = ',', value_parser = matchers(), hide_possible_values = true)]
    pub matchers: Vec<String>,
    /// A further problem matcher in GitHub's format, repeatable; the last one is asked first
    #[arg(long, value_name = "FILE")]
    pub matcher: Vec<PathBuf>,
    /// JUnit and SARIF files that the command writes and that are annotated too: a path, or a pattern
    /// with * and ?, repeatable
    #[arg(long, value_name = "GLOB")]
    pub report: Vec<String>,
}

/// The names of systems.
pub fn systems() -> PossibleValuesParser {
    PossibleValuesParser::new([AUTO, NONE].into_iter().chain(provider::names()))
}

fn matchers() -> PossibleValuesParser {
    PossibleValuesParser::new([ALL, NONE].into_iter().chain(builtin::names()))
}
