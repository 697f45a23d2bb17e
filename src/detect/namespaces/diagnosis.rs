//! Who refused, and what would change it. Pure, so that every situation can be told beforehand.
//!
//! The kernel says no more than an error number. What it can stand for follows from the call that
//! failed and from what can be read of the surroundings; the first suspect that fits is named.

use nix::errno::Errno;
use nix::libc;

use super::surroundings::Surroundings;
use crate::detect::Denial;
use crate::detect::container::Kind;
use crate::sys::probe::Tried;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A user namespace: first entered, then mapped.
    UserNamespace,
    /// A mount namespace, and a mount in it.
    Mount,
    /// Another namespace, by its name.
    Namespace(&'static str),
    /// An overlay.
    Overlay,
    /// A new `/proc`.
    Proc,
    /// A user namespace in a user namespace.
    Nested,
}

/// Instead of a chroot.
const UNCHROOTED: &str =
    "enter the directory by a mount namespace, such as bwrap's or systemd-nspawn's, not by chroot";

impl Asked {
    fn name(self) -> String {
        match self {
            Self::UserNamespace => "a user namespace".into(),
            Self::Mount => "a mount namespace".into(),
            Self::Namespace(name) => format!("a {name} namespace"),
            Self::Overlay => "an overlay".into(),
            Self::Proc => "a new /proc".into(),
            Self::Nested => "a second user namespace".into(),
        }
    }

    fn limit(self) -> &'static str {
        match self {
            Self::UserNamespace | Self::Nested => "user",
            Self::Namespace("network") => "net",
            Self::Namespace(name) => name,
            Self::Mount | Self::Overlay | Self::Proc => "mnt",
        }
    }
}

/// Explains a refusal.
pub fn explain(asked: Asked, tried: Tried, around: &Surroundings) -> Denial {
    let what = asked.name();
    let (call, errno) = match tried {
        Tried::Refused { call, errno } => (call, errno),
        Tried::Killed(libc::SIGSYS) => {
            return denial(format!("a seccomp filter kills who asks for {what}"), Some(unfiltered(around)));
        }
        Tried::Killed(signal) => return denial(format!("the probe was killed by signal {signal}"), None),
        Tried::Late | Tried::Done => return denial(format!("{what} was not had in time"), None),
    };
    match (asked, errno) {
        (_, Errno::ENOSPC | Errno::EUSERS) => used_up(asked, around),
        (Asked::Overlay, Errno::ENODEV) => {
            denial("the kernel has no overlayfs (ENODEV)".into(), Some("sudo modprobe overlay".into()))
        }
        (Asked::Overlay, Errno::EPERM) if !around.filtered => denial(
            "the kernel mounts no overlayfs in a user namespace (EPERM)".into(),
            Some("a kernel from 5.11 on, or run as root".into()),
        ),
        (Asked::Proc, Errno::EPERM) => revealing(around),
        (Asked::Mount, Errno::EINVAL) if call > 0 => {
            denial("the root directory is no mount, as in a chroot (EINVAL)".into(), Some(UNCHROOTED.into()))
        }
        (_, Errno::EINVAL) if call == 0 && asked != Asked::Nested => absent(asked),
        (_, Errno::ENOSYS) if !around.filtered => {
            denial("the kernel has no clone3 (ENOSYS)".into(), Some("a kernel from 5.3 on".into()))
        }
        (_, Errno::EPERM | Errno::EACCES | Errno::ENOSYS) => {
            forbidden(matches!(asked, Asked::UserNamespace | Asked::Nested), call, errno, &what, around)
        }
        _ => denial(format!("{what} was refused: {}", shown(errno)), None),
    }
}

/// What is missing where one capability takes another.
pub fn takes(needed: Asked, denied: &Denial) -> Denial {
    let root = if needed == Asked::UserNamespace { ", or root with CAP_SYS_ADMIN" } else { "" };
    Denial { reason: format!("it takes {}{root}", needed.name()), remedy: denied.remedy.clone() }
}

fn denial(reason: String, remedy: Option<String>) -> Denial {
    Denial { reason, remedy }
}

fn absent(asked: Asked) -> Denial {
    let name = asked.limit();
    let option = if name == "cgroup" { "CGROUPS".into() } else { format!("{}_NS", name.to_uppercase()) };
    denial(
        format!("the kernel was built without {name} namespaces (EINVAL)"),
        Some(format!("a kernel with CONFIG_{option}=y")),
    )
}

