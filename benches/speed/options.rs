//! What may be typed.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures sekexe-ci beside its peers.
#[derive(Debug, Parser)]
pub struct Options {
    /// What to measure [default: everything]
    topics: Vec<Topic>,
    /// Rounds; each figure is a median over them
    #[arg(long, default_value_t = 10)]
    pub rounds: usize,
    /// Guest kernel to measure instead of the one in the cache
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// The same kernel without our patches for speed
    #[arg(long, value_name = "PATH")]
    pub stock: Option<PathBuf>,
    /// The distribution's kernel
    #[arg(long, value_name = "PATH", default_value = "linux.uml")]
    pub debian: PathBuf,
    /// Image for `docker run`, made from a static busybox if it is missing
    #[arg(long, default_value = "sekexe-bench")]
    pub docker_image: String,
    /// How to write the table
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// A way to write the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Markdown,
    Json,
}

/// One of the things measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Topic {
    /// `exec -- true`, the whole process
    Startup,
    /// System calls, page faults, processes
    Syscalls,
    /// A compiler at work
    Compile,
    /// Standard input and output
    Throughput,
    /// Host memory of an idle guest
    Memory,
    /// Streams, connections, downloads, and what a network costs
    Network,
    /// Problem matchers over a large log
    Matchers,
    /// What the GitHub Action adds to a run
    Action,
    /// Finding out what the host can do
    Detect,
}

impl Options {
    /// What was asked for.
    pub fn topics(&self) -> Vec<Topic> {
        if self.topics.is_empty() { Topic::value_variants().to_vec() } else { self.topics.clone() }
    }
}
