//! Where the source of a kernel comes from.
//!
//! In this order: what the user names, what the cache holds, kernel.org's
//! tarball where its SHA-256 is pinned, the distribution's source package.
//! Each step down is an event with its reason. Whatever arrives is written
//! beside its final name and renamed when it is complete and has been checked,
//! so a partial download is never taken for a source.
//!
//! The identity of a source is part of a kernel's key: a pin, a package version
//! with a digest, a digest of the user's own tarball or tree.

mod apt;
mod apt_sources;
mod download;
mod unpack;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(crate) use apt::Apt;
pub use apt_sources::{AptSource, parse_deb822, parse_one_line};
pub use download::fetch_kernel_org;
pub(crate) use unpack::unpack;

use super::catalogue::{Version, hex};
use super::event::{Event, Report};
use super::{Host, read_release};

/// Where kernel.org keeps its tarballs, `vMAJOR.x/linux-RELEASE.tar.xz` below.
pub const KERNEL_ORG: &str = "https://cdn.kernel.org/pub/linux/kernel";

/// A source on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The tarball or the tree.
    pub place: Place,
    /// `MAJOR.MINOR`; of a tarball of the user's known only after unpacking.
    pub version: Option<String>,
    /// What makes it this source and no other.
    pub identity: String,
}

/// What kind of thing a source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A compressed tarball with one top directory.
    Tarball(PathBuf),
    /// An unpacked tree. It is copied, never built in.
    Tree(PathBuf),
}

/// No source of this version could be had; the reasons are its message.
#[derive(Debug)]
pub struct Unavailable(pub String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// What is remembered beside a tarball in the cache.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    identity: String,
    size: u64,
}

/// The user's own source.
pub fn of_user(path: &Path) -> Result<Source> {
    let path = std::path::absolute(path)?;
    let shown = path.display();
    let metadata = fs::metadata(&path)
        .with_context(|| format!("cannot read the kernel source {shown}: is the path right?"))?;
    if metadata.is_dir() {
        let (version, _) = read_release(&path.join("Makefile"))?;
        let identity = format!("tree {}", unpack::digest_of_tree(&path)?);
        return Ok(Source { place: Place::Tree(path), version: Some(version), identity });
    }
    let (sum, _) = sha256_of(&path)?;
    Ok(Source { place: Place::Tarball(path), version: None, identity: format!("tarball {sum}") })
}

/// The source of a version of the catalogue, downloaded unless the cache has it.
pub fn of_version(version: &Version, host: &Host, report: Report<'_>) -> Result<Source> {
    let _lock = host.cache.lock(&format!("source-{}", version.name), || {
        report(Event::Note(format!(
            "another process is downloading the source of Linux {}: waiting for it",
            version.name
        )));
    })?;
    let tarball = host.cache.dir("sources")?.join(format!("linux-{}.tar.xz", version.name));
    if let Some(identity) = remembered(&tarball) {
        return Ok(Source { place: Place::Tarball(tarball), version: Some(version.name.clone()), identity });
    }

    let mut reasons = Vec::new();
    if let Some(pin) = &version.kernel_org {
        match fetch_kernel_org(pin, &tarball, host, report) {
            Ok(()) => {
                return remember(&tarball, version, format!("kernel.org {} {}", pin.release, pin.sha256));
            }
            // A wrong sum is not a reason to look elsewhere quietly.
            Err(error) if error.is::<download::Mismatch>() => return Err(error),
            Err(error) => {
                report(Event::Note(format!(
                    "kernel.org does not give Linux {} ({error:#}): asking the distribution",
                    pin.release
                )));
                reasons.push(format!("kernel.org: {error:#}"));
            }
        }
    }
    match apt::fetch_source(version, &tarball, host, report) {
        Ok(identity) => return remember(&tarball, version, identity),
        Err(error) => reasons.push(format!("the distribution: {error:#}")),
    }
    bail!(Unavailable(format!(
        "cannot get the source of Linux {}: {}; check the network, or name a source with \
         `sekexe-ci kernel build --source DIR|TARBALL`",
        version.name,
        reasons.join("; ")
    )))
}

fn remembered(tarball: &Path) -> Option<String> {
    let note: Note = serde_json::from_slice(&fs::read(note_of(tarball)).ok()?).ok()?;
    (fs::metadata(tarball).ok()?.len() == note.size).then_some(note.identity)
}

fn remember(tarball: &Path, version: &Version, identity: String) -> Result<Source> {
    let note = Note { identity: identity.clone(), size: fs::metadata(tarball)?.len() };
    fs::write(note_of(tarball), serde_json::to_string(&note)?)
        .with_context(|| format!("cannot write beside {}", tarball.display()))?;
    Ok(Source { place: Place::Tarball(tarball.to_owned()), version: Some(version.name.clone()), identity })
}

fn note_of(tarball: &Path) -> PathBuf {
    tarball.with_extension("json")
}

/// SHA-256 of a file in hexadecimal, and its size.
pub(crate) fn sha256_of(path: &Path) -> Result<(String, u64)> {
    let name = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(name)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let count = file.read(&mut block).with_context(name)?;
        if count == 0 {
            return Ok((hex(&hash.finalize()), size));
        }
        hash.update(&block[..count]);
        size += count as u64;
    }
}