fn used_up(asked: Asked, around: &Surroundings) -> Denial {
    let setting = format!("user.max_{}_namespaces", asked.limit());
    let remedy = format!("sudo sysctl -w {setting}=15000");
    if asked.limit() == "user" && around.max_user_namespaces == Some(0) {
        return denial(format!("{setting} is 0 (ENOSPC)"), Some(remedy));
    }
    denial(
        format!("{setting} is used up, here or in an outer namespace (ENOSPC)"),
        Some(if around.container.is_some() { format!("on the host: {remedy}") } else { remedy }),
    )
}

fn revealing(around: &Surroundings) -> Denial {
    let remedy = match around.container {
        Some(Kind::Docker) => Some("docker run --security-opt systempaths=unconfined"),
        Some(Kind::Podman) => Some("podman run --security-opt unmask=ALL"),
        Some(Kind::Kubernetes) => Some("procMount: Unmasked in the securityContext"),
        _ => None,
    };
    denial(
        "parts of the present /proc are covered, so the kernel shows no other one (EPERM)".into(),
        remedy.map(Into::into),
    )
}

/// `EPERM` and `EACCES`, which anybody may have given.
fn forbidden(user: bool, call: usize, errno: Errno, what: &str, around: &Surroundings) -> Denial {
    let entering = user && call == 0;
    let name = name(errno);
    if entering && around.userns_clone == Some(0) && !around.admin {
        return denial(
            format!("kernel.unprivileged_userns_clone is 0 ({name})"),
            Some("sudo sysctl -w kernel.unprivileged_userns_clone=1".into()),
        );
    }
    if entering && around.chrooted {
        return denial(
            format!("we are in a chroot, where the kernel gives {what} to nobody ({name})"),
            Some(UNCHROOTED.into()),
        );
    }
    if entering && !around.proc {
        return denial(
            format!("{what} was refused, and without /proc nobody can tell why ({name})"),
            Some("mount -t proc proc /proc".into()),
        );
    }
    if entering && !around.mapped {
        return denial(
            format!("our user or group has no number in this user namespace ({name})"),
            Some("run as a user that /proc/self/uid_map covers".into()),
        );
    }
    // AppArmor lets the namespace be entered and then denies every capability in it, the one that
    // writing the map takes included.
    if !entering && around.apparmor_restricts == Some(1) && !around.admin {
        return denial(
            format!("AppArmor denies unprivileged user namespaces their capabilities: kernel.apparmor_restrict_unprivileged_userns is 1 ({name})"),
            Some("sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for sekexe-ci with `userns,`".into()),
        );
    }
    // A filter may give any error and gives EPERM; AppArmor gives EACCES.
    if let Some(profile) = around.profile.as_ref().filter(|_| errno == Errno::EACCES || !around.filtered) {
        return denial(
            format!("the AppArmor profile {profile} denies {what} ({name})"),
            Some(unprofiled(around)),
        );
    }
    if entering && around.apparmor_restricts == Some(1) && errno == Errno::EACCES {
        return denial(
            format!("AppArmor denies {what}: kernel.apparmor_restrict_unprivileged_userns is 1 ({name})"),
            Some("sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0".into()),
        );
    }
    if around.filtered {
        let whose = match around.container {
            Some(Kind::Docker) => "the container's seccomp profile, such as Docker's default one,",
            Some(_) => "the container's seccomp profile",
            None => "a seccomp filter of our ancestors'",
        };
        return denial(format!("{whose} denies {what} ({name})"), Some(unfiltered(around)));
    }
    if around.selinux {
        return denial(
            format!("{what} was refused ({name}), most likely by SELinux, which is enforcing"),
            Some("look for avc: denied in the audit log".into()),
        );
    }
    // Neither shows anywhere: who is in a Landlock domain may not mount.
    let suspect = if entering { "a chroot" } else { "a Landlock domain" };
    denial(format!("{what} was refused, by {suspect} or a security module: {}", shown(errno)), None)
}

