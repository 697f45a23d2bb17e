//! The root of a guest: the host's files come over hostfs.
//!
//! The kernel starts us in a small read-only directory of the host that holds this program and
//! empty mount points. From there the root is put together and entered; the small directory is
//! then out of reach.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;

use crate::protocol::{Boot, Guest, Share};
use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{ROOT, SCRATCH, Xattrs, bind, create_directory, create_mount_point, overlay, path, throw_away};
use crate::shadows::{self, Style};
use crate::sys;

/// The host's files, read-only.
const LOWER: &str = "/scratch/lower";
/// The host's files again, for `--rw`.
const HOST: &str = "/scratch/host";

/// Mounts the throw-away layer, and makes the mount points that the rest needs.
pub fn provide_scratch(boot: &Boot) -> Result<()> {
    super::mount_scratch(SCRATCH, boot.writable_bytes)?;
    [LOWER, HOST, ROOT].into_iter().try_for_each(|at| create_directory(Path::new(at), 0o755))
}

/// Loads what a distribution's kernel keeps in modules; they lie in the lower layer.
pub fn load_modules(guest: &Guest) -> Result<()> {
    if guest.modules.is_empty() {
        return Ok(());
    }
    mount_hostfs(Path::new("/"), LOWER, true, false)?;
    for module in &guest.modules {
        let file = Path::new(LOWER).join(path(module).strip_prefix("/").unwrap_or(path(module)));
        let opened = File::open(&file).with_context(|| format!("open {}", file.display()))?;
        sys::load_module(&opened).with_context(|| format!("load {}", path(module).display()))?;
    }
    umount2(LOWER, MntFlags::empty()).context("unmount the module directory")
}

/// Puts the new root together at [`ROOT`].
pub fn assemble(boot: &Boot, guest: &Guest, warnings: &mut Vec<String>) -> Result<()> {
    let mapped = mount_hostfs(path(&boot.rootfs), LOWER, true, guest.owner.is_some())?;
    let owner = guest.owner.filter(|_| mapped);
    let mode = super::mode_of(LOWER).context("ask for the mode of /")?;
    overlay("layer", LOWER, Path::new(ROOT), mode, Xattrs::Trusted, |upper| {
        let style = Style { opaque: Xattrs::Trusted.opaque(), owner, every_owner: true };
        // The host enforces what must not be read, so a machine without a shadow is as safe.
        for (shadow, why) in shadows::apply(&boot.shadows, upper, style) {
            warnings.push(format!("/{} is not shadowed: {why}", path(&shadow.path).display()));
        }
        Ok(())
    })?;
    super::provide_private_places(false)?;
    share_host_paths(boot, mapped)
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
            throw_away(number, &target, Xattrs::Trusted, |lower| bind(&source, lower))?;
        }
    }
    umount2(HOST, MntFlags::MNT_DETACH).context("unmount the host's files")
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
