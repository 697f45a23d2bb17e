//! `kernel build`, `list`, `path`, `remove`: the cache of guest kernels by hand.

use std::ffi::OsStr;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::progress::Progress;
use super::{Environment, Messages, Status};
use crate::cli::kernel::{BuildArgs, Format, KernelArgs, KernelCommand, PathArgs, RemoveArgs};
use crate::kernel::cache::{Cache, Entry, Record};
use crate::kernel::catalogue::{Catalogue, DEFAULT_PROFILE};
use crate::kernel::{self, Host, Kernel, Request, Selector, label};

/// Runs one of the subcommands.
pub fn run(args: &KernelArgs, env: &Environment) -> Result<Status> {
    match &args.command {
        KernelCommand::Build(args) => build(args, env),
        KernelCommand::List(args) => list(args.format, env),
        KernelCommand::Path(args) => path(args, env),
        KernelCommand::Remove(args) => remove(args, env),
    }
}

/// What the kernel module needs to know of this machine. `may_install` allows
/// installing packages as root, or with sudo under CI.
pub fn host(env: &Environment, may_install: bool) -> Result<Host> {
    let cache_dir = env.cache_dir.as_ref().context(
        "there is no place for guest kernels: neither XDG_CACHE_HOME nor HOME is set; \
         set one of them to a directory that can be written",
    )?;
    // A mirror, or a server of a test's.
    let kernel_org = env.get("SEKEXE_KERNEL_ORG").and_then(OsStr::to_str);
    Ok(Host {
        cache: Cache::new(cache_dir.join("sekexe-ci")),
        path: env.path.clone(),
        kernel_org: kernel_org.unwrap_or(kernel::source::KERNEL_ORG).to_owned(),
        is_ci: env.is_ci,
        may_install,
    })
}

/// The kernel that `--kernel` stands for, built if it has to be. Progress and
/// the reason go to standard error.
pub fn resolve(selector: &OsStr, profile: Option<&str>, env: &Environment) -> Result<Kernel> {
    // A kernel that is named needs no place for others.
    if matches!(Selector::parse(selector), Selector::Program(_)) {
        return kernel::probe(selector, &env.path);
    }
    let host = host(env, true)?;
    let mut progress = Progress::new(env);
    kernel::resolve(selector, profile, &host, &mut |event| progress.show(event))
}

fn build(args: &BuildArgs, env: &Environment) -> Result<Status> {
    let host = host(env, !args.no_install)?;
    let (version, profile) = match &args.version {
        None => (None, None),
        Some(text) => match Selector::parse(text.as_ref()) {
            Selector::Auto => (None, None),
            Selector::Version(version, profile) => (Some(version), profile),
            Selector::Program(name) => bail!(
                "'{}' is not a version such as 7.3; see `sekexe-ci kernel list`, or name a \
                 source with --source",
                name.display()
            ),
        },
    };
    let request = Request {
        version,
        source: args.source.clone(),
        profile: args.profile.clone().or(profile).unwrap_or_else(|| DEFAULT_PROFILE.to_owned()),
        jobs: args.jobs.map(usize::from),
        force: args.force,
    };
    let mut progress = Progress::new(env);
    let entry = kernel::build(&request, &host, &mut |event| progress.show(event))?;
    progress.finish();
    writeln!(std::io::stdout(), "{}", entry.kernel_path().display())?;
    Ok(0)
}

fn path(args: &PathArgs, env: &Environment) -> Result<Status> {
    let host = host(env, false)?;
    let catalogue = Catalogue::embedded()?;
    let (version, profile) = match Selector::parse(args.version.as_ref()) {
        Selector::Auto => (catalogue.default_version().to_owned(), None),
        Selector::Version(version, profile) => (version, profile),
        Selector::Program(name) => bail!("'{}' is not a version such as 7.3", name.display()),
    };
    let profile = args.profile.clone().or(profile).unwrap_or_else(|| DEFAULT_PROFILE.to_owned());
    match kernel::find(&version, &profile, &host.cache)? {
        Some(entry) => {
            writeln!(std::io::stdout(), "{}", entry.kernel_path().display())?;
            Ok(0)
        }
        None => {
            let label = label(&version, &profile);
            Messages::new(env).note(format_args!(
                "there is no guest kernel {label} in the cache; build it with \
                 `sekexe-ci kernel build {label}`"
            ));
            Ok(1)
        }
    }
}