/// How a container is started without its seccomp profile.
fn unfiltered(around: &Surroundings) -> String {
    let apparmor = if around.profile.is_some() { " --security-opt apparmor=unconfined" } else { "" };
    match around.container {
        Some(Kind::Docker) => {
            format!("docker run --security-opt seccomp=unconfined{apparmor}, or docker run --privileged")
        }
        Some(Kind::Podman) => format!("podman run --security-opt seccomp=unconfined{apparmor}"),
        Some(Kind::Kubernetes) => "seccompProfile: {type: Unconfined} in the securityContext".into(),
        Some(_) => "start the container without a seccomp profile".into(),
        None => "start it without the filter; for a systemd service: RestrictNamespaces=no and no SystemCallFilter=".into(),
    }
}

/// How a process is started without its AppArmor profile.
fn unprofiled(around: &Surroundings) -> String {
    match around.container {
        Some(Kind::Docker) => {
            "docker run --security-opt apparmor=unconfined, or docker run --privileged".into()
        }
        Some(Kind::Podman) => "podman run --security-opt apparmor=unconfined".into(),
        Some(Kind::Kubernetes) => "appArmorProfile: {type: Unconfined} in the securityContext".into(),
        _ => "a profile that allows userns and mount, or none: aa-disable".into(),
    }
}

fn name(errno: Errno) -> String {
    format!("{errno:?}")
}

