//! Problem matchers: they find errors and warnings of tools in what a script prints.
//!
//! The format and the rules are those of GitHub's runner, so that its users' files do the same here.
//! Bytes are only looked at, after they were passed on; a script whose output is to be looked at asks
//! for that by being run in a CI, or with `--matchers`.

pub mod builtin;
mod command;
pub mod format;
mod gate;
mod lines;
mod regexp;
mod running;
mod scanner;

use super::annotation::Level;
pub use scanner::{Load, Obey, Scanner};

/// Something that a matcher found, or that a report says. Paths are the tool's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whose line it is.
    pub owner: String,
    /// How bad it is.
    pub level: Level,
    /// The tool's name for this kind of finding.
    pub code: Option<String>,
    /// What is said.
    pub message: String,
    /// The file.
    pub file: Option<String>,
    /// A path to a project, relative to whose directory the file's is.
    pub from_path: Option<String>,
    /// The line, from 1.
    pub line: Option<u32>,
    /// The column, from 1.
    pub column: Option<u32>,
    /// Where it ends, if a report says so.
    pub end_line: Option<u32>,
    /// Where in the last line.
    pub end_column: Option<u32>,
}

#[cfg(test)]
mod tests;
