//! The distribution's source package, as a plain user.
//!
//! `apt-get` runs with lists and a cache of its own below our cache directory,
//! so it needs no rights and changes nothing of the system's. The mirror and
//! its key are the machine's own. A suite that the machine does not have (stable
//! backports on oldstable) is asked from the same mirror, by code name: a
//! mirror's alias for backports can point at the release before.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;
use sha2::{Digest, Sha256};

use super::super::Host;
use super::super::catalogue::{Version, hex};
use super::super::event::{Event, Report, Unit};
use super::super::process::{Log, find_program, output};
use super::apt_sources::{AptSource, read_configuration};

/// An apt of our own: its own lists and cache, the system's trust.
pub(crate) struct Apt {
    dir: PathBuf,
    path: OsString,
    /// A directory of sources instead of the machine's.
    sources: Option<PathBuf>,
    lists: PathBuf,
}

impl Apt {
    /// With the sources that the machine has.
    pub fn with_own_sources(host: &Host) -> Result<Self> {
        let dir = host.cache.dir("apt")?;
        let lists = host.cache.dir("apt/lists-own")?;
        Ok(Self { dir, path: host.path.clone(), sources: None, lists })
    }

    /// With one stanza in place of the machine's sources.
    fn with_stanza(name: &str, stanza: &str, host: &Host) -> Result<Self> {
        let dir = host.cache.dir("apt")?;
        let sources = host.cache.dir(format!("apt/sources-{name}"))?;
        let lists = host.cache.dir(format!("apt/lists-{name}"))?;
        fs::write(sources.join("kernel.sources"), stanza)
            .with_context(|| format!("cannot write below {}", sources.display()))?;
        Ok(Self { dir, path: host.path.clone(), sources: Some(sources), lists })
    }

    /// A command of apt's family with our directories.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", &self.path).env("LC_ALL", "C").current_dir(&self.dir);
        let mut option = |name: &str, value: &OsStr| {
            let mut text = OsString::from(name);
            text.push("=");
            text.push(value);
            command.arg("-o").arg(text);
        };
        option("Dir::State::Lists", self.lists.as_os_str());
        option("Dir::Cache", self.dir.join("cache").as_os_str());
        if let Some(sources) = &self.sources {
            option("Dir::Etc::SourceList", OsStr::new("/dev/null"));
            option("Dir::Etc::SourceParts", sources.as_os_str());
        }
        // Root's apt would read our files as another user, who may not.
        if Uid::effective().is_root() {
            option("APT::Sandbox::User", OsStr::new("root"));
        }
        for (name, value) in [
            ("Acquire::Languages", "none"),
            ("Acquire::Retries", "2"),
            ("Acquire::http::Timeout", "20"),
            ("Acquire::https::Timeout", "20"),
        ] {
            option(name, OsStr::new(value));
        }
        command
    }

    /// Reads the lists of packages. A mirror of somebody else's that does not
    /// answer is no failure: what is missing shows when it is asked for.
    pub fn update(&self, log: &mut Log) -> Result<()> {
        fs::create_dir_all(self.dir.join("cache")).context("cannot create apt's cache")?;
        let mut command = self.command("apt-get");
        log.status(command.arg("update"), &mut |_| {})?;
        Ok(())
    }

    /// File name of the package's present version, if there is one.
    fn candidate(&self, package: &str) -> Option<String> {
        let text = output(self.command("apt-get").args(["download", "--print-uris", package]))?;
        let name = text.lines().find(|line| line.starts_with('\''))?.split_whitespace().nth(1)?;
        Some(name.replace("%3a", ":").replace("%7e", "~"))
    }

    /// Downloads a package into a directory; apt checks it against its lists.
    pub fn download(&self, packages: &[String], to: &Path, log: &mut Log, report: Report<'_>) -> Result<()> {
        let mut command = self.command("apt-get");
        command.arg("download").args(packages).current_dir(to);
        let mut told = Instant::now();
        log.run(&mut command, &mut |_| {
            if told.elapsed() >= Duration::from_millis(500) {
                told = Instant::now();
                report(Event::Progress { done: size_of_files(to), total: None, unit: Unit::Bytes });
            }
        })
    }
}

