//! Whether a group of ours can be made: one is made, limited and removed.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::Hierarchy;
use crate::detect::Support;

/// Makes a group below ours with a memory limit, and takes everything back.
pub fn delegated(second: Option<&Hierarchy>, controllers: &[String], first: bool) -> Support {
    let Some(second) = second else {
        return Support::no("control groups of version 2 are not mounted", None);
    };
    if !controllers.iter().any(|name| name == "memory") {
        return match first {
            true => Support::no(
                "the controllers are in hierarchies of version 1",
                Some("systemd.unified_cgroup_hierarchy=1 on the kernel's command line"),
            ),
            false => Support::no(format!("{} has no memory controller", second.own.display()), DELEGATE),
        };
    }
    match try_limit(&second.own) {
        Ok(()) => Support::Yes,
        Err((what, error)) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EROFS) => Support::no(
                format!("{} is mounted read-only", second.mount.display()),
                Some("for Docker: docker run --privileged --cgroupns=private"),
            ),
            Some(Errno::EBUSY) => {
                Support::no(format!("{} has other processes than us (EBUSY)", second.own.display()), DELEGATE)
            }
            _ => Support::no(format!("{what} in {}: {error}", second.own.display()), DELEGATE),
        },
    }
}

/// A group that belongs to one program and its user.
const DELEGATE: Option<&str> = Some("systemd-run --user --scope -p Delegate=yes sekexe-ci ...");

/// A group that hands controllers down may hold no processes itself. So we move into a group below
/// and back.
fn try_limit(own: &Path) -> Result<(), (&'static str, std::io::Error)> {
    let at = |what| move |error| (what, error);
    let name = |kind| own.join(format!("sekexe-{kind}-{}", std::process::id()));
    let (shelter, limited) = (Group::create(name("shelter")), name("limited"));
    let shelter = shelter.map_err(at("a group cannot be made"))?;
    if shelter.0.join("memory.max").exists() {
        return fs::write(shelter.0.join("memory.max"), "max").map_err(at("a limit cannot be set"));
    }
    let _moved = Moved::into(&shelter.0, own).map_err(at("we cannot move into another group"))?;
    let control = own.join("cgroup.subtree_control");
    fs::write(&control, "+memory").map_err(at("no controller can be handed down"))?;
    let done = Group::create(limited)
        .and_then(|limited| fs::write(limited.0.join("memory.max"), "max"))
        .map_err(at("a limit cannot be set"));
    fs::write(&control, "-memory").map_err(at("a controller cannot be taken back"))?;
    done
}

/// A group that goes when dropped.
struct Group(PathBuf);

impl Group {
    fn create(path: PathBuf) -> std::io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Us in another group until dropped.
struct Moved<'a>(&'a Path);

impl<'a> Moved<'a> {
    fn into(group: &Path, home: &'a Path) -> std::io::Result<Self> {
        fs::write(group.join("cgroup.procs"), "0")?;
        Ok(Self(home))
    }
}

impl Drop for Moved<'_> {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.procs"), "0");
    }
}
