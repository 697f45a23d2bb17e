//! Completions and man pages, generated from the same definitions that parse the command line.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use super::Status;
use crate::cli::Cli;

/// Prints completions for a shell.
pub fn completions(shell: Shell) -> Result<Status> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sekexe-ci", &mut text);
    std::io::stdout().write_all(&text).context("print the completions")?;
    Ok(0)
}

/// Writes a man page for each command.
pub fn man_pages(directory: &Path) -> Result<Status> {
    let context = || format!("write man pages to {}", directory.display());
    fs::create_dir_all(directory).with_context(context)?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(context)?;
    Ok(0)
}
