//! Keeps commands from undoing what the init has mounted, and from what no CI step needs.
//!
//! Root of a user namespace may unmount and remount whatever was mounted in it. Where something
//! read-only or covered matters, the machine moves into a second user namespace with the same
//! users: there every mount made before is locked, and root is root over new mounts only. Where no
//! user namespace can be had, commands lose the capabilities that it would take.

use std::fs;

use crate::protocol::Seal;
use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{pipe, read, write};

use crate::sys;

/// What commands of the host's root keep: enough for packages, users and daemons, nothing that
/// reaches beyond files and processes of the machine (Docker's default set, without device files).
const KEPT: [u64; 13] = [
    0,  // CAP_CHOWN
    1,  // CAP_DAC_OVERRIDE
    3,  // CAP_FOWNER
    4,  // CAP_FSETID
    5,  // CAP_KILL
    6,  // CAP_SETGID
    7,  // CAP_SETUID
    8,  // CAP_SETPCAP
    10, // CAP_NET_BIND_SERVICE
    13, // CAP_NET_RAW
    18, // CAP_SYS_CHROOT
    29, // CAP_AUDIT_WRITE
    31, // CAP_SETFCAP
];

/// Applies the seal. Afterwards the machine has every namespace that it is to have.
pub fn apply(seal: &Seal, host_network: bool) -> Result<()> {
    match seal {
        Seal::Open => Ok(()),
        Seal::UserNamespace => move_on(host_network),
        Seal::Capabilities => sys::limit_capabilities(&KEPT).context("give capabilities up"),
    }
}

/// Moves into a second user namespace, and into those that shall belong to it.
fn move_on(host_network: bool) -> Result<()> {
    let maps = ["uid_map", "gid_map"].map(|name| (name, same_ids(name)));
    // The maps are written from the first namespace, where the rights to the ids are.
    let (go, signal_go) = pipe().context("create a pipe")?;
    let helper = sys::fork_helper(|| {
        let told = read(&go, &mut [0]).is_ok_and(|count| count == 1);
        let written = maps.iter().all(|(name, map)| fs::write(format!("/proc/1/{name}"), map).is_ok());
        told && written
    })
    .context("start the writer of the maps")?;
    let mut fresh = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    fresh.set(CloneFlags::CLONE_NEWNET, !host_network);
    let unshared = unshare(fresh);
    if unshared.is_ok() {
        let _ = write(&signal_go, b"1");
    }
    drop(signal_go);
    let ended = waitpid(helper, None).context("wait for the writer of the maps")?;
    unshared.context("create the second user namespace")?;
    anyhow::ensure!(
        matches!(ended, nix::sys::wait::WaitStatus::Exited(_, 0)),
        "the users could not be mapped into the second user namespace"
    );
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)
        .context("share mounts")
}

/// The map by which everybody who exists in this user namespace is the same in the next one.
fn same_ids(name: &str) -> String {
    let own = fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let mut map = String::new();
    for line in own.lines() {
        if let [inside, _, count] = line.split_whitespace().collect::<Vec<_>>()[..] {
            map.push_str(&format!("{inside} {inside} {count}\n"));
        }
    }
    map
}
