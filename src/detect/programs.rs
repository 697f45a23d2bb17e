//! Programs of other projects that could be of use.

use std::ffi::OsStr;
use std::path::PathBuf;

use serde::Serialize;

use super::Support;

/// Each with what it is for and the package that has it.
const PROGRAMS: [(&str, &str); 5] = [
    ("newuidmap", "uidmap"),
    ("newgidmap", "uidmap"),
    ("slirp4netns", "slirp4netns"),
    ("pasta", "passt"),
    ("slirp", "slirp"),
];

/// A program that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Where it is.
    pub path: Option<PathBuf>,
    /// Whether it is there.
    pub found: Support,
}

/// Looks below `path`.
pub fn probe(path: &OsStr) -> Vec<Program> {
    let find = |name| which::which_in_global(name, Some(path)).ok()?.next();
    let program = |(name, package)| {
        let path = find(name);
        let found = match path {
            Some(_) => Support::Yes,
            None => {
                let remedy = format!("apt-get install {package}");
                Support::no(format!("there is no {name} on PATH"), Some(&remedy))
            }
        };
        Program { name, path, found }
    };
    PROGRAMS.into_iter().map(program).collect()
}
