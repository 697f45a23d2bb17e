//! What this program costs, beside what others cost, in the same run.
//!
//! ```text
//! cargo bench --bench speed                        everything, the table of the README
//! cargo bench --bench speed -- startup syscalls    these only
//! cargo bench --bench speed -- --kernel ./linux --stock ./linux-unpatched
//! ```
//!
//! Everybody takes a turn in each round, so that a busy machine is busy for all of them; a figure
//! is the median over the rounds. A peer that is missing is named and left out. Guests are those
//! of an ordinary user: run it as one.

mod action;
mod compile;
mod debian;
mod detect;
mod guest;
mod matchers;
mod measure;
mod memory;
mod network;
mod options;
mod startup;
mod syscalls;
mod table;
mod throughput;

use anyhow::Result;
use clap::Parser;
use measure::Bench;
use options::{Format, Options, Topic};

fn main() -> Result<()> {
    let options = Options::parse();
    let bench = Bench::new(&options)?;
    let mut lines = Vec::new();
    for topic in options.topics() {
        lines.extend(match topic {
            Topic::Startup => startup::run(&bench)?,
            Topic::Syscalls => syscalls::run(&bench)?,
            Topic::Compile => compile::run(&bench)?,
            Topic::Throughput => throughput::run(&bench)?,
            Topic::Memory => memory::run(&bench)?,
            Topic::Network => network::run(&bench)?,
            Topic::Matchers => matchers::run(&bench)?,
            Topic::Action => action::run(&bench)?,
            Topic::Detect => detect::run(&bench)?,
        });
    }
    match options.format {
        Format::Text => table::print(&lines, table::Style::Aligned),
        Format::Markdown => table::print(&lines, table::Style::Markdown),
        Format::Json => println!("{}", serde_json::to_string_pretty(&lines)?),
    }
    bench.print_conditions();
    Ok(())
}
