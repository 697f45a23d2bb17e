//! One file for each command. Only here is the environment read, are messages written, and are the
//! other modules wired together.

pub mod annotate;
pub mod detect;
pub mod exec;
pub mod execns;
pub mod extras;
mod face;
mod job;
pub mod kernel;
mod messages;
mod network;
mod progress;
pub mod shell;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Result;

use crate::cli::ci::AUTO;
use crate::cli::{Cli, Color, Command};
use crate::report::status;
pub use messages::Messages;

/// Exit status of this process.
pub type Status = u8;

/// What the commands take from the process's surroundings, read once.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Every variable.
    pub variables: Vec<(OsString, OsString)>,
    /// The user's home directory, if there is one.
    pub home: Option<PathBuf>,
    /// Where caches belong (`XDG_CACHE_HOME`, else below the home directory).
    pub cache_dir: Option<PathBuf>,
    /// Where programs are looked for.
    pub path: OsString,
    /// Where temporary files may go, best first.
    pub temporary_places: Vec<PathBuf>,
    /// Whether this is a CI job.
    pub is_ci: bool,
    /// Whether standard error is a terminal.
    pub stderr_is_terminal: bool,
    /// Whether our messages may be coloured.
    pub color: bool,
    /// Whether what is printed on standard output may be coloured.
    pub color_output: bool,
}

impl Environment {
    /// Reads it.
    pub fn read(color: Color) -> Self {
        let get = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let home = get("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        let absolute = |name| get(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
        let cache_dir = absolute("XDG_CACHE_HOME").or_else(|| Some(home.as_ref()?.join(".cache")));
        let stderr_is_terminal = std::io::stderr().is_terminal();
        let colored = |is_terminal| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                is_terminal && get("NO_COLOR").is_none() && get("TERM").is_none_or(|t| t != "dumb")
            }
        };
        Self {
            variables: env::vars_os().collect(),
            cache_dir,
            path: get("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()),
            temporary_places: temporary_places(get("TMPDIR"), absolute("XDG_RUNTIME_DIR")),
            is_ci: get("CI").is_some_and(|value| value != *"false" && value != *"0"),
            color: colored(stderr_is_terminal),
            color_output: colored(std::io::stdout().is_terminal()),
            stderr_is_terminal,
            home,
        }
    }

    /// One variable.
    pub fn get(&self, name: impl AsRef<OsStr>) -> Option<&OsStr> {
        let found = self.variables.iter().find(|(known, _)| known == name.as_ref());
        found.map(|(_, value)| value.as_os_str())
    }
}

/// A file as large as swap belongs on a disk, so `/var/tmp` comes before `/tmp`, which often is
/// memory.
fn temporary_places(chosen: Option<OsString>, runtime: Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(chosen) = chosen {
        return vec![chosen.into()];
    }
    let usual = ["/var/tmp", "/tmp"].map(PathBuf::from);
    usual.into_iter().chain(runtime).chain([PathBuf::from("/dev/shm")]).collect()
}

/// Runs what was typed and says how this process shall end.
pub fn run(cli: &Cli) -> Status {
    let env = Environment::read(cli.color);
    let messages = Messages::new(&env);
    let done = dispatch(cli, &env);
    done.unwrap_or_else(|error| {
        messages.error(&error);
        status::OURS
    })
}

/// Tells the CI, where this is a job of one, what is wrong with what was typed.
pub fn tell_of_bad_usage(error: &str) {
    let first = error.lines().next().unwrap_or_default();
    face::complain(first.trim_start_matches("error: "), AUTO, &Environment::read(Color::Never));
}

fn dispatch(cli: &Cli, env: &Environment) -> Result<Status> {
    match &cli.command {
        Command::Exec(args) => exec::run(args, env),
        Command::Shell(args) => shell::run(args, env),
        Command::Execns(args) => execns::run(args, env),
        Command::Annotate(args) => annotate::run(args, env),
        Command::Detect(args) => detect::run(args, env),
        Command::Kernel(args) => kernel::run(args, env),
        Command::Completions { shell } => extras::completions(*shell),
        Command::Man { directory } => extras::man_pages(directory),
    }
}
