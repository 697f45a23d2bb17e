//! Why a device node cannot be used.

use std::ffi::CStr;
use std::time::Duration;

use nix::errno::Errno;

use super::Denial;
use super::container::{Container, Kind};
use crate::sys::probe::{Call, Tried, attempt};

/// No device that works takes longer.
const DEADLINE: Duration = Duration::from_secs(2);

/// What a list of calls came to; the second word is the call that failed.
pub fn attempt_one(calls: &[Call<'_>]) -> Tried {
    match attempt(&[calls], DEADLINE).as_deref() {
        Ok([tried]) => *tried,
        // Without a process nothing can be tried.
        _ => Tried::Refused { call: 0, errno: Errno::EAGAIN },
    }
}

/// Explains why the node at `path` could not be opened. `module` has its driver; `group` is whose
/// members may use it.
pub fn closed(
    path: &CStr,
    tried: Tried,
    module: &str,
    group: Option<&str>,
    around: Option<&Container>,
) -> Denial {
    let path = path.to_string_lossy();
    let errno = match tried {
        Tried::Refused { errno, .. } => errno,
        other => return Denial { reason: format!("opening {path}: {}", ended(other)), remedy: None },
    };
    let grant = match around.map(|container| container.kind) {
        Some(Kind::Docker) => Some(format!("docker run --device {path}")),
        Some(Kind::Podman) => Some(format!("podman run --device {path}")),
        Some(Kind::Kubernetes) => Some(format!("a device plugin that offers {path}")),
        _ => None,
    };
    let (reason, remedy) = match errno {
        Errno::ENOENT => {
            (format!("there is no {path}"), grant.or_else(|| Some(format!("sudo modprobe {module}"))))
        }
        Errno::ENODEV | Errno::ENXIO => {
            (format!("{path} has no driver ({errno:?})"), Some(format!("sudo modprobe {module}")))
        }
        // The control group's list of devices gives EPERM, the node's mode EACCES.
        Errno::EPERM => (format!("the control group's devices deny {path} (EPERM)"), grant),
        Errno::EACCES => (
            format!("the mode of {path} denies us (EACCES)"),
            Some(match group {
                Some(group) => format!("sudo usermod -aG {group} $USER, or sudo chmod 666 {path}"),
                None => format!("sudo chmod 666 {path}"),
            }),
        ),
        errno => (format!("opening {path}: {} ({errno:?})", errno.desc()), None),
    };
    Denial { reason, remedy }
}

/// How a trial ended that no call of it ended.
pub fn ended(tried: Tried) -> String {
    match tried {
        Tried::Done => "done".into(),
        Tried::Refused { errno, .. } => format!("{} ({errno:?})", errno.desc()),
        Tried::Killed(nix::libc::SIGSYS) => "a seccomp filter killed the probe".into(),
        Tried::Killed(signal) => format!("signal {signal} killed the probe"),
        Tried::Late => format!("no answer within {} s", DEADLINE.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_missing_denied_or_without_a_driver() {
        let docker = Container { kind: Kind::Docker, mark: "/.dockerenv".into(), github_job: false };
        let told = |errno, around| {
            let tried = Tried::Refused { call: 0, errno };
            closed(c"/dev/kvm", tried, "kvm", Some("kvm"), around).to_string()
        };
        insta::assert_snapshot!(told(Errno::ENOENT, None), @"there is no /dev/kvm; sudo modprobe kvm");
        insta::assert_snapshot!(told(Errno::ENOENT, Some(&docker)), @"there is no /dev/kvm; docker run --device /dev/kvm");
        insta::assert_snapshot!(told(Errno::EPERM, Some(&docker)), @"the control group's devices deny /dev/kvm (EPERM); docker run --device /dev/kvm");
        insta::assert_snapshot!(told(Errno::EACCES, None), @"the mode of /dev/kvm denies us (EACCES); sudo usermod -aG kvm $USER, or sudo chmod 666 /dev/kvm");
        insta::assert_snapshot!(told(Errno::ENODEV, None), @"/dev/kvm has no driver (ENODEV); sudo modprobe kvm");
        insta::assert_snapshot!(told(Errno::EIO, None), @"opening /dev/kvm: I/O error (EIO)");
    }
}
