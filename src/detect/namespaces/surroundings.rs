//! What may deny namespaces, as far as it can be read. Only read after a denial.

use std::fs;
use std::path::Path;

use nix::unistd::{Gid, Uid};

use crate::detect::container::{self, Kind};
use crate::sys::read_kernel_text;

/// The suspects.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `CAP_SYS_ADMIN` where we are.
    pub admin: bool,
    /// Whether a seccomp filter is in force.
    pub filtered: bool,
    /// Our AppArmor profile, if we have one that confines.
    pub profile: Option<String>,
    /// Whether SELinux enforces.
    pub selinux: bool,
    /// `user.max_user_namespaces`.
    pub max_user_namespaces: Option<u64>,
    /// `kernel.unprivileged_userns_clone`, of Debian's and some other kernels.
    pub userns_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, of Ubuntu's kernels.
    pub apparmor_restricts: Option<u64>,
    /// Whether `/proc` is there.
    pub proc: bool,
    /// Whether our root is not the root of our mount namespace, as far as that shows.
    pub chrooted: bool,
    /// Whether our user and group have a number in our user namespace.
    pub mapped: bool,
    /// The container that we are in.
    pub container: Option<Kind>,
}

/// What the kernel shows for an id that has no number here (`/proc/sys/kernel/overflowuid`).
const OVERFLOW: u32 = 65_534;
/// `CAP_SYS_ADMIN` as a bit.
const ADMIN: u64 = 1 << 21;

impl Surroundings {
    /// Reads it.
    pub fn read() -> Self {
        let status = read_kernel_text("/proc/self/status").unwrap_or_default();
        let label = ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"]
            .into_iter()
            .find_map(|path| fs::read_to_string(path).ok())
            .map(|label| label.trim_end_matches(['\0', '\n']).to_owned());
        let apparmor = Path::new("/sys/module/apparmor").exists();
        Self {
            admin: Self::has_admin_capability(),
            filtered: field(&status, "Seccomp:").is_some_and(|mode| mode == "2"),
            profile: label.filter(|label| apparmor && !label.is_empty() && !label.starts_with("unconfined")),
            selinux: fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim() == "1"),
            max_user_namespaces: setting("/proc/sys/user/max_user_namespaces"),
            userns_clone: setting("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restricts: setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            proc: !status.is_empty(),
            chrooted: is_chrooted(),
            mapped: Uid::effective().as_raw() != OVERFLOW && Gid::effective().as_raw() != OVERFLOW
                || has_overflow_user(),
            container: container::probe(&[]).map(|found| found.kind),
        }
    }

    /// Whether we have `CAP_SYS_ADMIN` where we are.
    pub fn has_admin_capability() -> bool {
        let status = read_kernel_text("/proc/self/status").unwrap_or_default();
        let effective = field(&status, "CapEff:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
        effective.is_some_and(|mask| mask & ADMIN != 0)
    }
}

/// A `nobody` with that very number is as good as anybody, where every number is mapped.
fn has_overflow_user() -> bool {
    let map = read_kernel_text("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let mut words = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (words.next(), words.next(), words.next())
        else {
            return false;
        };
        (first..first + count).contains(&OVERFLOW.into())
    })
}

/// A chroot into a directory shows no mount of its root; one into a mount shows in the root of
/// process 1, if we may look there.
fn is_chrooted() -> bool {
    use std::os::unix::fs::MetadataExt;
    let mounts = read_kernel_text("/proc/self/mountinfo").unwrap_or_default();
    let has_root = mounts.lines().any(|line| line.split(' ').nth(4) == Some("/"));
    let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let init = fs::metadata("/proc/1/root/").ok().zip(fs::metadata("/").ok());
    !mounts.is_empty() && !has_root || init.is_some_and(|(init, own)| !same(&init, &own) && in_init_mounts())
}

/// Whether process 1 has our mount namespace: another one has another root without any chroot.
fn in_init_mounts() -> bool {
    let link = |who: &str| fs::read_link(format!("/proc/{who}/ns/mnt")).ok();
    link("1").is_some_and(|init| link("self") == Some(init))
}

fn setting(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A field of `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
