//! Guest kernels: which there are, how they are built, where they are kept.
//!
//! [`resolve`] answers the question of everybody else: *which kernel do I
//! start, and what can it do?* It takes what the user typed (`auto`, a version,
//! a path), looks into the cache, and builds what is missing.
//!
//! Nothing here prints or reads the environment: [`Host`] says what the module
//! needs to know of the machine, [`Event`]s say what it is doing. Nothing here
//! compares versions to learn what a kernel can do: the kernel is asked
//! ([`features`], [`probe`]).
//!
//! ```text
//! catalogue  kernel/ as data: versions, profiles, fragments, patches
//! cache      finished kernels on disk, keyed by what shapes their bytes
//! lock       one builder at a time, across processes
//! source     kernel.org, the distribution's package, the user's own tree
//! tools      compilers and the like: found, installed, or unpacked for us
//! build      the ritual from a source to an entry of the cache
//! ```

mod build;
pub mod cache;
pub mod catalogue;
mod event;
mod features;
mod lock;
mod probe;
mod process;
pub mod source;
mod tools;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use build::{Request, build};
pub use event::{Event, Report, Unit};
pub use features::Features;
pub use lock::Lock;
pub use probe::probe;

use cache::{Cache, Entry};
use catalogue::{Catalogue, DEFAULT_PROFILE};

/// A kernel that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The program.
    pub path: PathBuf,
    /// `uname -r` in the guest; of a foreign kernel what `--version` prints.
    pub release: String,
    /// Catalogue version such as `7.3`; of a foreign kernel the same as
    /// `release`.
    pub version: String,
    /// What it can do.
    pub features: Features,
}

impl From<Entry> for Kernel {
    fn from(entry: Entry) -> Self {
        Self {
            path: entry.kernel_path(),
            release: entry.record.release,
            version: entry.record.version,
            features: entry.record.features,
        }
    }
}

/// What this module needs to know of the machine it runs on.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where kernels, sources and tools are kept.
    pub cache: Cache,
    /// `PATH`.
    pub path: OsString,
    /// Base address of kernel.org's tarballs, see [`source::KERNEL_ORG`].
    pub kernel_org: String,
    /// Whether this is a CI machine, where `sudo -n` may install packages.
    pub is_ci: bool,
    /// Whether packages may be installed on the system.
    pub may_install: bool,
}

/// What the user means by `--kernel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The default version, or the first that can be had.
    Auto,
    /// A version, and a profile if one was named: `6.12`, `7.3/full`.
    Version(String, Option<String>),
    /// A program: a path, or a name to look up on PATH.
    Program(OsString),
}

impl Selector {
    /// Reads `auto`, `MAJOR.MINOR`, `MAJOR.MINOR/PROFILE`, a path or a name.
    #[must_use]
    pub fn parse(typed: &OsStr) -> Self {
        let Some(text) = typed.to_str() else { return Self::Program(typed.to_owned()) };
        if text == "auto" {
            return Self::Auto;
        }
        let (version, profile) = match text.split_once('/') {
            Some((version, profile)) => (version, Some(profile)),
            None => (text, None),
        };
        let numbers: Vec<_> = version.split('.').collect();
        let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if numbers.len() == 2 && numbers.iter().all(is_number) {
            return Self::Version(version.to_owned(), profile.map(str::to_owned));
        }
        Self::Program(typed.to_owned())
    }
}

