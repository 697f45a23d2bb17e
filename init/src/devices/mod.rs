//! The file systems that the kernel itself provides: `/dev`, `/proc`, `/sys` and what belongs there.

pub mod guest;
pub mod namespaces;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

const NOSUID_NOEXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
const NOTHING: MsFlags = NOSUID_NOEXEC.union(MsFlags::MS_NODEV);

fn attach(kind: &str, at: impl AsRef<Path>, flags: MsFlags, options: &str) -> Result<()> {
    let at = at.as_ref();
    fs::create_dir_all(at).with_context(|| format!("create {}", at.display()))?;
    mount(Some(kind), at, Some(kind), flags, Some(options)).with_context(|| format!("mount {kind}"))
}

/// The names that every program expects in `/dev`, and modes that let every user in.
fn complete(dev: &Path) {
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let _ = symlink(target, dev.join(name));
    }
}

fn let_everybody_in(dev: &Path) {
    for device in ["null", "zero", "full", "random", "urandom", "tty", "fuse"] {
        let _ = fs::set_permissions(dev.join(device), Permissions::from_mode(0o666));
    }
}
