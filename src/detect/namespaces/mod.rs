//! Which namespaces we may enter, and whether a root can be built in them.
//!
//! Found out by doing in a child, within a few milliseconds, what the namespaces machine will do.
//! A refusal says who refuses ([`diagnosis`]): the same `EPERM` may come from a sysctl, a security
//! module, a container's filter or a chroot, and each has another remedy.

mod diagnosis;
mod identity;
mod remembered;
mod surroundings;
mod trial;

use std::cell::OnceCell;
use std::ffi::OsStr;

use nix::errno::Errno;
use serde::Serialize;

use super::{Support, subordinate};
use crate::sys::probe::Tried;
use crate::sys::read_kernel_text;
use diagnosis::Asked;
pub use identity::{Identity, PRIVATE};
pub use remembered::probe_cached;
use surroundings::Surroundings;
use trial::{Arguments, list};

/// By what right namespaces are entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Privilege {
    /// A user namespace of our own, in which we are root: what an ordinary user has, and root too
    /// where the host allows it.
    UserNamespace,
    /// `CAP_SYS_ADMIN` where we are, and no user namespace.
    RealRoot,
    /// None.
    None,
}

/// What the host lets us do with namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Namespaces {
    /// By what right the others are had.
    pub privilege: Privilege,
    /// A user namespace of our own with our user and group mapped to root.
    pub user: Support,
    /// A mount namespace, and a tmpfs mounted in it.
    pub mount: Support,
    /// A process-id namespace.
    pub pid: Support,
    /// A network namespace with its loopback interface up.
    pub network: Support,
    /// A namespace of System V IPC and POSIX message queues.
    pub ipc: Support,
    /// A host name of our own.
    pub uts: Support,
    /// A view of control groups of our own.
    pub cgroup: Support,
    /// Monotonic clocks of our own.
    pub time: Support,
    /// An overlay of a host directory and a tmpfs, written and read through.
    pub overlay: Support,
    /// A new `/proc` for the new process-id namespace.
    pub proc: Support,
    /// A second user and mount namespace inside, which locks the mounts of the first.
    pub nested: Support,
    /// `newuidmap`, `newgidmap` and a range of ids for us: found, not used.
    pub subordinate_ids: Support,
}

/// Tries everything. `path` is where programs are looked for.
pub fn probe(path: &OsStr) -> Namespaces {
    let arguments = Arguments::new();
    let subordinate_ids = subordinate::probe(path);
    let attempt = |privilege| Attempt {
        privilege,
        tried: arguments.attempt(privilege).map_err(|error| error.to_string()),
    };
    let found = attempt(Privilege::UserNamespace).judge(subordinate_ids.clone());
    if found.privilege == Privilege::UserNamespace || !Surroundings::has_admin_capability() {
        return found;
    }
    match attempt(Privilege::RealRoot).judge(subordinate_ids) {
        as_root if as_root.privilege == Privilege::RealRoot => Namespaces { user: found.user, ..as_root },
        _ => found,
    }
}

/// Whether we have `CAP_SYS_ADMIN` where we are.
pub fn has_admin_capability() -> bool {
    Surroundings::has_admin_capability()
}

/// Whether we are in another user namespace than the first, in which every id is itself.
pub fn in_user_namespace() -> bool {
    let map = read_kernel_text("/proc/self/uid_map").unwrap_or_default();
    let words: Vec<&str> = map.split_ascii_whitespace().collect();
    !words.is_empty() && words != ["0", "0", "4294967295"]
}

/// Whether users other than us exist in our user namespace, and their groups can be set.
pub fn has_other_users() -> bool {
    let read = |name| read_kernel_text(format!("/proc/self/{name}")).unwrap_or_default();
    let map = read("uid_map");
    let counts = map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
    counts.sum::<u64>() > 1 && read("setgroups").trim() != "deny"
}

