//! What may be typed. No I/O, no defaults that depend on the machine.

pub mod annotate;
pub mod ci;
pub mod detect;
pub mod exec;
pub mod execns;
pub mod kernel;
pub mod network;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Runs a CI step as root, in namespaces or in a guest kernel, as an ordinary user.
///
/// The step sees this machine's files, read-only below a throw-away layer, and may change the
/// current directory. Output, signals and the exit status pass through.
#[derive(Debug, Parser)]
#[command(name = "sekexe-ci", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// When to colour our own messages
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = "Output")]
    pub color: Color,
}

const EXAMPLES: &str = "\
Examples:
  sekexe-ci exec 'id -u; uname -r; exit 42'      a script; ends with 42
  sekexe-ci exec --ro -- make check              a program; even this directory is left alone
  sekexe-ci exec --root 'apt-get remove -y gcc'  root over this system's own files, thrown away
  sekexe-ci exec --kernel 6.1 --script ci/test.sh
  sekexe-ci shell                                a root shell in a machine
  sekexe-ci detect                               what this host can do, and why not more

Exit status: the command's own; 128+n if signal n ended it; 124 timeout; 125 sekexe-ci itself failed;
126 the command cannot be run; 127 it was not found.";

/// `exec` by itself. To describe every command takes longer than to start some machines.
#[derive(Debug, Parser)]
struct Exec {
    #[command(flatten)]
    args: exec::ExecArgs,
}

impl Cli {
    /// Parses what was typed.
    ///
    /// # Errors
    ///
    /// Whatever clap has to say, help and version included.
    pub fn parse_typed() -> Result<Self, clap::Error> {
        let mut words = std::env::args_os().skip(1);
        if words.next().is_some_and(|command| command == "exec") {
            // What it does not know, the whole parser judges.
            if let Ok(Exec { args }) = Exec::try_parse_from([OsString::from("exec")].into_iter().chain(words))
            {
                return Ok(Self { command: Command::Exec(Box::new(args)), color: Color::Auto });
            }
        }
        Self::try_parse()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a script or a program in a fresh machine
    Exec(Box<exec::ExecArgs>),
    /// Open an interactive root shell in a fresh machine
    Shell(Box<exec::ShellArgs>),
    /// Execute a program in fresh namespaces, with every other file closed
    Execns(execns::ExecnsArgs),
    /// Show what went wrong in a log: beside the code on GitHub, or in the words of the CI
    Annotate(Box<annotate::AnnotateArgs>),
    /// Show what this host can do, why not more, and what would change that
    Detect(detect::DetectArgs),
    /// Build, list, find and remove guest kernels
    Kernel(kernel::KernelArgs),
    /// Print shell completions
    Completions {
        /// The shell to complete for
        shell: Shell,
    },
    /// Write man pages, one for each command, into a directory
    Man {
        /// The directory
        directory: PathBuf,
    },
}