fn shown(errno: Errno) -> String {
    format!("{} ({errno:?})", errno.desc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Surroundings {
        Surroundings {
            mapped: true,
            proc: true,
            max_user_namespaces: Some(15_000),
            ..Surroundings::default()
        }
    }

    fn docker() -> Surroundings {
        Surroundings { filtered: true, container: Some(Kind::Docker), ..host() }
    }

    fn told(asked: Asked, call: usize, errno: Errno, around: &Surroundings) -> String {
        explain(asked, Tried::Refused { call, errno }, around).to_string()
    }

    /// `unshare(CLONE_NEWUSER)` itself fails with `EPERM`.
    fn entering(around: &Surroundings) -> String {
        told(Asked::UserNamespace, 0, Errno::EPERM, around)
    }

    #[test]
    fn settings_of_the_kernel_are_named() {
        let none = Surroundings { max_user_namespaces: Some(0), ..host() };
        let debian = Surroundings { userns_clone: Some(0), ..host() };
        let ubuntu = Surroundings { apparmor_restricts: Some(1), ..host() };
        let user = Asked::UserNamespace;
        insta::assert_snapshot!(told(user, 0, Errno::ENOSPC, &none), @"user.max_user_namespaces is 0 (ENOSPC); sudo sysctl -w user.max_user_namespaces=15000");
        insta::assert_snapshot!(told(user, 0, Errno::ENOSPC, &host()), @"user.max_user_namespaces is used up, here or in an outer namespace (ENOSPC); sudo sysctl -w user.max_user_namespaces=15000");
        insta::assert_snapshot!(told(Asked::Namespace("network"), 0, Errno::ENOSPC, &docker()), @"user.max_net_namespaces is used up, here or in an outer namespace (ENOSPC); on the host: sudo sysctl -w user.max_net_namespaces=15000");
        insta::assert_snapshot!(told(user, 0, Errno::EINVAL, &host()), @"the kernel was built without user namespaces (EINVAL); a kernel with CONFIG_USER_NS=y");
        insta::assert_snapshot!(entering(&debian), @"kernel.unprivileged_userns_clone is 0 (EPERM); sudo sysctl -w kernel.unprivileged_userns_clone=1");
        insta::assert_snapshot!(told(user, 2, Errno::EPERM, &ubuntu), @"AppArmor denies unprivileged user namespaces their capabilities: kernel.apparmor_restrict_unprivileged_userns is 1 (EPERM); sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for sekexe-ci with `userns,`");
        insta::assert_snapshot!(told(user, 2, Errno::EACCES, &ubuntu), @"AppArmor denies unprivileged user namespaces their capabilities: kernel.apparmor_restrict_unprivileged_userns is 1 (EACCES); sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for sekexe-ci with `userns,`");
        insta::assert_snapshot!(told(user, 0, Errno::EACCES, &ubuntu), @"AppArmor denies a user namespace: kernel.apparmor_restrict_unprivileged_userns is 1 (EACCES); sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0");
        insta::assert_snapshot!(told(Asked::Mount, 2, Errno::EACCES, &ubuntu), @"AppArmor denies unprivileged user namespaces their capabilities: kernel.apparmor_restrict_unprivileged_userns is 1 (EACCES); sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for sekexe-ci with `userns,`");
        insta::assert_snapshot!(told(Asked::Namespace("network"), 1, Errno::EPERM, &ubuntu), @"AppArmor denies unprivileged user namespaces their capabilities: kernel.apparmor_restrict_unprivileged_userns is 1 (EPERM); sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for sekexe-ci with `userns,`");
    }

    #[test]
    fn filters_and_profiles_are_told_apart() {
        let profile = Some("docker-default (enforce)".to_owned());
        let confined = Surroundings { profile: profile.clone(), ..docker() };
        let unfiltered = Surroundings { filtered: false, ..confined.clone() };
        insta::assert_snapshot!(entering(&docker()), @"the container's seccomp profile, such as Docker's default one, denies a user namespace (EPERM); docker run --security-opt seccomp=unconfined, or docker run --privileged");
        insta::assert_snapshot!(entering(&confined), @"the container's seccomp profile, such as Docker's default one, denies a user namespace (EPERM); docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or docker run --privileged");
        insta::assert_snapshot!(told(Asked::Mount, 1, Errno::EACCES, &confined), @"the AppArmor profile docker-default (enforce) denies a mount namespace (EACCES); docker run --security-opt apparmor=unconfined, or docker run --privileged");
        insta::assert_snapshot!(told(Asked::Mount, 1, Errno::EPERM, &unfiltered), @"the AppArmor profile docker-default (enforce) denies a mount namespace (EPERM); docker run --security-opt apparmor=unconfined, or docker run --privileged");
        insta::assert_snapshot!(told(Asked::Proc, 2, Errno::EPERM, &docker()), @"parts of the present /proc are covered, so the kernel shows no other one (EPERM); docker run --security-opt systempaths=unconfined");
        insta::assert_snapshot!(entering(&Surroundings { filtered: true, ..host() }), @"a seccomp filter of our ancestors' denies a user namespace (EPERM); start it without the filter; for a systemd service: RestrictNamespaces=no and no SystemCallFilter=");
        insta::assert_snapshot!(entering(&Surroundings { container: Some(Kind::Podman), ..docker() }), @"the container's seccomp profile denies a user namespace (EPERM); podman run --security-opt seccomp=unconfined");
        insta::assert_snapshot!(entering(&Surroundings { container: Some(Kind::Kubernetes), ..docker() }), @"the container's seccomp profile denies a user namespace (EPERM); seccompProfile: {type: Unconfined} in the securityContext");
        let killed = explain(Asked::UserNamespace, Tried::Killed(libc::SIGSYS), &docker()).to_string();
        insta::assert_snapshot!(killed, @"a seccomp filter kills who asks for a user namespace; docker run --security-opt seccomp=unconfined, or docker run --privileged");
    }

    #[test]
    fn what_is_left_is_told_too() {
        insta::assert_snapshot!(entering(&Surroundings { chrooted: true, filtered: true, ..host() }), @"we are in a chroot, where the kernel gives a user namespace to nobody (EPERM); enter the directory by a mount namespace, such as bwrap's or systemd-nspawn's, not by chroot");
        insta::assert_snapshot!(entering(&Surroundings { mapped: false, ..host() }), @"our user or group has no number in this user namespace (EPERM); run as a user that /proc/self/uid_map covers");
        insta::assert_snapshot!(entering(&Surroundings { selinux: true, ..host() }), @"a user namespace was refused (EPERM), most likely by SELinux, which is enforcing; look for avc: denied in the audit log");
        insta::assert_snapshot!(entering(&host()), @"a user namespace was refused, by a chroot or a security module: Operation not permitted (EPERM)");
        insta::assert_snapshot!(told(Asked::Overlay, 5, Errno::EPERM, &host()), @"the kernel mounts no overlayfs in a user namespace (EPERM); a kernel from 5.11 on, or run as root");
        insta::assert_snapshot!(told(Asked::Overlay, 5, Errno::ENODEV, &host()), @"the kernel has no overlayfs (ENODEV); sudo modprobe overlay");
        insta::assert_snapshot!(told(Asked::Overlay, 6, Errno::EOVERFLOW, &host()), @"an overlay was refused: Value too large for defined data type (EOVERFLOW)");
        let missing = takes(Asked::UserNamespace, &explain(Asked::UserNamespace, Tried::Late, &host()));
        insta::assert_snapshot!(missing, @"it takes a user namespace, or root with CAP_SYS_ADMIN");
    }
}
