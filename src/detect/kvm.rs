//! Whether virtual machines run here: a few instructions are run in one.

use super::container::Container;
use super::device::{attempt_one, closed, ended};
use super::{Denial, Support};
use crate::sys::probe::{Call, Tried};

const DEVICE: &std::ffi::CStr = c"/dev/kvm";

/// Opens the device and runs a virtual CPU until it halts.
pub fn probe(around: Option<&Container>) -> Support {
    match attempt_one(&[Call::Open(DEVICE), Call::RunVirtualCpu]) {
        Tried::Done => Support::Yes,
        Tried::Refused { call: 1, errno } => Support::No(Denial {
            reason: format!("/dev/kvm opens, but no virtual CPU runs: {} ({errno:?})", errno.desc()),
            remedy: Some("switch nested virtualisation on in the outer hypervisor".into()),
        }),
        Tried::Refused { .. } => {
            let tried = attempt_one(&[Call::Open(DEVICE)]);
            Support::No(closed(DEVICE, tried, "kvm_intel or kvm_amd", Some("kvm"), around))
        }
        other => Support::no(ended(other), None),
    }
}
