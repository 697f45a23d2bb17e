//! A yes is remembered, so that the next start need not ask again.
//!
//! What is kept is a digest of everything known that can change the answer. Only an answer that is
//! a yes throughout is kept, so there is nothing to keep but the digest: a file that is missing,
//! damaged or of another situation means that the kernel is asked. Should the answer have changed
//! in a way that the digest does not cover, the machine's start fails and says so.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Gid, Uid};
use sha2::{Digest, Sha256};

use super::{Namespaces, Privilege, probe};
use crate::detect::{Support, subordinate};
use crate::sys::{read_kernel_file, read_kernel_text};

/// Below the cache directory.
const FILE: &str = "namespaces";

/// Like [`probe`], but remembers a yes below `cache_dir`.
pub fn probe_cached(path: &OsStr, cache_dir: Option<&Path>) -> Namespaces {
    let Some(dir) = cache_dir else { return probe(path) };
    let situation = situation();
    if fs::read(dir.join(FILE)).is_ok_and(|kept| kept == situation) {
        return Namespaces::all(subordinate::probe(path));
    }
    let found = probe(path);
    if found == Namespaces::all(found.subordinate_ids.clone()) {
        // Without it the next start takes some milliseconds longer; that is no reason to complain.
        let _ = keep(dir, &situation);
    }
    found
}

impl Namespaces {
    /// Yes throughout, but for what is no question of the kernel's.
    fn all(subordinate_ids: Support) -> Self {
        let yes = || Support::Yes;
        Self {
            privilege: Privilege::UserNamespace,
            user: yes(),
            mount: yes(),
            pid: yes(),
            network: yes(),
            ipc: yes(),
            uts: yes(),
            cgroup: yes(),
            time: yes(),
            overlay: yes(),
            proc: yes(),
            nested: yes(),
            subordinate_ids,
        }
    }
}

fn keep(dir: &Path, situation: &[u8]) -> std::io::Result<()> {
    // A home directory that does not exist is not ours to make.
    if !dir.ancestors().nth(2).is_some_and(Path::is_dir) {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(situation)?;
    file.persist(dir.join(FILE))?;
    Ok(())
}

/// A digest of what decides over namespaces.
fn situation() -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    // Another version of this program may ask other questions.
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(&Uid::effective().as_raw().to_le_bytes());
    add(&Gid::effective().as_raw().to_le_bytes());
    for file in [
        "/proc/sys/kernel/random/boot_id",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/kernel/unprivileged_userns_clone",
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "/proc/self/attr/current",
    ] {
        add(&read_kernel_file(file).unwrap_or_default());
    }
    // The others are given wherever these are.
    for name in ["user", "mnt", "pid"] {
        let link = fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default();
        add(link.as_os_str().as_encoded_bytes());
    }
    let status = read_kernel_text("/proc/self/status").unwrap_or_default();
    for line in status.lines() {
        if ["CapEff:", "NoNewPrivs:", "Seccomp"].iter().any(|name| line.starts_with(name)) {
            add(line.as_bytes());
        }
    }
    // A chroot shows nowhere else.
    let root = fs::metadata("/").map_or((0, 0), |root| (root.dev(), root.ino()));
    add(&root.0.to_le_bytes());
    add(&root.1.to_le_bytes());
    hash.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_yes_is_kept_and_a_damaged_file_is_asked_again() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("cache");
        let path = OsStr::new("/usr/bin");
        let asked = probe(path);
        let kept = || fs::read(dir.join(FILE)).ok();
        let whole = asked == Namespaces::all(asked.subordinate_ids.clone());
        for damage in [None, Some(&b""[..]), Some(b"other"), Some(&[0; 32])] {
            if let Some(bytes) = damage {
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join(FILE), bytes).unwrap();
            }
            assert_eq!(probe_cached(path, Some(&dir)), asked, "after {damage:?}");
            assert_eq!(kept() == Some(situation()), whole, "after {damage:?}");
        }
        // The file is believed, so it is really looked at.
        keep(&dir, &situation()).unwrap();
        assert_eq!(probe_cached(path, Some(&dir)), Namespaces::all(asked.subordinate_ids.clone()));
        // A place that cannot be written is none.
        assert_eq!(probe_cached(path, Some(Path::new("/proc/none"))), asked);
    }
}