impl Namespaces {
    /// For who will not use any, and so need not know.
    pub fn not_asked() -> Self {
        let no = || Support::no("it was not asked for", None);
        Self {
            privilege: Privilege::None,
            user: no(),
            mount: no(),
            pid: no(),
            network: no(),
            ipc: no(),
            uts: no(),
            cgroup: no(),
            time: no(),
            overlay: no(),
            proc: no(),
            nested: no(),
            subordinate_ids: no(),
        }
    }
}

/// What the child reported.
struct Attempt {
    privilege: Privilege,
    tried: Result<Vec<Tried>, String>,
}

impl Attempt {
    fn judge(&self, subordinate_ids: Support) -> Namespaces {
        // Read only where something was refused, and once.
        let surroundings = OnceCell::new();
        let explain =
            |asked, tried| diagnosis::explain(asked, tried, surroundings.get_or_init(Surroundings::read));
        let support = |list: usize, asked: Asked| match &self.tried {
            Err(error) => Support::no(format!("no process could be created: {error}"), None),
            Ok(tried) if tried[list] == Tried::Done => Support::Yes,
            Ok(tried) => Support::No(match missing(tried, list) {
                Some((list, needed)) => diagnosis::takes(needed, &explain(needed, tried[list])),
                None => explain(asked, tried[list]),
            }),
        };
        let user = support(list::USER, Asked::UserNamespace);
        let mount = support(list::MOUNT, Asked::Mount);
        let privilege = if user.is_yes() && mount.is_yes() { self.privilege } else { Privilege::None };
        Namespaces {
            privilege,
            pid: support(list::PID, Asked::Namespace("pid")),
            network: support(list::NETWORK, Asked::Namespace("network")),
            ipc: support(list::IPC, Asked::Namespace("ipc")),
            uts: support(list::UTS, Asked::Namespace("uts")),
            cgroup: support(list::CGROUP, Asked::Namespace("cgroup")),
            time: support(list::TIME, Asked::Namespace("time")),
            overlay: support(list::OVERLAY, Asked::Overlay),
            proc: support(list::PROC, Asked::Proc),
            nested: support(list::NESTED, Asked::Nested),
            subordinate_ids,
            user,
            mount,
        }
    }
}

/// What was refused before, and without which this list could not be done.
fn missing(tried: &[Tried], list: usize) -> Option<(usize, Asked)> {
    let needs = [
        (list::USER, Asked::UserNamespace),
        (list::MOUNT, Asked::Mount),
        (list::PID, Asked::Namespace("pid")),
    ];
    let mut missing =
        needs.into_iter().filter(|(needed, _)| *needed != list && tried[*needed] != Tried::Done);
    match tried[list] {
        Tried::Refused { errno: Errno::ECANCELED, .. } => missing.next(),
        Tried::Refused { errno: Errno::EPERM, .. } => {
            missing.next().filter(|(needed, _)| *needed == list::USER)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Done here by the program that everybody has for it.
    fn unshare(flags: &[&str]) -> bool {
        let mut command = std::process::Command::new("unshare");
        let output = command.args(["--user", "--map-root-user"]).args(flags).arg("true").output();
        output.is_ok_and(|output| output.status.success())
    }

    #[test]
    fn the_answer_is_that_of_unshare() {
        let found = probe(OsStr::new("/usr/bin"));
        for (support, flags) in [
            (&found.user, &[][..]),
            (&found.mount, &["--mount"]),
            (&found.pid, &["--pid", "--fork"]),
            (&found.proc, &["--pid", "--fork", "--mount", "--mount-proc"]),
            (&found.network, &["--net"]),
            (&found.ipc, &["--ipc"]),
            (&found.uts, &["--uts"]),
            (&found.cgroup, &["--cgroup"]),
            (&found.time, &["--time"]),
        ] {
            assert_eq!(support.is_yes(), unshare(flags), "{flags:?}: {support:?}");
        }
    }

    #[test]
    fn nothing_of_the_trial_stays() {
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let name = || nix::unistd::gethostname().unwrap();
        let before = (mounts(), name());
        probe(OsStr::new(""));
        assert_eq!((mounts(), name()), before);
        assert!(!std::path::Path::new("/tmp/merged").exists());
    }
}
