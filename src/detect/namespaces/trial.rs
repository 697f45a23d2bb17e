//! What is tried: the calls of the namespaces machine, in its order.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use super::Privilege;
use super::identity::{Identity, PRIVATE};
use crate::sys::probe::{Call, Tried, attempt};

/// A child that takes longer than this is stuck.
const DEADLINE: Duration = Duration::from_secs(5);
/// Not in nix: the flag came after the 32 bits of `clone` were full.
const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(nix::libc::CLONE_NEWTIME);
/// Written to a file and read back.
const WORD: &[u8] = b"sekexe";

/// Places of the lists of calls.
pub mod list {
    pub const USER: usize = 0;
    pub const MOUNT: usize = 1;
    pub const NETWORK: usize = 2;
    pub const IPC: usize = 3;
    pub const UTS: usize = 4;
    pub const CGROUP: usize = 5;
    pub const TIME: usize = 6;
    pub const OVERLAY: usize = 7;
    pub const PID: usize = 8;
    pub const PROC: usize = 9;
    pub const NESTED: usize = 10;
}

/// What must not be composed in the child.
pub struct Arguments {
    identity: Identity,
    stage: CString,
    overlay: Overlay,
}

struct Overlay {
    lower: CString,
    upper: CString,
    work: CString,
    merged: CString,
    file: CString,
    options: CString,
}

impl Arguments {
    /// Chooses the directories.
    pub fn new() -> Self {
        // Covered by a tmpfs, in a mount namespace that ends with the child.
        let stage =
            ["/tmp", "/var/tmp", "/mnt", "/run"].into_iter().find(|dir| is_directory(dir)).unwrap_or("/dev");
        let lower = lower(&fs::read("/proc/self/mountinfo").unwrap_or_default());
        let text = |text: String| CString::new(text).unwrap_or_default();
        let below = |name: &str| text(format!("{stage}/{name}"));
        Self {
            identity: Identity::root_is_caller(),
            stage: text(stage.to_owned()),
            overlay: Overlay {
                lower: below("lower"),
                upper: below("upper"),
                work: below("work"),
                merged: below("merged"),
                file: below("merged/.sekexe-probe"),
                options: text(format!(
                    "lowerdir={},upperdir={stage}/upper,workdir={stage}/work,userxattr",
                    lower.map_or_else(|| format!("{stage}/lower"), str::to_owned),
                )),
            },
        }
    }

    /// Tries everything, in a user namespace or as root of where we are. Gives an answer for each of
    /// [`list`].
    pub fn attempt(&self, privilege: Privilege) -> io::Result<Vec<Tried>> {
        let stage = self.stage.as_c_str();
        let mount = |kind, flags| Call::Mount { kind, at: stage, flags, data: c"" };
        let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let overlay = &self.overlay;
        let user = self.identity.calls();
        let mut lists: [&[Call<'_>]; list::NESTED + 1] = [&[]; list::NESTED + 1];
        lists[list::USER] = if privilege == Privilege::RealRoot { &[] } else { &user };
        let mounts = [Call::Unshare(CloneFlags::CLONE_NEWNS), PRIVATE, mount(c"tmpfs", hardened)];
        lists[list::MOUNT] = &mounts;
        lists[list::NETWORK] = &[Call::Unshare(CloneFlags::CLONE_NEWNET), Call::RaiseLoopback];
        lists[list::IPC] = &[Call::Unshare(CloneFlags::CLONE_NEWIPC)];
        lists[list::UTS] = &[Call::Unshare(CloneFlags::CLONE_NEWUTS), Call::SetHostname(WORD)];
        lists[list::CGROUP] = &[Call::Unshare(CloneFlags::CLONE_NEWCGROUP)];
        lists[list::TIME] = &[Call::Unshare(CLONE_NEWTIME)];
        let layers = [
            Call::After(list::MOUNT),
            Call::MakeDirectory(&overlay.lower),
            Call::MakeDirectory(&overlay.upper),
            Call::MakeDirectory(&overlay.work),
            Call::MakeDirectory(&overlay.merged),
            Call::Mount { kind: c"overlay", at: &overlay.merged, flags: hardened, data: &overlay.options },
            Call::Create(&overlay.file, WORD),
            Call::Expect(&overlay.file, WORD),
        ];
        lists[list::OVERLAY] = &layers;
        lists[list::PID] = &[Call::Descend(CloneFlags::CLONE_NEWPID)];
        let proc =
            [Call::After(list::MOUNT), Call::After(list::PID), mount(c"proc", hardened | MsFlags::MS_NOEXEC)];
        lists[list::PROC] = &proc;
        // Last, because nothing of the first namespace can be changed from the second.
        let nested = [
            Call::After(list::USER),
            Call::After(list::MOUNT),
            Call::Unshare(CloneFlags::CLONE_NEWUSER.union(CloneFlags::CLONE_NEWNS)),
            Call::Write(c"/proc/self/setgroups", b"deny"),
            Call::Write(c"/proc/self/uid_map", b"0 0 1"),
            Call::Write(c"/proc/self/gid_map", b"0 0 1"),
        ];
        lists[list::NESTED] = &nested;
        outlive(&mut lists)
    }
}

/// Goes through the lists, again without those that got the child killed, so that a filter that
/// kills denies what it denies and no more.
fn outlive<'a>(lists: &mut [&'a [Call<'a>]]) -> io::Result<Vec<Tried>> {
    /// Waits for a list that there is not, and so is never done, nor is what builds on it.
    const LEFT_OUT: &[Call<'static>] = &[Call::After(63)];
    let mut killers: Vec<(usize, Tried)> = Vec::new();
    loop {
        let mut tried = attempt(lists, DEADLINE)?;
        let killed = tried.iter().position(|tried| matches!(tried, Tried::Killed(_)));
        killers.extend(killed.map(|at| (at, tried[at])));
        match killed {
            Some(at) => lists[at] = LEFT_OUT,
            None => {
                killers.into_iter().for_each(|(at, killed)| tried[at] = killed);
                return Ok(tried);
            }
        }
    }
}

/// A directory of the host's below which nothing is mounted: whoever did not make those mounts may
/// not make a layer of them.
fn lower(mountinfo: &[u8]) -> Option<&'static str> {
    let mounts: Vec<&Path> = mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| Some(Path::new(OsStr::from_bytes(line.split(|byte| *byte == b' ').nth(4)?))))
        .collect();
    let free = |dir: &&str| !mounts.iter().any(|mount| mount.starts_with(dir) && *mount != Path::new(dir));
    ["/usr", "/usr/bin", "/usr/share", "/opt", "/bin", "/home", "/etc"]
        .into_iter()
        .filter(|dir| is_directory(dir))
        .find(free)
}

fn is_directory(path: &str) -> bool {
    Path::new(path).symlink_metadata().is_ok_and(|found| found.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_no_mounts_below_it() {
        assert_eq!(lower(b""), Some("/usr"));
        assert_eq!(lower(b"30 1 8:1 / /usr rw - ext4 /dev/sda1 rw\n"), Some("/usr"));
        assert_eq!(lower(b"30 1 8:1 / /usr/lib/wsl rw - ext4 /dev/sda1 rw\n"), Some("/usr/bin"));
    }
}
