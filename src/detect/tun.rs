//! TUN and TAP interfaces: the device, and an interface in a network namespace of our own.

use std::ffi::CStr;

use nix::sched::CloneFlags;
use serde::Serialize;

use super::container::Container;
use super::device::{attempt_one, closed, ended};
use super::{Namespaces, Support};
use crate::sys::probe::{Call, Tried};

const DEVICE: &CStr = c"/dev/net/tun";

/// What can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tun {
    /// The device opens.
    pub device: Support,
    /// A TAP interface can be created in a network namespace of our own.
    pub tap: Support,
}

/// Opens the device, and creates an interface if we get a namespace for it.
pub fn probe(namespaces: &Namespaces, around: Option<&Container>) -> Tun {
    let device = match attempt_one(&[Call::Open(DEVICE)]) {
        Tried::Done => Support::Yes,
        tried => Support::No(closed(DEVICE, tried, "tun", None, around)),
    };
    let tap = match (&device, &namespaces.network) {
        (Support::No(denial), _) | (_, Support::No(denial)) => Support::No(denial.clone()),
        _ => {
            let mut namespace = CloneFlags::CLONE_NEWNET;
            if namespaces.user.is_yes() {
                namespace |= CloneFlags::CLONE_NEWUSER;
            }
            match attempt_one(&[Call::Unshare(namespace), Call::CreateTap]) {
                Tried::Done => Support::Yes,
                tried => Support::no(format!("creating an interface: {}", ended(tried)), None),
            }
        }
    };
    Tun { device, tap }
}
