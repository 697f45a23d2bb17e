//! The variables that a command gets: an allow-list of ours, and what was asked for.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, Result, bail};

use crate::cli::exec::MachineArgs;
use crate::commands::Environment;
use crate::step;

/// The variables; what is named later wins.
pub fn variables(args: &MachineArgs, env: &Environment) -> Result<Vec<(OsString, OsString)>> {
    let mut variables = step::allowed_environment(env.variables.iter().cloned());
    let mut set = |name: OsString, value: OsString| {
        variables.retain(|(known, _)| *known != name);
        variables.push((name, value));
    };
    for file in &args.env_file {
        let text = fs::read(file).with_context(|| format!("--env-file {}", file.display()))?;
        let read = step::parse_env_file(&text).map_err(|(line, why)| {
            anyhow::anyhow!("--env-file {}, line {line}: {why}; write NAME=VALUE", file.display())
        })?;
        read.into_iter().for_each(|(name, value)| set(name, value));
    }
    for given in &args.env {
        let bytes = given.as_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
            Some(0) => bail!("--env {}: the name is missing; write NAME=VALUE", given.display()),
            Some(at) => {
                set(OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(bytes[at + 1..].to_vec()));
            }
            // A variable that we do not have either is left unset, as the shell would.
            None => env.get(given).into_iter().for_each(|value| set(given.clone(), value.to_owned())),
        }
    }
    Ok(variables)
}
