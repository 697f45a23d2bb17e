//! File systems in user space: one is mounted, in namespaces of our own.

use std::ffi::CStr;

use nix::sched::CloneFlags;

use super::container::Container;
use super::device::{attempt_one, closed, ended};
use super::namespaces::{Identity, PRIVATE};
use super::{Namespaces, Support};
use crate::sys::probe::{Call, Tried};

const DEVICE: &CStr = c"/dev/fuse";

/// Opens the device and mounts a file system, if we get namespaces for it.
pub fn probe(namespaces: &Namespaces, around: Option<&Container>) -> Support {
    match attempt_one(&[Call::Open(DEVICE)]) {
        Tried::Done => {}
        tried => return Support::No(closed(DEVICE, tried, "fuse", Some("fuse"), around)),
    }
    if let Some(denial) = namespaces.mount.denial() {
        return Support::No(denial.clone());
    }
    let identity = Identity::root_is_caller();
    let calls = identity.calls();
    let user = if namespaces.user.is_yes() { &calls[..] } else { &[] };
    let mount = [Call::Unshare(CloneFlags::CLONE_NEWNS), PRIVATE, Call::MountFuse(c"/dev")];
    match attempt_one(&[user, &mount].concat()) {
        Tried::Done => Support::Yes,
        tried => Support::no(format!("/dev/fuse opens, but mounting: {}", ended(tried)), None),
    }
}
