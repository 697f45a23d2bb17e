//! The network of machines: what it carries, what it takes, what it adds.

mod added;
mod idle;
mod streams;
mod update;

use anyhow::Result;

use crate::measure::Bench;
use crate::table::Line;

/// Measures all of it.
pub fn run(bench: &Bench<'_>) -> Result<Vec<Line>> {
    Ok([streams::run(bench)?, added::run(bench), idle::run(bench)?, update::run(bench)].concat())
}
