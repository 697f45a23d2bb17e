//! `detect`: what this host can do, why not more, and what would change that.

mod guests;
mod table;
mod verdict;

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Environment, Status, job};
use crate::ci::provider::{self, Provider};
use crate::cli::detect::DetectArgs;
use crate::cli::kernel::Format;
use crate::detect::host::Known;
use crate::detect::{Host, subordinate};
use crate::machine::namespaces::Users;
use crate::plan::{self, Request};
use guests::Guest;
use verdict::Verdict;

/// Version of the JSON layout; grows when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// Everything found out. The JSON output is this, and is described in the command's help.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    sekexe_ci: &'static str,
    #[serde(flatten)]
    host: Host,
    ci: Option<Ci>,
    kernels: Vec<Guest>,
    verdict: Verdict,
}

/// Runs the command.
pub fn run(args: &DetectArgs, env: &Environment) -> Result<Status> {
    let known = Known { path: &env.path, variables: &env.variables, places: &places(env) };
    let mut host = Host::probe(&known)?;
    if let Some(users) = Users::find(&env.path).filter(|_| host.namespaces.subordinate_ids.is_yes()) {
        host.namespaces.subordinate_ids = subordinate::try_map(|pid| users.map(pid));
    }
    let kernels = guests::list(args.boot, env)?;
    let choice = plan::choose(
        &Request::default(),
        &job::with_namespaces(host.namespaces.clone(), host.control_groups.delegated.clone())?,
    );
    let report = Report {
        schema: SCHEMA,
        sekexe_ci: env!("CARGO_PKG_VERSION"),
        verdict: Verdict::new(choice, &host, kernels.iter().any(|kernel| kernel.current)),
        ci: Ci::find(env),
        host,
        kernels,
    };
    let mut text = match args.format {
        Format::Json => serde_json::to_string_pretty(&report)?,
        Format::Text => table::render(&table::sections(&report), env.color_output) + &report.verdict.text(),
    };
    text.push('\n');
    std::io::stdout().write_all(text.as_bytes()).context("print what was found")?;
    Ok(0)
}

/// The CI whose job this is.
#[derive(Debug, Serialize)]
struct Ci {
    /// Its name for `--ci`; `unknown` where the variables only tell that this is one.
    name: &'static str,
}

impl Ci {
    fn find(env: &Environment) -> Option<Self> {
        let lookup = |name: &str| env.get(name)?.to_str().map(str::to_owned);
        let known = provider::detect(&lookup).map(Provider::name);
        known.or_else(|| env.is_ci.then_some("unknown")).map(|name| Self { name })
    }
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
