//! Fills the upper layer so that the root shows something else where the host user cannot look,
//! or does not want the guest to look.
//!
//! The host has worked out which paths these are, while the kernel was starting. A file becomes a
//! whiteout rather than an empty file: programs handle a missing key file, and trip over an empty
//! one. A directory becomes an empty one with the original's owner and mode, so that a package
//! manager finds its place and may write there.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

use anyhow::Result;
use nix::sys::stat::{Mode, SFlag, mknod};
use sekexe_init::protocol::{Shadow, ShadowKind};

use crate::sys;

/// Applies every shadow; one that fails is a warning, since a machine without it still works.
///
/// `owner` are the host's user and group whose files the lower layer shows as root's.
pub fn apply(shadows: &[Shadow], upper: &Path, owner: Option<(u32, u32)>, warnings: &mut Vec<String>) {
    for shadow in shadows {
        let at = upper.join(OsStr::from_bytes(&shadow.path));
        if let Err(error) = apply_one(shadow, &at, owner) {
            let name = String::from_utf8_lossy(&shadow.path);
            warnings.push(format!("/{name} is not shadowed: {error}"));
        }
    }
}

fn apply_one(shadow: &Shadow, at: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    match &shadow.kind {
        ShadowKind::Absent => {
            mknod(at, SFlag::S_IFCHR, Mode::empty(), 0)?;
            return Ok(());
        }
        ShadowKind::EmptyDirectory => {
            fs::create_dir(at)?;
            sys::mark_opaque(at)?;
        }
        ShadowKind::Directory => fs::create_dir(at)?,
        ShadowKind::File(contents) => fs::write(at, contents)?,
    }
    let (user, group) = owner.unwrap_or((0, 0));
    let root_if = |id, mapped| if id == mapped { 0 } else { id };
    lchown(at, Some(root_if(shadow.uid, user)), Some(root_if(shadow.gid, group)))?;
    fs::set_permissions(at, Permissions::from_mode(shadow.mode))?;
    Ok(())
}
