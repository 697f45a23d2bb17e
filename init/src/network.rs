//! The machine's name and its loopback interface.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use nix::unistd::sethostname;

use crate::sys;

/// Names the machine.
pub fn set_host_name(name: &[u8]) -> Result<()> {
    Ok(sethostname(OsStr::from_bytes(name))?)
}

/// Names the machine, and makes the name resolvable: `sudo` and daemons look it up.
pub fn name_host(name: &[u8]) -> Result<()> {
    set_host_name(name)?;
    let mut line = name.to_vec();
    line.push(b'\n');
    let _ = fs::write("/etc/hostname", &line);
    let known = fs::read("/etc/hosts").unwrap_or_default();
    let mut entry = Vec::new();
    if !known.is_empty() && !known.ends_with(b"\n") {
        entry.push(b'\n');
    }
    if !known.windows(9).any(|w| w == b"localhost") {
        entry.extend_from_slice(b"127.0.0.1 localhost\n::1 localhost\n");
    }
    entry.extend_from_slice(b"127.0.1.1 ");
    entry.extend_from_slice(&line);
    // A root without /etc has nobody who would look a name up.
    if let Ok(mut hosts) = OpenOptions::new().create(true).append(true).open("/etc/hosts") {
        let _ = hosts.write_all(&entry);
    }
    Ok(())
}

/// Switches `lo` on.
pub fn raise_loopback() -> Result<()> {
    sys::interface_up("lo").context("switch lo on")
}
