//! Whether a child can be traced, and its system calls be caught: what a guest's kernel without
//! seccomp mode lives on.

use std::fs;

use nix::errno::Errno;

use super::Support;
use super::container::{Container, Kind};
use super::device::{attempt_one, ended};
use crate::sys::probe::{Call, Tried};

/// Traces a child.
pub fn probe(around: Option<&Container>) -> Support {
    let tried = attempt_one(&[Call::Trace]);
    let errno = match tried {
        Tried::Done => return Support::Yes,
        Tried::Refused { errno, .. } => errno,
        other => return Support::no(ended(other), None),
    };
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let scope = scope.ok().and_then(|text| text.trim().parse::<u32>().ok());
    let refused = format!("{} ({errno:?})", errno.desc());
    match (errno, scope, around.map(|container| container.kind)) {
        (Errno::EPERM | Errno::EACCES, Some(scope @ 2..), _) => Support::no(
            format!("kernel.yama.ptrace_scope is {scope} ({errno:?})"),
            Some("sudo sysctl -w kernel.yama.ptrace_scope=1 (from 3 only by a reboot)"),
        ),
        (Errno::EPERM, _, Some(Kind::Docker)) => Support::no(
            format!("the container's seccomp profile denies it: {refused}"),
            Some("docker run --security-opt seccomp=unconfined"),
        ),
        (Errno::EIO, ..) => Support::no("the kernel has no PTRACE_SYSEMU, or did not stop the child", None),
        _ => Support::no(refused, None),
    }
}
