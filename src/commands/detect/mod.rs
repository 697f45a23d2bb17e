//! `detect`: what this host can do, why not more, and what would change that.

mod guests;
mod table;

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Environment, Status};
use crate::cli::detect::DetectArgs;
use crate::cli::kernel::Format;
use crate::detect::Host;
use crate::detect::host::Known;
use guests::Guest;

/// Version of the JSON layout; grows when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// Everything found out. The JSON output is this, and is described in the command's help.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    sekexe_ci: &'static str,
    #[serde(flatten)]
    host: Host,
    /// The CI provider's name.
    ci: Option<String>,
    kernels: Vec<Guest>,
}

/// Runs the command.
pub fn run(args: &DetectArgs, env: &Environment) -> Result<Status> {
    let known = Known { path: &env.path, variables: &env.variables, places: &places(env) };
    let report = Report {
        schema: SCHEMA,
        sekexe_ci: env!("CARGO_PKG_VERSION"),
        host: Host::probe(&known)?,
        ci: env.is_ci.then(ci_info::get).and_then(|info| info.name),
        kernels: guests::list(args.boot, env)?,
    };
    let mut text = match args.format {
        Format::Json => serde_json::to_string_pretty(&report)?,
        Format::Text => table::render(&table::sections(&report), env.color_output),
    };
    text.push('\n');
    std::io::stdout().write_all(text.as_bytes()).context("print what was found")?;
    Ok(0)
}

/// Where a machine's files may go, and where programs expect shared memory.
fn places(env: &Environment) -> Vec<std::path::PathBuf> {
    let mut places = env.temporary_places.clone();
    let shared = std::path::PathBuf::from("/dev/shm");
    if !places.contains(&shared) {
        places.push(shared);
    }
    places
}
