//! The programs that building a kernel takes.
//!
//! Everything that is missing is named at once, with the one command that
//! installs it. Where that may be done without asking (root, or `sudo` without
//! a password on a CI machine) it is done. A plain user on Debian's family needs
//! no rights at all: the small tools are unpacked into our cache and used from
//! there. A compiler and the C library's headers are not: those have to be
//! installed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use super::Host;
use super::event::{Event, Report};
use super::process::{Log, find_program, output};
use super::source::Apt;

/// Something that a build needs.
struct Tool {
    name: &'static str,
    /// Whether it is here.
    found: fn(&OsStr) -> bool,
    /// Packages for apt, dnf, apk and pacman.
    packages: [&'static str; 4],
    /// Whether it works from another place than the one it was built for.
    relocatable: bool,
}

macro_rules! program {
    ($name:literal, $packages:expr, $relocatable:expr) => {
        Tool {
            name: $name,
            found: |path| find_program($name, path).is_some(),
            packages: $packages,
            relocatable: $relocatable,
        }
    };
}

const TOOLS: &[Tool] = &[
    program!("flex", ["flex"; 4], true),
    program!("bison", ["bison"; 4], true),
    program!("m4", ["m4"; 4], true),
    program!("bc", ["bc"; 4], true),
    program!("make", ["make"; 4], true),
    program!("patch", ["patch"; 4], true),
    program!("xz", ["xz-utils", "xz", "xz", "xz"], true),
    // BusyBox has a tar and an xz as well, without what is used of them.
    Tool { name: "GNU tar", found: |path| is_gnu("tar", path), packages: ["tar"; 4], relocatable: true },
    program!("gzip", ["gzip"; 4], true),
    program!("find", ["findutils"; 4], true),
    program!("cmp", ["diffutils"; 4], true),
    program!("awk", ["mawk", "gawk", "gawk", "gawk"], true),
    program!("perl", ["perl", "perl-interpreter", "perl", "perl"], false),
    program!("gcc", ["gcc"; 4], false),
    program!("ld", ["binutils"; 4], false),
    Tool {
        name: "the C library's headers",
        found: |path| has_file_of_gcc("crt1.o", path),
        packages: ["libc6-dev", "glibc-devel", "musl-dev", "glibc"],
        relocatable: false,
    },
    Tool {
        name: "the static C library",
        found: |path| has_file_of_gcc("libc.a", path),
        packages: ["libc6-dev", "glibc-static", "musl-dev", "glibc"],
        relocatable: false,
    },
    Tool {
        name: "the kernel's headers",
        found: |_| Path::new("/usr/include/linux/version.h").exists(),
        packages: ["linux-libc-dev", "kernel-headers", "linux-headers", "linux-api-headers"],
        relocatable: false,
    },
];

fn is_gnu(program: &str, path: &OsStr) -> bool {
    find_program(program, path)
        .and_then(|program| output(Command::new(program).arg("--version")))
        .is_some_and(|text| text.contains("GNU"))
}

/// gcc answers with the bare name where it does not know the file.
fn has_file_of_gcc(name: &str, path: &OsStr) -> bool {
    // A missing gcc is named by itself; its files would only repeat that.
    find_program("gcc", path).is_none_or(|gcc| {
        output(Command::new(gcc).arg(format!("-print-file-name={name}")))
            .is_some_and(|answer| Path::new(answer.trim()).is_absolute())
    })
}

/// A package manager and its column in [`Tool::packages`].
const MANAGERS: &[(&str, usize, &[&str])] = &[
    ("apt-get", 0, &["apt-get", "install", "-y", "--no-install-recommends"]),
    ("dnf", 1, &["dnf", "install", "-y"]),
    ("apk", 2, &["apk", "add"]),
    ("pacman", 3, &["pacman", "-S", "--noconfirm", "--needed"]),
];

/// What the programs of a build find: PATH and a few variables more.
#[derive(Clone, Debug)]
pub(crate) struct Toolbox {
    /// PATH with what was unpacked in front.
    pub path: OsString,
    /// Where unpacked tools look for their own files.
    pub variables: Vec<(&'static str, OsString)>,
}

impl Toolbox {
    /// A command that sees nothing of the caller's environment but this.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(find_program(program, &self.path).unwrap_or_else(|| program.into()));
        command.env_clear().env("PATH", &self.path).env("LC_ALL", "C").env("HOME", "/");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// What names the compiler in a kernel's key.
    pub fn compiler(&self) -> Result<String> {
        let text = output(self.command("gcc").arg("--version"))
            .context("gcc does not answer --version: is it installed whole?")?;
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    }
}

/// Finds everything, installing or unpacking what is missing as far as that is
/// allowed, or says what is missing.
pub(crate) fn provide(host: &Host, report: Report<'_>) -> Result<Toolbox> {
    let mut toolbox = with_unpacked(host);
    let mut missing = missing(&toolbox.path);
    if missing.is_empty() {
        return Ok(toolbox);
    }
    let command = install_command(&missing, &host.path);

    if host.may_install
        && let Some(command) = &command
        && let Some(prefix) = may_install_now(host)
    {
        report(Event::Stage(format!("installing {}", names(&missing))));
        install(prefix, command, host)?;
        missing = self::missing(&toolbox.path);
    }
    if !missing.is_empty() && missing.iter().all(|tool| tool.relocatable) && can_unpack(host) {
        report(Event::Stage(format!("unpacking {} into the cache", names(&missing))));
        match unpack(&missing, host, report) {
            Ok(()) => {
                toolbox = with_unpacked(host);
                missing = self::missing(&toolbox.path);
            }
            Err(error) => report(Event::Note(format!("cannot unpack them: {error:#}"))),
        }
    }
    if missing.is_empty() {
        return Ok(toolbox);
    }
    let hint = match command {
        Some(command) => {
            let sudo = if Uid::effective().is_root() { "" } else { "sudo " };
            format!("install with: {sudo}{}", command.join(" "))
        }
        None => "install them with this system's package manager".to_owned(),
    };
    bail!("building a kernel needs what is not here: {}; {hint}", names(&missing))
}

fn missing(path: &OsStr) -> Vec<&'static Tool> {
    TOOLS.iter().filter(|tool| !(tool.found)(path)).collect()
}

fn names(tools: &[&Tool]) -> String {
    tools.iter().map(|tool| tool.name).collect::<Vec<_>>().join(", ")
}

fn packages(tools: &[&Tool], column: usize) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for tool in tools {
        if !packages.contains(&tool.packages[column]) {
            packages.push(tool.packages[column]);
        }
    }
    packages
}

