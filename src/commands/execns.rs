//! `execns`: a program in fresh namespaces, and nothing else.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use nix::libc;

use super::{Environment, Messages, Status};
use crate::cli::execns::ExecnsArgs;
use crate::execns::{Flags, execns_keeping};
use crate::report::status;
use crate::sys;

/// Becomes the program. Returns only if that fails.
pub fn run(args: &ExecnsArgs, env: &Environment) -> Result<Status> {
    let program = &args.argv[0];
    let Some(path) = find(program, env) else {
        Messages::new(env).error(&anyhow!("{}: not found", program.display()));
        return Ok(status::NOT_FOUND);
    };
    let string = |text: &OsStr| CString::new(text.as_bytes()).context("an argument contains a NUL byte");
    let argv = args.argv.iter().map(|argument| string(argument)).collect::<Result<Vec<_>>>()?;
    let variable = |(name, value): &(_, _)| string(&[name, value].map(OsStr::new).join(OsStr::new("=")));
    let envp = env.variables.iter().map(variable).collect::<Result<Vec<_>>>()?;
    let keep: Vec<_> = (0..3).filter(|fd| sys::is_open(*fd)).chain(args.keep_fd.iter().copied()).collect();

    let Err(failure) = execns_keeping(&keep, flags(args), &string(path.as_os_str())?, &argv, &envp);
    if failure.is_of_program() {
        Messages::new(env).error(&anyhow!(failure).context(program.display().to_string()));
        return Ok(status::CANNOT_RUN);
    }
    let errno = failure.errno();
    let error = anyhow!(failure).context("execns");
    Err(match errno {
        libc::EBADF => error.context("--keep-fd: it is not open"),
        libc::EPERM if !args.user => error.context("without --user only root may have these namespaces"),
        _ => error,
    })
}

fn flags(args: &ExecnsArgs) -> Flags {
    let wanted = [
        (args.user, Flags::USER),
        (args.pid, Flags::PID),
        (args.net, Flags::NET),
        (args.ipc, Flags::IPC),
        (args.uts, Flags::UTS),
        (args.mount, Flags::MOUNT),
        (args.cgroup, Flags::CGROUP),
        (args.time, Flags::TIME),
    ];
    wanted.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag).collect()
}

/// Where the program is, as a shell would look for it.
fn find(program: &OsStr, env: &Environment) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(program.into());
    }
    let mut places = std::env::split_paths(&env.path).map(|place| place.join(program));
    places.find(|path| path.is_file())
}
