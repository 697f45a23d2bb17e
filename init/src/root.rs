//! Assembles the machine's root: the host's files below, a throw-away layer above.
//!
//! The kernel starts us in a small read-only directory of the host that holds this program and
//! empty mount points. From there the root is put together and entered; the small directory is
//! then out of reach.
//!
//! Everything writable that is thrown away (the upper layer, `/tmp`, `/run`, the stores of
//! container engines, `/dev/shm`) shares one tmpfs with one size limit: a full one is `ENOSPC` for
//! the writer, while several of them could together fill guest memory, which is a kernel panic.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};
use sekexe_init::protocol::{Boot, Share};

use crate::{shadows, sys};

/// The one tmpfs.
const SCRATCH: &str = "/scratch";
/// The host's files, read-only.
const LOWER: &str = "/scratch/lower";
/// The host's files again, for `--rw`.
const HOST: &str = "/scratch/host";
/// Where the new root is put together.
const ROOT: &str = "/scratch/root";

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

/// Mounts the throw-away layer, and makes the mount points that the rest needs.
pub fn provide_scratch(boot: &Boot) -> Result<()> {
    let size = format!("size={},nr_inodes=0,mode=0755", boot.writable_bytes);
    mount(Some("scratch"), SCRATCH, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
        .context("mount the throw-away layer")?;
    [LOWER, HOST, ROOT].into_iter().try_for_each(|at| create_directory(Path::new(at), 0o755))
}

/// Loads what a distribution's kernel keeps in modules; they lie in the lower layer.
pub fn load_modules(boot: &Boot) -> Result<()> {
    if boot.modules.is_empty() {
        return Ok(());
    }
    mount_hostfs(Path::new("/"), LOWER, true, false)?;
    for module in &boot.modules {
        let file = Path::new(LOWER).join(path(module).strip_prefix("/").unwrap_or(path(module)));
        let opened = File::open(&file).with_context(|| format!("open {}", file.display()))?;
        sys::load_module(&opened).with_context(|| format!("load {}", path(module).display()))?;
    }
    umount2(LOWER, MntFlags::empty()).context("unmount the module directory")
}

/// Puts the new root together at [`ROOT`].
pub fn assemble(boot: &Boot, warnings: &mut Vec<String>) -> Result<()> {
    let mapped = mount_hostfs(path(&boot.rootfs), LOWER, true, boot.owner.is_some())?;
    let owner = boot.owner.filter(|_| mapped);
    let upper = overlay("layer", LOWER, Path::new(ROOT), |upper| {
        shadows::apply(&boot.shadows, upper, owner, warnings);
        Ok(())
    })?;
    fs::set_permissions(upper, fs::metadata(LOWER)?.permissions()).context("set the mode of /")?;

    for (place, mode) in PRIVATE {
        let source = Path::new(SCRATCH).join(place.replace('/', "-"));
        create_directory(&source, mode)?;
        let target = Path::new(ROOT).join(place);
        if create_mount_point(&target, true).is_ok() {
            bind(&source, &target)?;
        }
    }
    share_host_paths(boot, mapped)
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

/// Brings the paths of `--rw` and the working directory into the root, shortest path first, so
/// that a path inside another one lies above it.
fn share_host_paths(boot: &Boot, map_owner: bool) -> Result<()> {
    if boot.shares.is_empty() {
        return Ok(());
    }
    mount_hostfs(Path::new("/"), HOST, false, map_owner)?;
    let mut shares: Vec<&Share> = boot.shares.iter().collect();
    shares.sort_by_key(|share| share.path.len());
    for (number, share) in shares.into_iter().enumerate() {
        let inside = path(&share.path).strip_prefix("/").unwrap_or(path(&share.path));
        let (source, target) = (Path::new(HOST).join(inside), Path::new(ROOT).join(inside));
        create_mount_point(&target, share.directory)
            .with_context(|| format!("create {} in the guest", path(&share.path).display()))?;
        if share.writable {
            bind(&source, &target)?;
        } else if share.directory {
            throw_away(number, &source, &target)?;
        }
    }
    umount2(HOST, MntFlags::MNT_DETACH).context("unmount the host's files")
}

/// An overlay of its own for a directory that a private place such as `/tmp` would hide. The
/// directory is bound to a name of ours first, so that no path of the user's is part of a mount
/// option.
fn throw_away(number: usize, source: &Path, target: &Path) -> Result<()> {
    let name = format!("share-{number}");
    let lower = Path::new(SCRATCH).join(&name).join("lower");
    create_directory(lower.parent().unwrap_or(&lower), 0o755)?;
    create_directory(&lower, 0o755)?;
    bind(source, &lower)?;
    let lower = lower.to_str().context("a path of ours is not text")?;
    let upper = overlay(&name, lower, target, |_| Ok(()))?;
    fs::set_permissions(upper, fs::metadata(lower)?.permissions())?;
    Ok(())
}

/// Mounts an overlay of `lower` at `target`, after `prepare` has filled its upper layer, and
/// returns that layer.
fn overlay(
    name: &str,
    lower: &str,
    target: &Path,
    prepare: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let base = format!("{SCRATCH}/{name}");
    let (upper, work) = (format!("{base}/upper"), format!("{base}/work"));
    DirBuilder::new().recursive(true).create(&base).context("create the throw-away layer")?;
    create_directory(Path::new(&upper), 0o755)?;
    create_directory(Path::new(&work), 0o755)?;
    prepare(Path::new(&upper))?;
    // With redirect_dir a directory of the lower layer can be renamed; without it that is EXDEV.
    let layers = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let best = format!("{layers},redirect_dir=on");
    let attempt =
        |options: &str| mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options));
    attempt(&best).or_else(|_| attempt(&layers)).context("mount the root overlay")?;
    Ok(upper.into())
}

/// Mounts hostfs, with the host user's files as root's where that is wanted and the kernel can do
/// it; returns whether it does. To a kernel without that option the whole string is a path, and one
/// that does not exist.
fn mount_hostfs(root: &Path, at: &str, read_only: bool, map_owner: bool) -> Result<bool> {
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let attempt = |data: &OsStr| mount(Some("hostfs"), at, Some("hostfs"), flags, Some(data));
    if map_owner {
        let mut data = OsString::from("map_owner,");
        data.push(root);
        if attempt(&data).is_ok() {
            return Ok(true);
        }
    }
    attempt(root.as_os_str()).with_context(|| format!("mount the host's {} over hostfs", root.display()))?;
    Ok(false)
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, NO_OPTIONS, MsFlags::MS_BIND, NO_OPTIONS)
        .with_context(|| format!("bind {}", target.display()))
}

fn create_directory(at: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().mode(mode).create(at).with_context(|| format!("create {}", at.display()))?;
    // The umask does not apply to this call.
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
