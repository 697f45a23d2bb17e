//! The calls by which a trial becomes root in a user namespace of its own.

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};

use crate::sys::probe::Call;

/// Keeps mounts in the mount namespace that they are made in.
pub const PRIVATE: Call<'static> =
    Call::Mount { kind: c"none", at: c"/", flags: MsFlags::MS_REC.union(MsFlags::MS_PRIVATE), data: c"" };

/// Who is who in a user namespace.
pub struct Identity {
    users: String,
    groups: String,
}

impl Identity {
    /// We are root, and nobody else exists.
    pub fn root_is_caller() -> Self {
        Self { users: format!("0 {} 1", Uid::effective()), groups: format!("0 {} 1", Gid::effective()) }
    }

    /// Enters the namespace and maps us.
    pub fn calls(&self) -> [Call<'_>; 4] {
        [
            Call::Descend(CloneFlags::CLONE_NEWUSER),
            Call::Write(c"/proc/self/setgroups", b"deny"),
            Call::Write(c"/proc/self/uid_map", self.users.as_bytes()),
            Call::Write(c"/proc/self/gid_map", self.groups.as_bytes()),
        ]
    }
}
