//! Fills the upper layer so that the root shows something else where the host user cannot look,
//! or does not want the machine to look.
//!
//! The host has worked out which paths these are, while the machine was starting. A file becomes a
//! whiteout rather than an empty file: programs handle a missing key file, and trip over an empty
//! one. A directory becomes an empty one with the original's owner and mode, so that a package
//! manager finds its place and may write there.

use std::ffi::{CStr, OsStr};
use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown};
use std::path::Path;

use crate::protocol::{Shadow, ShadowKind};
use anyhow::{Result, bail};
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::sys;

const SET_GROUP_ID: u32 = 0o2000;

/// How an upper layer is filled.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// The attribute by which a directory hides the lower layer's.
    pub opaque: &'static CStr,
    /// The host's user and group whose files the lower layer shows as root's.
    pub owner: Option<(u32, u32)>,
    /// Whether every owner exists in here; otherwise a file of another one is root's.
    pub every_owner: bool,
}

/// Applies every shadow to an upper layer, and returns those that failed, with the reasons.
pub fn apply<'a>(shadows: &'a [Shadow], upper: &Path, style: Style) -> Vec<(&'a Shadow, anyhow::Error)> {
    // What is made in such a directory is its group's.
    let group_is_inherited = shadows.iter().any(|shadow| shadow.mode & SET_GROUP_ID != 0);
    let attempt = |shadow: &Shadow| {
        let at = upper.join(OsStr::from_bytes(&shadow.path));
        if !make(shadow, &at, style)? {
            return Ok(());
        }
        let (user, group) = style.owner.unwrap_or((0, 0));
        let root_if = |id, mapped| if id == mapped { 0 } else { id };
        let owner = (root_if(shadow.uid, user), root_if(shadow.gid, group));
        if owner != (0, 0) || group_is_inherited {
            let owned = lchown(&at, Some(owner.0), Some(owner.1));
            if style.every_owner {
                owned?;
            }
        }
        // A directory has it already, but for what the usual umask was in the way of.
        if matches!(shadow.kind, ShadowKind::File(_)) || shadow.mode & !0o755 != 0 {
            fs::set_permissions(&at, Permissions::from_mode(shadow.mode))?;
        }
        Ok(())
    };
    shadows.iter().filter_map(|shadow| Some((shadow, attempt(shadow).err()?))).collect()
}

/// Makes what stands for the path. Returns whether that has an owner and a mode yet to be set.
fn make(shadow: &Shadow, at: &Path, style: Style) -> Result<bool> {
    let directory = || DirBuilder::new().mode(shadow.mode).create(at);
    match &shadow.kind {
        ShadowKind::Absent => {
            mknod(at, SFlag::S_IFCHR, Mode::empty(), 0)?;
            return Ok(false);
        }
        ShadowKind::EmptyDirectory => {
            directory()?;
            sys::set_attribute(at, style.opaque, b"y")?;
        }
        ShadowKind::Directory => match directory() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && at.is_dir() => return Ok(false),
            done => done?,
        },
        ShadowKind::File(contents) => {
            // A layer that has nothing else in that directory yet.
            at.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(at, contents)?;
        }
    }
    Ok(true)
}

/// Applies a shadow to a directory that no layer lies below: what is hidden is not there anyway.
pub fn apply_directly(shadow: &Shadow, root: &Path) -> Result<()> {
    let at = root.join(OsStr::from_bytes(&shadow.path));
    let exists = at.symlink_metadata().is_ok();
    match &shadow.kind {
        ShadowKind::Absent if exists => bail!("it is visible"),
        ShadowKind::Absent | ShadowKind::Directory => return Ok(()),
        ShadowKind::EmptyDirectory if exists => return Ok(()),
        ShadowKind::EmptyDirectory => fs::create_dir_all(&at)?,
        ShadowKind::File(contents) => {
            // It may be a link to somewhere else.
            let _ = fs::remove_file(&at);
            fs::write(&at, contents)?;
        }
    }
    Ok(fs::set_permissions(&at, Permissions::from_mode(shadow.mode))?)
}
