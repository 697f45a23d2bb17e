//! No isolation: the init as an ordinary process of the caller's, so that a command is started,
//! streamed, signalled and ended just as in a machine.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};

use super::run_dir::RunDir;
use super::{Confinement, INIT_NAME, Kind, Machine, OWN_PROGRAM, channel};
use crate::execns::Failure;
use crate::sys::namespaces::{Entering, Entry, Identity, enter};

/// Starts the init. The directory is kept until the machine ends.
///
/// Must be called by the main thread: the machine ends with the thread that started it.
pub fn start(run_dir: RunDir) -> Result<Machine> {
    let (ours, theirs) = channel().context("create the channel to the init")?;
    let (console, console_end) = super::console().context("create the console's pipe")?;
    let null = File::open("/dev/null").context("open /dev/null")?;
    let argv = [CString::from(INIT_NAME), CString::new(theirs.as_raw_fd().to_string())?];
    let entry = Entry {
        namespaces: 0,
        identity: Identity::Unchanged,
        program: OWN_PROGRAM,
        argv: &argv,
        env: &[],
        stdio: Some([null.as_fd(), console_end.as_fd(), console_end.as_fd()]),
        keep: &[theirs.as_raw_fd()],
        detached: true,
        confined: false,
        cpus: &[],
        ruleset: None,
        group: None,
        max_tasks: None,
    };
    let entered = enter(&entry, |_| Ok(()))
        .and_then(Entering::confirm)
        .map_err(Failure::from)
        .context("start the init")?;
    let mut machine = Machine::of_init(Kind::None, entered, ours, console, Confinement::default());
    machine.run_dir = Some(run_dir);
    Ok(machine)
}
