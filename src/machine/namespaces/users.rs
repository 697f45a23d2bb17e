//! Which users exist in a machine of namespaces, beside root.
//!
//! An ordinary user may map their own id only, to root's. With ranges of subordinate ids, and the
//! set-user-id programs of the distribution's that map them, the machine has every user.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::unistd::{Gid, Pid, Uid};

use crate::detect::subordinate;

/// The ranges that are mapped, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users {
    programs: [PathBuf; 2],
    ranges: [(u64, u64); 2],
}

impl Users {
    /// Finds them; nothing where the caller has none.
    pub fn find(path: &OsStr) -> Option<Self> {
        let program = |name| which::which_in_global(name, Some(path)).ok()?.next();
        let name = subordinate::user_name(Uid::effective());
        let range = |file| {
            let text = fs::read_to_string(file).unwrap_or_default();
            subordinate::range(&text, &name, Uid::effective())
        };
        Some(Self {
            programs: [program("newuidmap")?, program("newgidmap")?],
            ranges: [range("/etc/subuid")?, range("/etc/subgid")?],
        })
    }

    /// Maps them into the user namespace of a process: root is the caller, then the range.
    pub fn map(&self, pid: Pid) -> io::Result<()> {
        let own = [Uid::effective().as_raw(), Gid::effective().as_raw()];
        let start = |kind: usize| -> io::Result<Child> {
            let (first, count) = self.ranges[kind];
            let map = [0, u64::from(own[kind]), 1, 1, first, count];
            Command::new(&self.programs[kind])
                .arg(pid.to_string())
                .args(map.map(|number| number.to_string()))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
        };
        // Side by side: each is a program to start.
        for child in [start(0)?, start(1)?] {
            let output = child.wait_with_output()?;
            if !output.status.success() {
                return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
            }
        }
        Ok(())
    }
}