fn remove(args: &RemoveArgs, env: &Environment) -> Result<Status> {
    let cache = host(env, false)?.cache;
    let Some(version) = &args.version else {
        let removed = cache.clear()?;
        Messages::new(env).note(format_args!("removed {removed} guest kernels and all downloads"));
        return Ok(0);
    };
    let Selector::Version(version, profile) = Selector::parse(version.as_ref()) else {
        bail!("'{version}' is not a version such as 7.3 or 7.3/full; see `sekexe-ci kernel list`");
    };
    let doomed: Vec<_> = cache
        .entries()
        .into_iter()
        .filter(|entry| entry.record.version == version)
        .filter(|entry| profile.as_ref().is_none_or(|profile| *profile == entry.record.profile))
        .collect();
    if doomed.is_empty() {
        bail!("there is no guest kernel {version} in the cache; see `sekexe-ci kernel list`");
    }
    for entry in &doomed {
        cache.remove(entry)?;
        Messages::new(env).note(format_args!("removed {}", entry.dir.display()));
    }
    Ok(0)
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Row {
    version: String,
    profile: String,
    /// Whether `--kernel auto` stands for it.
    default: bool,
    /// Whether the kernel is what this program would build.
    current: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<Record>,
}

#[derive(Debug, Serialize)]
struct List {
    cache: String,
    kernels: Vec<Row>,
}

fn list(format: Format, env: &Environment) -> Result<Status> {
    let cache = host(env, false)?.cache;
    let rows = rows(&Catalogue::embedded()?, &cache.entries())?;
    let mut out = std::io::stdout().lock();
    match format {
        Format::Json => {
            let list = List { cache: cache.path("").display().to_string(), kernels: rows };
            writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        }
        Format::Text => out.write_all(table(&rows, kernel::cache::now()).as_bytes())?,
    }
    Ok(0)
}

/// What is in the cache and what could be, version by version.
fn rows(catalogue: &Catalogue, entries: &[Entry]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut listed = vec![false; entries.len()];
    for version in catalogue.versions() {
        for profile in catalogue.profiles() {
            let recipe = catalogue.recipe(&version.name, profile)?.digest();
            let default = version.name == catalogue.default_version() && profile == DEFAULT_PROFILE;
            let mut found = false;
            for (index, entry) in entries.iter().enumerate() {
                if entry.record.version == version.name && entry.record.profile == profile {
                    listed[index] = true;
                    let current = entry.record.recipe == recipe;
                    found |= current;
                    rows.push(row(entry, default, current));
                }
            }
            if !found {
                rows.push(Row {
                    version: version.name.clone(),
                    profile: profile.to_owned(),
                    default,
                    current: false,
                    path: None,
                    kernel: None,
                });
            }
        }
    }
    // Kernels from the user's own sources.
    for (entry, _) in entries.iter().zip(listed).filter(|(_, listed)| !listed) {
        let recipe = catalogue.recipe(&entry.record.version, &entry.record.profile);
        let current = recipe.is_ok_and(|recipe| recipe.digest() == entry.record.recipe);
        rows.push(row(entry, false, current));
    }
    Ok(rows)
}

fn row(entry: &Entry, default: bool, current: bool) -> Row {
    Row {
        version: entry.record.version.clone(),
        profile: entry.record.profile.clone(),
        default,
        current,
        path: Some(entry.kernel_path().display().to_string()),
        kernel: Some(entry.record.clone()),
    }
}

fn table(rows: &[Row], now: u64) -> String {
    let mut text = format!(
        "{:<8} {:<8} {:<18} {:>9}  {:<10} {}\n",
        "VERSION", "PROFILE", "RELEASE", "SIZE", "AGE", "STATE"
    );
    for row in rows {
        let (release, size, age, state) = match &row.kernel {
            None => ("-".to_owned(), "-".to_owned(), "-".to_owned(), "not built"),
            Some(kernel) => (
                kernel.release.clone(),
                format!("{:.1} MB", kernel.size as f64 / 1e6),
                age(Duration::from_secs(now.saturating_sub(kernel.built_at))),
                if row.current { "ready" } else { "outdated" },
            ),
        };
        let default = if row.default { ", default" } else { "" };
        text += &format!(
            "{:<8} {:<8} {release:<18} {size:>9}  {age:<10} {state}{default}\n",
            row.version, row.profile
        );
    }
    text
}

fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (count, unit) = match seconds {
        0..60 => return "now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86400 => (seconds / 3600, "hour"),
        _ => (seconds / 86400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_is_listed_too() {
        let rows = rows(&Catalogue::embedded().unwrap(), &[]).unwrap();
        let text = table(&rows, 0);
        for version in ["7.3 ", "6.12 ", "6.1 "] {
            assert!(text.lines().any(|line| line.starts_with(version)), "{text}");
        }
        assert_eq!(text.matches(", default").count(), 1, "{text}");
        assert!(!text.contains("ready"), "{text}");
    }

    #[test]
    fn ages_have_one_unit() {
        for (seconds, expected) in
            [(0, "now"), (60, "1 minute"), (7200, "2 hours"), (86400, "1 day"), (864_000, "10 days")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), expected);
        }
    }
}
