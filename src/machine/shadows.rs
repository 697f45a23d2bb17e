//! Finds what the machine's root must show differently from the host's: files that the host user may
//! not read, and files that are hidden.
//!
//! Guest root meets the host's permissions, not the guest's: `/etc/shadow`, `/root`, package
//! managers' locks are closed to it, and `useradd`, `su`, `dpkg` fail. So they are shadowed (see
//! the init's module of the same name). The search is over the places where system programs keep
//! such files; it runs natively, while the kernel boots, and takes a few milliseconds.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::unistd::{AccessFlags, faccessat};
use sekexe_init::protocol::{ByteBuf, Shadow, ShadowKind};

/// Where to look and how deep.
const PLACES: [(&str, usize); 7] =
    [("", 0), ("etc", 5), ("var", 4), ("home", 0), ("usr/share/polkit-1", 2), ("usr/local", 2), ("opt", 1)];

/// Directories that need no look: the guest covers them, or they are as large as their users made
/// them and programs do without what is closed in there, or everybody may read all of them.
const PASSED_OVER: [&str; 9] =
    ["proc", "sys", "dev", "run", "tmp", "mnt", "lost+found", "var/tmp", "var/lib/dpkg/info"];

/// Everything to shadow below `rootfs`, parents before children. `hidden` are absolute host paths;
/// `unreadable` says whether what we may not read shall be shadowed as well.
pub fn find(rootfs: &Path, hidden: &[PathBuf], unreadable: bool) -> Vec<Shadow> {
    let mut found = Vec::new();
    if unreadable {
        for (place, depth) in PLACES {
            search(rootfs, &rootfs.join(place), depth, &mut found);
        }
    }
    found.extend(hidden.iter().filter(|path| path.starts_with(rootfs)).cloned());
    found.sort();
    // What lies inside another one is gone with it.
    let mut outermost: Vec<PathBuf> = Vec::new();
    for path in found {
        if !outermost.last().is_some_and(|last| path.starts_with(last)) {
            outermost.push(path);
        }
    }
    describe(rootfs, &outermost, hidden)
}

/// Directories in which root of a machine puts things. Where their owner does not exist inside, the
/// kernel cannot bring them into an upper layer, and what is created in them fails with `EOVERFLOW`.
const FILLED: [&str; 27] = [
    "etc/apt",
    "etc/profile.d",
    "etc/ssl",
    "mnt",
    "usr/bin",
    "usr/include",
    "usr/lib",
    "usr/lib/x86_64-linux-gnu",
    "usr/local",
    "usr/local/bin",
    "usr/local/etc",
    "usr/local/include",
    "usr/local/lib",
    "usr/local/man",
    "usr/local/sbin",
    "usr/local/share",
    "usr/local/src",
    "usr/sbin",
    "usr/share",
    "usr/share/doc",
    "usr/share/man",
    "usr/src",
    "var/cache",
    "var/lib",
    "var/log",
    "var/opt",
    "var/tmp",
];

/// Those directories, to be there from the start.
pub fn filled(rootfs: &Path) -> Vec<Shadow> {
    let found = |name: &&str| {
        let metadata = fs::symlink_metadata(rootfs.join(name)).ok().filter(fs::Metadata::is_dir)?;
        Some(shadow(Path::new(name), ShadowKind::Directory, &metadata))
    };
    FILLED.iter().filter_map(found).collect()
}

fn search(rootfs: &Path, directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() {
            let inside = path.strip_prefix(rootfs).unwrap_or(&path);
            if PASSED_OVER.iter().any(|name| inside == Path::new(name)) {
                continue;
            }
            if !may(&path, AccessFlags::R_OK | AccessFlags::X_OK) {
                found.push(path);
            } else if depth > 0 {
                search(rootfs, &path, depth - 1, found);
            }
        } else if kind.is_file() && !may(&path, AccessFlags::R_OK) {
            found.push(path);
        }
    }
}

fn may(path: &Path, flags: AccessFlags) -> bool {
    faccessat(AT_FDCWD, path, flags, nix::fcntl::AtFlags::AT_EACCESS).is_ok()
}

/// Turns paths into shadows, with an entry for each directory on the way.
fn describe(rootfs: &Path, paths: &[PathBuf], hidden: &[PathBuf]) -> Vec<Shadow> {
    let mut shadows: Vec<Shadow> = Vec::new();
    let mut parents: Vec<PathBuf> = Vec::new();
    for path in paths {
        let Ok(inside) = path.strip_prefix(rootfs) else { continue };
        for parent in ancestors_from_top(inside) {
            if !parents.iter().any(|known| known == parent) {
                let Ok(metadata) = fs::metadata(rootfs.join(parent)) else { continue };
                shadows.push(shadow(parent, ShadowKind::Directory, &metadata));
                parents.push(parent.to_owned());
            }
        }
        let Ok(metadata) = fs::symlink_metadata(path) else { continue };
        let kind = if hidden.contains(path) {
            ShadowKind::Absent
        } else if metadata.is_dir() {
            ShadowKind::EmptyDirectory
        } else {
            replacement(rootfs, inside)
        };
        shadows.push(shadow(inside, kind, &metadata));
    }
    shadows
}

/// The directories above `path`, outermost first.
fn ancestors_from_top(path: &Path) -> Vec<&Path> {
    let mut all: Vec<&Path> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
    all.reverse();
    all
}

/// An unreadable file is absent, but for the two that programs cannot do without: they are made
/// anew from their readable halves, with locked passwords.
fn replacement(rootfs: &Path, inside: &Path) -> ShadowKind {
    let lines = |file: &str, line: fn(&[&str]) -> String| -> Option<ShadowKind> {
        let text = String::from_utf8_lossy(&fs::read(rootfs.join(file)).ok()?).into_owned();
        let made: String = text.lines().map(|l| line(&l.split(':').collect::<Vec<_>>())).collect();
        Some(ShadowKind::File(ByteBuf::from(made.into_bytes())))
    };
    let made = match inside.to_str() {
        // Day 19700 lies in 2023: a password that was once changed, so that nobody is asked to.
        Some("etc/shadow") => lines("etc/passwd", |f| format!("{}:*:19700:0:99999:7:::\n", f[0])),
        Some("etc/gshadow") => {
            lines("etc/group", |f| format!("{}:*::{}\n", f[0], f.get(3).copied().unwrap_or_default()))
        }
        _ => None,
    };
    made.unwrap_or(ShadowKind::Absent)
}

fn shadow(inside: &Path, kind: ShadowKind, metadata: &fs::Metadata) -> Shadow {
    let path = ByteBuf::from(inside.as_os_str().as_bytes());
    Shadow { path, kind, uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & 0o7777 }
}
