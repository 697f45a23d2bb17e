//! `kernel build`, `list`, `path`, `remove`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
pub struct KernelArgs {
    #[command(subcommand)]
    pub command: KernelCommand,
}

#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// Build a guest kernel, unless the cache has it
    Build(BuildArgs),
    /// Show the versions there are, and what is in the cache
    List(ListArgs),
    /// Print the path of a kernel in the cache; status 1 if there is none
    Path(PathArgs),
    /// Remove kernels from the cache
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Such as 7.3, 6.12, 6.1, or auto [default: auto]
    #[arg(id = "kernel_version", value_name = "VERSION")]
    pub version: Option<String>,
    /// An unpacked kernel source, or a tarball of one, to use instead of a download
    #[arg(long, value_name = "DIR|TARBALL")]
    pub source: Option<PathBuf>,
    /// Which set of features: default, full, small
    #[arg(long, value_name = "PROFILE")]
    pub profile: Option<String>,
    /// Compiler processes at a time [default: one for each CPU]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Never install packages on this system; say what is missing instead
    #[arg(long)]
    pub no_install: bool,
    /// Build even if the cache has this kernel
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// How to print it
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    pub format: Format,
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people
    Text,
    /// One JSON object for programs
    Json,
}

#[derive(Debug, Args)]
pub struct PathArgs {
    /// Such as 7.3, 7.3/full, or auto
    #[arg(id = "kernel_version", value_name = "VERSION", default_value = "auto")]
    pub version: String,
    /// Which set of features: default, full, small
    #[arg(long, value_name = "PROFILE")]
    pub profile: Option<String>,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Such as 7.3 (every profile), or 7.3/full
    #[arg(
        id = "kernel_version",
        value_name = "VERSION",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub version: Option<String>,
    /// Remove every kernel, and all downloads
    #[arg(long)]
    pub all: bool,
}
