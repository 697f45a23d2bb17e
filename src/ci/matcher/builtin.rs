//! The matchers that come with the program: one file for each tool, in GitHub's format, so that they
//! serve elsewhere too.

use anyhow::{Context, Result};

use super::format::{self, Matcher};

/// A tool's name, for `--matchers`, and its file.
macro_rules! files {
    ($($tool:literal),+ $(,)?) => {
        [$(($tool, include_str!(concat!("../matchers/", $tool, ".json")))),+]
    };
}

/// The first that matches a line has it. So the ones that know more about a line stand first, and
/// what many tools print (`file:line: error:`) stands last.
const FILES: [(&str, &str); 19] = files![
    "rustc",
    "go",
    "mypy",
    "ruff",
    "flake8",
    "pytest",
    "python",
    "yamllint",
    "eslint",
    "tsc",
    "shellcheck",
    "hadolint",
    "javac",
    "swift",
    "cmake",
    "ruby",
    "php",
    "make",
    "gcc",
];

/// Owners whose findings follow from another's: `make` fails because the compiler did.
pub const CONSEQUENCES: [&str; 1] = ["make"];

/// The names for `--matchers`.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// Those for which `wanted` holds.
pub fn load(wanted: impl Fn(&str) -> bool) -> Result<Vec<Matcher>> {
    let mut all = Vec::new();
    for (name, text) in FILES.iter().filter(|(name, _)| wanted(name)) {
        all.extend(format::parse(text).with_context(|| format!("the built-in matcher {name}"))?);
    }
    Ok(all)
}
