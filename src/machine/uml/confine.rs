//! Landlock rules for the guest's kernel and everything it starts.
//!
//! Guest root can mount hostfs anywhere, read-write, so what the guest's kernel may do on the host
//! is what guest root may do on the host. Landlock only allows; what is hidden is left out by
//! allowing everything around it. Places that the guest covers with file systems of its own
//! (`/proc`, `/sys`, `/dev`, `/run`, `/tmp`) are not allowed at all: they hold other processes'
//! environments, sockets and other people's files, and the guest has no use for them.
//!
//! Names inside hidden directories can still be listed (a rule for a directory holds for
//! everything below it); their contents cannot be read.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope, make_bitflags,
};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

use super::Access;

/// The newest ABI that these rules were written for; an older kernel enforces what it knows.
const NEWEST: ABI = ABI::V6;

/// Covered by file systems of the guest's own.
const COVERED: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

/// What the guest's kernel itself looks at when it starts.
const NEEDED: [&str; 6] =
    ["/proc/cpuinfo", "/proc/meminfo", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"];

/// A ruleset ready to be entered, or none where the host's kernel has no Landlock.
pub struct Rules {
    /// The ruleset.
    pub fd: Option<OwnedFd>,
    /// The ABI in force, 0 for none.
    pub abi: u32,
}

/// Writes the rules for a guest with this access.
pub fn ruleset(access: &Access, kernel: &Path, run_dir: &Path) -> Result<Rules> {
    let read: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute | ReadFile | ReadDir});
    let all = AccessFs::from_all(NEWEST);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|r| r.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|r| r.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .context("create a Landlock ruleset")?;

    let skipped: Vec<PathBuf> = COVERED.iter().map(PathBuf::from).chain(access.hidden.clone()).collect();
    allow_around(&mut rules, &access.rootfs, read, &skipped)?;
    for path in &access.readable {
        allow_around(&mut rules, path, read, &access.hidden)?;
    }
    // To root of the host, a device file would be a real one.
    let change = all & !make_bitflags!(AccessFs::{MakeChar | MakeBlock});
    for path in &access.writable {
        allow(&mut rules, path, change)?;
    }
    // These are ours or the system's, links in them too.
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    allow(&mut rules, &real(run_dir), all)?;
    for path in NEEDED.iter().map(Path::new).chain([kernel]) {
        allow(&mut rules, &real(path), read)?;
    }
    allow(&mut rules, Path::new("/dev/null"), AccessFs::WriteFile.into())?;
    let fd: Option<OwnedFd> = rules.into();
    let abi = if fd.is_some() { enforced_abi() } else { 0 };
    Ok(Rules { fd, abi })
}

/// The smaller of the host's ABI and ours.
fn enforced_abi() -> u32 {
    let mut newest = 0;
    for abi in [ABI::V1, ABI::V2, ABI::V3, ABI::V4, ABI::V5, ABI::V6] {
        let known = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))
            .and_then(|r| match AccessNet::from_all(abi) {
                rights if rights.is_empty() => Ok(r),
                rights => r.handle_access(rights),
            })
            .and_then(|r| match Scope::from_all(abi) {
                scopes if scopes.is_empty() => Ok(r),
                scopes => r.scope(scopes),
            })
            .is_ok();
        if known {
            newest = abi as u32;
        }
    }
    newest
}

/// Allows `path` but for what is in `skipped`.
fn allow_around(
    rules: &mut RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
    skipped: &[PathBuf],
) -> Result<()> {
    if skipped.iter().any(|skip| skip == path) {
        return Ok(());
    }
    if !skipped.iter().any(|skip| skip.starts_with(path)) {
        return allow(rules, path, rights);
    }
    allow(rules, path, AccessFs::ReadDir.into())?;
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        // A link is judged by where it leads, which has a rule of its own.
        if !entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
            allow_around(rules, &entry.path(), rights, skipped)?;
        }
    }
    Ok(())
}

/// Allows `path` and what is below it. A path that we cannot open ourselves needs no rule, nor does
/// one in which there is a link meanwhile: where that leads is nothing that was to be allowed.
fn allow(rules: &mut RulesetCreated, path: &Path, rights: BitFlags<AccessFs>) -> Result<()> {
    let Ok(file) = open(path).map(File::from) else { return Ok(()) };
    let Ok(found) = file.metadata() else { return Ok(()) };
    let file_rights = if found.is_dir() { rights } else { rights & AccessFs::from_file(NEWEST) };
    if file_rights.is_empty() {
        return Ok(());
    }
    rules.add_rule(PathBeneath::new(file, file_rights)).map(drop).or_else(|error| {
        // Some special files cannot carry a rule; without one they are denied, which is safe.
        if found.is_file() || found.is_dir() {
            Err(error).with_context(|| format!("write a Landlock rule for {}", path.display()))
        } else {
            Ok(())
        }
    })
}

/// Opens a path in which nothing is a symbolic link, as far as the host lets us ask for that.
fn open(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(AT_FDCWD, path, how) {
        // Some containers' filters do not know this call.
        Err(Errno::ENOSYS | Errno::EPERM) => nix::fcntl::open(path, flags | OFlag::O_NOFOLLOW, Mode::empty()),
        answer => answer,
    }
}
