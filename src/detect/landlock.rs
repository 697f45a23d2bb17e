//! Landlock, which keeps a guest from what it may not touch.

use nix::errno::Errno;
use serde::Serialize;

use super::Support;
use super::device::{attempt_one, ended};
use crate::sys::probe::{Call, Tried, landlock};

/// What there is of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Landlock {
    /// Version of the kernel's interface, 0 for none.
    pub abi: u32,
    /// A child was really kept from reading a directory.
    pub enforced: Support,
}

/// Asks for the version, and confines a child.
pub fn probe() -> Landlock {
    let abi = match landlock::abi() {
        Ok(abi) => abi,
        Err(errno) => return Landlock { abi: 0, enforced: missing(errno) },
    };
    let enforced = match attempt_one(&[Call::Landlock]) {
        Tried::Done => Support::Yes,
        tried => Support::no(format!("confining a child: {}", ended(tried)), None),
    };
    Landlock { abi, enforced }
}

fn missing(errno: Errno) -> Support {
    match errno {
        Errno::EOPNOTSUPP => Support::no(
            "Landlock is built into the kernel and was not switched on at boot (EOPNOTSUPP)",
            Some("add landlock to the list lsm= of the kernel's command line"),
        ),
        Errno::ENOSYS => Support::no(
            "the kernel has no Landlock (ENOSYS)",
            Some("a kernel from 5.13 on with CONFIG_SECURITY_LANDLOCK=y"),
        ),
        errno => Support::no(
            format!("a seccomp filter denies Landlock ({errno:?})"),
            Some("a container engine whose profile knows Landlock, such as Docker from 20.10 on"),
        ),
    }
}