fn install_command(missing: &[&Tool], path: &OsStr) -> Option<Vec<&'static str>> {
    let (_, column, words) = MANAGERS.iter().find(|(program, ..)| find_program(program, path).is_some())?;
    Some(words.iter().copied().chain(packages(missing, *column)).collect())
}

/// The words in front of the command, where it may be run without asking.
fn may_install_now(host: &Host) -> Option<&'static [&'static str]> {
    if Uid::effective().is_root() {
        return Some(&[]);
    }
    let sudo = host.is_ci.then(|| find_program("sudo", &host.path)).flatten()?;
    output(Command::new(sudo).args(["-n", "true"])).map(|_| ["sudo", "-n"].as_slice())
}

fn install(prefix: &[&str], command: &[&str], host: &Host) -> Result<()> {
    let mut log = Log::create(&host.cache.dir("tools")?.join("install.log"))?;
    let mut run = |words: &[&str]| {
        let words: Vec<_> = prefix.iter().chain(words).copied().collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env("PATH", &host.path).env("DEBIAN_FRONTEND", "noninteractive");
        log.run(&mut command, &mut |_| {})
    };
    let first = run(command);
    if first.is_err() && command[0] == "apt-get" {
        // A fresh container has no lists of packages, an old one stale ones.
        run(&["apt-get", "update"])?;
        return run(command).context("cannot install the missing tools");
    }
    first.context("cannot install the missing tools")
}

