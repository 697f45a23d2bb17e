//! Assembles the machine's root: the host's files below, a throw-away layer above.
//!
//! Where the host's files come from differs: hostfs in a guest ([`guest`]), the host's own mounts
//! in namespaces ([`namespaces`]). What they have in common is here.
//!
//! Everything writable that is thrown away (the upper layers, `/tmp`, `/run`, the stores of
//! container engines, `/dev/shm`) shares one tmpfs with one size limit: a full one is `ENOSPC` for
//! the writer, while several of them could together fill the machine's memory.

pub mod guest;
pub mod namespaces;

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use crate::sys::mounts::{self, Attributes};

/// The one tmpfs.
const SCRATCH: &str = "/scratch";
/// Where the new root is put together.
pub const ROOT: &str = "/scratch/root";

/// Places of their own on the scratch tmpfs: path in the root and permission bits. Container
/// engines are among them because an overlay cannot be the upper layer of another overlay.
const PRIVATE: [(&str, u32); 6] = [
    ("tmp", 0o1777),
    ("run", 0o755),
    ("dev/shm", 0o1777),
    ("var/lib/docker", 0o710),
    ("var/lib/containerd", 0o711),
    ("var/lib/containers", 0o700),
];

const NO_OPTIONS: Option<&str> = None;

/// Mounts the throw-away layer.
fn mount_scratch(at: &str, size: u64) -> Result<()> {
    let options = format!("size={size},nr_inodes=0,mode=0755");
    mount(Some("scratch"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .context("mount the throw-away layer")
}

/// Gives the new root its places that are neither the host's nor layered above it. `plain` says
/// that the root is the throw-away layer itself, so that no mount is needed where nothing is.
fn provide_private_places(plain: bool) -> Result<()> {
    for (place, mode) in PRIVATE {
        let target = Path::new(ROOT).join(place);
        let new = target.symlink_metadata().is_err();
        if create_mount_point(&target, true).is_err() {
            continue;
        }
        if plain && new {
            fs::set_permissions(&target, Permissions::from_mode(mode))?;
            continue;
        }
        let source = Path::new(SCRATCH).join(place.replace('/', "-"));
        create_directory(&source, mode)?;
        bind(&source, &target)?;
    }
    Ok(())
}

/// Makes the assembled root the root, and everything else unreachable.
pub fn enter() -> Result<()> {
    chdir(ROOT).context("enter the new root")?;
    pivot_root(".", ".").context("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leave the old root")?;
    chdir("/").context("enter the new root")?;
    // Container engines expect mounts to propagate.
    mount(NO_OPTIONS, "/", NO_OPTIONS, MsFlags::MS_SHARED | MsFlags::MS_REC, NO_OPTIONS)
        .context("share mounts")
}

/// An overlay of its own for a directory that a private place such as `/tmp` would hide. The
/// directory is mounted at a name of ours first, by `bring`, so that no path of the user's is part
/// of a mount option.
fn throw_away(
    number: usize,
    target: &Path,
    xattrs: Xattrs,
    bring: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let name = format!("share-{number}");
    let lower = Path::new(SCRATCH).join(format!("{name}-lower"));
    create_directory(&lower, 0o755)?;
    bring(&lower)?;
    let mode = mode_of(&lower)?;
    let lower = lower.to_str().context("a path of ours is not text")?;
    overlay(&name, lower, target, mode, xattrs, |_| Ok(()))
}

/// Where an overlay keeps its notes on files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Xattrs {
    /// In attributes that only root of the host may set.
    Trusted,
    /// In attributes that anybody may set: all that there is in a user namespace.
    User,
}

impl Xattrs {
    /// The attribute by which a directory hides what the lower layer has in its place.
    fn opaque(self) -> &'static std::ffi::CStr {
        match self {
            Self::Trusted => c"trusted.overlay.opaque",
            Self::User => c"user.overlay.opaque",
        }
    }
}

/// Mounts an overlay of `lower` at `target`, after `prepare` has filled its upper layer. `name` is
/// any that no other overlay has, `mode` that of the directory that it shows.
fn overlay(
    name: &str,
    lower: &str,
    target: &Path,
    mode: u32,
    xattrs: Xattrs,
    prepare: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let mount = make_overlay(name, lower, mode, xattrs, Attributes::NONE, prepare)?;
    mounts::attach(&mount, target).with_context(|| format!("mount an overlay of {lower}"))
}

/// The same, not mounted anywhere yet.
fn make_overlay(
    name: &str,
    lower: &str,
    mode: u32,
    xattrs: Xattrs,
    attributes: Attributes,
    prepare: impl FnOnce(&Path) -> Result<()>,
) -> Result<OwnedFd> {
    let (upper, work) = (format!("{SCRATCH}/{name}-upper"), format!("{SCRATCH}/{name}-work"));
    create_directory(Path::new(&upper), mode)?;
    create_directory(Path::new(&work), 0o755)?;
    prepare(Path::new(&upper))?;
    let layers = [
        ("source", Some("overlay")),
        ("lowerdir", Some(lower)),
        ("upperdir", Some(upper.as_str())),
        ("workdir", Some(work.as_str())),
    ];
    let attempt = |more: &[_]| mounts::make("overlay", &[&layers, more].concat(), attributes);
    let made = match xattrs {
        // So that a directory of the lower layer can be renamed; without it that is EXDEV.
        Xattrs::Trusted => attempt(&[("redirect_dir", Some("on"))]).or_else(|_| attempt(&[])),
        Xattrs::User => attempt(&[("userxattr", None)]),
    };
    made.with_context(|| format!("make an overlay of {lower}"))
}

/// The permission bits of what is at a path.
fn mode_of(at: impl AsRef<Path>) -> std::io::Result<u32> {
    Ok(fs::metadata(at)?.permissions().mode() & 0o7777)
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, NO_OPTIONS, MsFlags::MS_BIND, NO_OPTIONS)
        .with_context(|| format!("bind {}", target.display()))
}

fn create_directory(at: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().mode(mode).create(at).with_context(|| format!("create {}", at.display()))?;
    if mode & 0o022 == 0 {
        return Ok(());
    }
    // The usual umask was in the way.
    fs::set_permissions(at, Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", at.display()))
}

/// Makes sure that something can be mounted at `at`.
fn create_mount_point(at: &Path, directory: bool) -> std::io::Result<()> {
    match fs::symlink_metadata(at) {
        Ok(found) if found.is_dir() == directory && !found.is_symlink() => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(at)?,
        Ok(_) => fs::remove_file(at)?,
        Err(_) => {}
    }
    if directory {
        return fs::create_dir_all(at);
    }
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(at).map(drop)
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}
