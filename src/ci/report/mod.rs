//! Reports in the formats of others: those that a command's tools write, and those that we write.
//!
//! Reading is lenient, because every tool has its own idea of a format: what is understood counts.

pub mod code_quality;
pub mod junit;
pub mod sarif;
pub mod warnings;

use anyhow::{Result, bail};

use super::matcher::Found;

/// What a report says, in one of the formats that we read.
pub fn read(text: &str) -> Result<Vec<Found>> {
    match text.trim_start_matches('\u{feff}').trim_start().chars().next() {
        Some('{') => sarif::read(text),
        Some('<') => junit::read(text),
        _ => bail!("it is neither SARIF nor JUnit's XML"),
    }
}