fn unpacked_root(host: &Host) -> PathBuf {
    host.cache.path("tools/root")
}

fn can_unpack(host: &Host) -> bool {
    ["apt-get", "dpkg-deb"].iter().all(|program| find_program(program, &host.path).is_some())
}

/// The caller's PATH, with what was unpacked earlier behind it: a tool of the
/// system's, once it is installed, wins.
fn with_unpacked(host: &Host) -> Toolbox {
    let root = unpacked_root(host);
    if !root.exists() {
        return Toolbox { path: host.path.clone(), variables: Vec::new() };
    }
    let mut path = host.path.clone();
    let mut libraries = OsString::new();
    for dir in ["usr/bin", "bin"] {
        path.push(":");
        path.push(root.join(dir));
    }
    for dir in ["usr/lib", "lib"] {
        let Ok(entries) = fs::read_dir(root.join(dir)) else { continue };
        for entry in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
            libraries.push(if libraries.is_empty() { "" } else { ":" });
            libraries.push(entry);
        }
    }
    let mut variables = vec![("LD_LIBRARY_PATH", libraries)];
    for (name, file) in [("M4", "usr/bin/m4"), ("BISON_PKGDATADIR", "usr/share/bison")] {
        let file = root.join(file);
        if file.exists() {
            variables.push((name, file.into_os_string()));
        }
    }
    Toolbox { path, variables }
}

fn unpack(missing: &[&Tool], host: &Host, report: Report<'_>) -> Result<()> {
    let _lock = host.cache.lock("apt", || {
        report(Event::Note("another process uses our apt: waiting for it".to_owned()));
    })?;
    let dir = host.cache.dir("tools")?;
    let mut log = Log::create(&dir.join("unpack.log"))?;
    let apt = Apt::with_own_sources(host)?;
    apt.update(&mut log)?;

    // What apt would install, dependencies included, without what is here.
    let mut simulate = apt.command("apt-get");
    simulate.args(["install", "--simulate", "--no-install-recommends"]).args(packages(missing, 0));
    let plan =
        output(&mut simulate).with_context(|| format!("apt knows no packages for {}", names(missing)))?;
    let mut wanted: Vec<String> = plan
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    if wanted.is_empty() {
        // Installed for the system, and hidden from our PATH.
        wanted = packages(missing, 0).into_iter().map(str::to_owned).collect();
    }
    let downloads = tempfile::Builder::new().prefix(".download-").tempdir_in(&dir)?;
    apt.download(&wanted, downloads.path(), &mut log, report)?;
    let root = host.cache.dir("tools/root")?;
    for entry in fs::read_dir(downloads.path())?.flatten() {
        let mut extract = Command::new("dpkg-deb");
        extract.arg("-x").arg(entry.path()).arg(&root).env("PATH", &host.path);
        log.run(&mut extract, &mut |_| {})?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::cache::Cache;
    use super::*;

    fn host(path: &Path) -> Host {
        Host {
            cache: Cache::new(path.join("cache")),
            path: path.as_os_str().to_owned(),
            kernel_org: String::new(),
            is_ci: false,
            may_install: false,
        }
    }

    #[test]
    fn everything_missing_is_named_at_once_with_one_command() {
        let dir = tempfile::tempdir().unwrap();
        let error = provide(&host(dir.path()), &mut |_| {}).unwrap_err().to_string();
        for name in ["flex", "bison", "m4", "bc", "make", "gcc", "package manager"] {
            assert!(error.contains(name), "{error}");
        }
        let dnf = dir.path().join("dnf");
        fs::write(&dnf, "#!/bin/sh\n").unwrap();
        let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        fs::set_permissions(&dnf, mode).unwrap();
        let error = provide(&host(dir.path()), &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("dnf install -y flex bison m4 bc make"), "{error}");
    }

    #[test]
    fn a_package_is_named_once_even_if_two_tools_are_in_it() {
        let tools: Vec<_> = TOOLS.iter().collect();
        let packages = packages(&tools, 0);
        assert_eq!(packages.iter().filter(|name| **name == "libc6-dev").count(), 1);
    }
}