/// The kernel that a selector stands for. One that is in the cache costs a few
/// file reads; one that is not is built, and an event says so.
pub fn resolve(selector: &OsStr, profile: Option<&str>, host: &Host, report: Report<'_>) -> Result<Kernel> {
    let catalogue = Catalogue::embedded()?;
    let (version, profile) = match Selector::parse(selector) {
        Selector::Program(program) => return probe::probe(&program, &host.path),
        Selector::Version(version, named) => (Some(version), named.or(profile.map(str::to_owned))),
        Selector::Auto => (None, profile.map(str::to_owned)),
    };
    let profile = profile.as_deref().unwrap_or(DEFAULT_PROFILE);
    let name = version.as_deref().unwrap_or(catalogue.default_version());

    let recipe = catalogue.recipe(name, profile)?;
    if let Some(entry) = host.cache.find(name, profile, &recipe) {
        return Ok(entry.into());
    }
    catalogue.expect_version(name)?;
    report(Event::Note(format!(
        "there is no guest kernel {} in the cache: building it, once, which takes some minutes",
        label(name, profile)
    )));
    let request = |version: &str| Request {
        version: Some(version.to_owned()),
        profile: profile.to_owned(),
        ..Request::default()
    };
    let error = match build(&request(name), host, report) {
        Ok(entry) => return Ok(entry.into()),
        Err(error) => error,
    };
    if version.is_some() || !error.is::<source::Unavailable>() {
        return Err(error);
    }
    // Nobody asked for this very version: take the next one that can be had.
    for other in catalogue.versions().iter().filter(|other| other.name != name) {
        let recipe = catalogue.recipe(&other.name, profile)?;
        report(Event::Note(format!("{error:#}; taking {} instead", other.name)));
        if let Some(entry) = host.cache.find(&other.name, profile, &recipe) {
            return Ok(entry.into());
        }
        match build(&request(&other.name), host, report) {
            Ok(entry) => return Ok(entry.into()),
            Err(other) if other.is::<source::Unavailable>() => {}
            Err(other) => return Err(other),
        }
    }
    Err(error)
}

/// `7.3`, or `7.3/full` where the profile is not the default one.
#[must_use]
pub fn label(version: &str, profile: &str) -> String {
    if profile == DEFAULT_PROFILE { version.to_owned() } else { format!("{version}/{profile}") }
}

/// The newest kernel of this version and profile in the cache.
pub fn find(version: &str, profile: &str, cache: &Cache) -> Result<Option<Entry>> {
    let recipe = Catalogue::embedded()?.recipe(version, profile)?;
    Ok(cache.find(version, profile, &recipe))
}

/// `MAJOR.MINOR` of the release in a source tree's Makefile, and the release.
pub(crate) fn read_release(makefile: &Path) -> Result<(String, String)> {
    let text = std::fs::read_to_string(makefile).with_context(|| {
        format!("cannot read {}: is this the top of a kernel source tree?", makefile.display())
    })?;
    let value = |name: &str| {
        text.lines().take(20).find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let (Some(major), Some(minor)) = (value("VERSION"), value("PATCHLEVEL")) else {
        bail!("{} names no version: is this the top of a kernel source tree?", makefile.display());
    };
    let version = format!("{major}.{minor}");
    let sublevel = value("SUBLEVEL").filter(|s| !s.is_empty()).unwrap_or_else(|| "0".to_owned());
    let extra = value("EXTRAVERSION").unwrap_or_default();
    Ok((version.clone(), format!("{version}.{sublevel}{extra}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_auto_versions_or_programs() {
        let version =
            |version: &str, profile: Option<&str>| Selector::Version(version.into(), profile.map(Into::into));
        for (text, expected) in [
            ("auto", Selector::Auto),
            ("7.3", version("7.3", None)),
            ("6.12/full", version("6.12", Some("full"))),
            ("linux.uml", Selector::Program("linux.uml".into())),
            ("./7.3", Selector::Program("./7.3".into())),
            ("7.3.4", Selector::Program("7.3.4".into())),
            ("7.", Selector::Program("7.".into())),
            ("/usr/bin/linux.uml", Selector::Program("/usr/bin/linux.uml".into())),
            ("", Selector::Program(OsString::new())),
        ] {
            assert_eq!(Selector::parse(text.as_ref()), expected, "{text}");
        }
    }

    #[test]
    fn the_release_is_read_from_the_makefile() {
        let dir = tempfile::tempdir().unwrap();
        let makefile = dir.path().join("Makefile");
        std::fs::write(
            &makefile,
            "# SPDX\nVERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\nNAME = Baby\n",
        )
        .unwrap();
        assert_eq!(read_release(&makefile).unwrap(), ("7.3".into(), "7.3.4".into()));
        std::fs::write(&makefile, "all:\n\ttrue\n").unwrap();
        let error = read_release(&makefile).unwrap_err().to_string();
        assert!(error.contains("names no version"), "{error}");
        let error = read_release(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("source tree?"), "{error}");
    }
}