/// Gets the source package of a version and puts the tarball inside it at `to`.
/// Gives the identity of the source.
pub(super) fn fetch_source(version: &Version, to: &Path, host: &Host, report: Report<'_>) -> Result<String> {
    for program in ["apt-get", "dpkg-deb"] {
        if find_program(program, &host.path).is_none() {
            bail!("there is no {program} here, so not Debian's package {}", version.debian.package);
        }
    }
    let _lock = host.cache.lock("apt", || {
        report(Event::Note("another process uses our apt: waiting for it".to_owned()));
    })?;
    let mut log = Log::create(&host.cache.dir("apt")?.join("log"))?;
    report(Event::Stage(format!("looking for the package {}", version.debian.package)));

    let configured = read_configuration(Path::new("/etc/apt"));
    let mirror = debian_mirror(&configured);
    let mut tried = Vec::new();
    for suite in &version.debian.suites {
        let (name, apt) = if suite == "own" {
            ("the machine's own suites".to_owned(), Apt::with_own_sources(host)?)
        } else {
            let Some(mirror) = &mirror else {
                tried.push(format!("Debian's {suite} (no Debian mirror in the apt configuration)"));
                continue;
            };
            let Some(suite) = code_name(suite, mirror, host, &mut log)? else {
                tried.push(format!("{suite} (the mirror does not know it)"));
                continue;
            };
            let stanza = mirror.stanza(&[&suite], "main");
            let apt = Apt::with_stanza(&suite, &stanza, host)?;
            (suite, apt)
        };
        apt.update(&mut log)?;
        // Ubuntu puts the whole release into the name.
        for package in [version.debian.package.clone(), format!("{}.0", version.debian.package)] {
            let Some(file) = apt.candidate(&package) else { continue };
            report(Event::Stage(format!("downloading {package} from {name}")));
            return download_tarball(&apt, &package, &file, to, host, &mut log, report);
        }
        tried.push(name);
    }
    bail!("no package {} in {}", version.debian.package, tried.join(", "))
}

/// The mirror that a Debian machine takes Debian itself from.
fn debian_mirror(configured: &[AptSource]) -> Option<AptSource> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let value = |name: &str| {
        release
            .lines()
            .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.trim_matches('"').to_owned()))
    };
    if value("ID")? != "debian" {
        return None;
    }
    let own = value("VERSION_CODENAME").unwrap_or_else(|| "sid".to_owned());
    ["stable", "testing", "unstable", "sid", &own]
        .iter()
        .rev()
        .find_map(|suite| configured.iter().find(|source| source.has_suite(suite)))
        .cloned()
}

/// `stable-backports` to `trixie-backports`, by what the mirror says of stable.
fn code_name(suite: &str, mirror: &AptSource, host: &Host, log: &mut Log) -> Result<Option<String>> {
    let (alias, suffix) = match suite.split_once('-') {
        Some((alias, suffix)) => (alias, format!("-{suffix}")),
        None => (suite, String::new()),
    };
    let apt = Apt::with_stanza(alias, &mirror.stanza(&[alias], "main"), host)?;
    // The signed Release file alone, not the list of packages.
    let mut update = apt.command("apt-get");
    update.args(["-o", "Acquire::IndexTargets::deb::Packages::DefaultEnabled=false", "update"]);
    log.status(&mut update, &mut |_| {})?;
    for entry in fs::read_dir(&apt.lists)?.flatten() {
        if !entry.file_name().as_encoded_bytes().ends_with(b"Release") {
            continue;
        }
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if let Some(name) = text.lines().find_map(|line| line.strip_prefix("Codename:")) {
            return Ok(Some(format!("{}{suffix}", name.trim())));
        }
    }
    Ok(None)
}

fn download_tarball(
    apt: &Apt,
    package: &str,
    file: &str,
    to: &Path,
    host: &Host,
    log: &mut Log,
    report: Report<'_>,
) -> Result<String> {
    let dir = tempfile::Builder::new()
        .prefix(".download-")
        .tempdir_in(host.cache.dir("sources")?)
        .context("cannot write into the cache")?;
    apt.download(&[package.to_owned()], dir.path(), log, report)
        .with_context(|| format!("cannot download {package}"))?;
    let deb = fs::read_dir(dir.path())?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get has downloaded nothing for {package}"))?;

    // The tarball inside goes straight from one program to the next.
    let mut dpkg = Command::new("dpkg-deb")
        .env("PATH", &host.path)
        .arg("--fsys-tarfile")
        .arg(&deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let mut tar = Command::new("tar")
        .env("PATH", &host.path)
        .args(["-x", "-O", "--wildcards", "./usr/src/*.tar.*"])
        .stdin(dpkg.stdout.take().context("dpkg-deb has no output")?)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run tar")?;
    let partial = dir.path().join("tarball");
    let mut writer = File::create(&partial)?;
    let mut reader = tar.stdout.take().context("tar has no output")?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let count = reader.read(&mut block)?;
        if count == 0 {
            break;
        }
        hash.update(&block[..count]);
        writer.write_all(&block[..count]).context("cannot write the source: is the disk full?")?;
    }
    let ended = [tar.wait()?.success(), dpkg.wait()?.success()];
    if ended != [true, true] || writer.metadata()?.len() == 0 {
        bail!("the package {package} contains no kernel source that can be read");
    }
    fs::rename(&partial, to).with_context(|| format!("cannot create {}", to.display()))?;
    Ok(format!("{} {}", file.trim_end_matches("_all.deb"), hex(&hash.finalize())))
}

fn size_of_files(dir: &Path) -> u64 {
    let Ok(dir) = fs::read_dir(dir) else { return 0 };
    dir.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}
