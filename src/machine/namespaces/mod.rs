//! Namespaces of the host's own kernel: the same init, started by [`execns`](crate::execns)' own
//! call, over the host's own mounts.
//!
//! It starts in milliseconds and runs at the host's speed. What it cannot give is another kernel,
//! and, to an ordinary user, root over files that belong to others.

pub mod group;
pub mod layers;
mod users;

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use sekexe_init::protocol::{self, Seal};

use super::card::Source;
use super::{Confinement, INIT_NAME, Kind, Machine, OWN_PROGRAM, channel};
use crate::execns::{Failure, Flags};
use crate::plan::namespaces::{Foundation, Plan, Wanted};
use crate::sys::namespaces::{self as entry, Entering, Entry, Identity};
use group::Group;
use layers::Layers;
pub use users::Users;

/// A machine whose init is on its way.
pub struct Starting {
    entering: Entering,
    channel: OwnedFd,
    console: OwnedFd,
    card: Option<Source>,
    group: Option<Group>,
    mounts_may_linger: bool,
}

/// Starts the init in its namespaces. It waits for its instructions.
///
/// Must be called by the main thread: the machine ends with the thread that started it.
pub fn start(plan: &Plan, search_path: &OsStr, with_card: bool) -> Result<Starting> {
    let (card, card_end) = with_card.then(Source::passed).transpose()?.unzip();
    let (ours, theirs) = channel().context("create the channel to the machine")?;
    let (console, console_end) = super::console().context("create the console's pipe")?;
    let null = File::open("/dev/null").context("open /dev/null")?;
    let mapped = plan.many_users && plan.foundation == Foundation::UserNamespace;
    let users = if mapped { Users::find(search_path) } else { None };
    let identity = match (plan.foundation, &users) {
        (Foundation::HostRoot, _) => Identity::Unchanged,
        (Foundation::UserNamespace, None) => Identity::RootIsCaller,
        (Foundation::UserNamespace, Some(_)) => Identity::RootOfMaps,
    };
    let limits = group::Limits { memory: plan.memory, tasks: plan.max_tasks };
    let group = match plan.group {
        Wanted::No => None,
        Wanted::IfPossible => Group::create(limits).ok(),
        Wanted::Yes => Some(Group::create(limits).context("make a control group for the machine")?),
    };
    let keep: Vec<RawFd> =
        [Some(&theirs), card_end.as_ref()].into_iter().flatten().map(AsRawFd::as_raw_fd).collect();
    let argv = [CString::from(INIT_NAME), CString::new(theirs.as_raw_fd().to_string())?];
    let entering = entry::enter(
        &Entry {
            namespaces: flags(plan).bits(),
            identity,
            program: OWN_PROGRAM,
            argv: &argv,
            env: &[],
            stdio: Some([null.as_fd(), console_end.as_fd(), console_end.as_fd()]),
            keep: &keep,
            detached: true,
            confined: true,
            cpus: &plan.pin,
            ruleset: None,
            group: group.as_ref().map(Group::entrance),
            max_tasks: Some(plan.max_tasks),
        },
        |pid| users.as_ref().map_or(Ok(()), |users| users.map(pid)),
    )
    .map_err(Failure::from)
    .context("start the namespaces machine")?;
    // Root may have mounted a block device, and may want to have it back as soon as we have ended.
    let mounts_may_linger = plan.foundation == Foundation::UserNamespace;
    Ok(Starting { entering, channel: ours, console, card, group, mounts_may_linger })
}

impl Starting {
    /// Waits until the init runs.
    pub fn machine(self) -> Result<Machine> {
        let entered =
            self.entering.confirm().map_err(Failure::from).context("start the namespaces machine")?;
        let confinement = Confinement {
            no_new_privs: true,
            read_only_mounts: true,
            namespaces: true,
            seccomp_filter: true,
            ..Confinement::default()
        };
        let mut machine =
            Machine::of_init(Kind::Namespaces, entered, self.channel, self.console, confinement);
        machine.card = self.card;
        machine.group = self.group;
        machine.mounts_may_linger = self.mounts_may_linger;
        Ok(machine)
    }
}

/// What the init is told of these namespaces.
pub fn ground(plan: &Plan, layers: Layers, own_group: bool) -> protocol::Namespaces {
    protocol::Namespaces {
        layers: layers.all,
        seal: plan.seal.clone(),
        host_root: plan.host_root,
        in_user_namespace: plan.in_user_namespace,
        host_network: plan.host_network,
        many_users: plan.many_users,
        own_group,
    }
}

/// Which namespaces the init is born in. Those that commands shall be root of come with the second
/// user namespace, where there is one. A network takes the kernel so long that the init enters its
/// own beside other work.
fn flags(plan: &Plan) -> Flags {
    let mut flags = Flags::MOUNT | Flags::PID | Flags::CGROUP;
    flags.set(Flags::USER, plan.foundation == Foundation::UserNamespace);
    flags.set(Flags::IPC | Flags::UTS, plan.seal != Seal::UserNamespace);
    flags.set(Flags::TIME, plan.time);
    flags
}
