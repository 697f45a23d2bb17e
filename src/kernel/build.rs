//! From a source to a kernel in the cache: the ritual, in order.
//!
//! The tree is private to one build and goes away with it. What shapes the
//! bytes of the kernel is pinned or part of its key: the source, the patches,
//! the resolved fragments, the compiler; user, host, time and directory of the
//! build leave no trace (`kernel_variables`), so that the same four make the
//! same bytes everywhere.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::cache::{Cache, Entry, Record, key, now};
use super::catalogue::{Catalogue, DEFAULT_PROFILE, Recipe};
use super::event::{Event, Report, Unit};
use super::lock::Lock;
use super::process::{HeldSignals, Log, find_program};
use super::source::{self, Source, sha256_of, unpack};
use super::tools::{self, Toolbox};
use super::{Host, label, probe, read_release};

/// What a build takes at its peak, tree, objects and tarball together.
const DISK_SPACE: u64 = 2_500_000_000;

/// What to build.
#[derive(Clone, Debug)]
pub struct Request {
    /// A version of the catalogue; of a source of the user's it is found out.
    pub version: Option<String>,
    /// The user's own tree or tarball.
    pub source: Option<PathBuf>,
    /// Profile of `kernel/profiles.toml`.
    pub profile: String,
    /// Compiler processes at a time; by default one per CPU.
    pub jobs: Option<usize>,
    /// Build even if the cache has this very kernel.
    pub force: bool,
}

impl Default for Request {
    fn default() -> Self {
        Self { version: None, source: None, profile: DEFAULT_PROFILE.to_owned(), jobs: None, force: false }
    }
}

/// Builds a kernel, unless the cache has it already.
///
/// Of several processes that want the same kernel one builds; the others wait,
/// say so, and take what it has made.
pub fn build(request: &Request, host: &Host, report: Report<'_>) -> Result<Entry> {
    let catalogue = Catalogue::embedded()?;
    let source = request.source.as_deref().map(source::of_user).transpose()?;
    let named = match (&source, &request.version) {
        // A tarball of the user's says what it is only when it is unpacked.
        (Some(source), wanted) => {
            if let (Some(is), Some(wanted)) = (&source.version, wanted)
                && is != wanted
            {
                bail!(
                    "the source is Linux {is}, not {wanted}: leave the version out, or name another source"
                );
            }
            source.version.clone().or_else(|| wanted.clone())
        }
        (None, Some(wanted)) => Some(catalogue.expect_version(wanted)?.name.clone()),
        (None, None) => Some(catalogue.default_version().to_owned()),
    };
    // Wrong profiles are refused before anything is downloaded.
    catalogue.recipe(named.as_deref().unwrap_or_default(), &request.profile)?;

    let lock_name = format!("{}-{}", named.as_deref().unwrap_or("source"), request.profile);
    let waited = std::cell::Cell::new(false);
    let _lock = host.cache.lock(&lock_name, || {
        waited.set(true);
        report(Event::Note(format!("another process is building this kernel ({lock_name}): waiting for it")));
    })?;
    host.cache.sweep();
    if source.is_none()
        && (!request.force || waited.get())
        && let Some(version) = &named
    {
        let recipe = catalogue.recipe(version, &request.profile)?;
        if let Some(entry) = host.cache.find(version, &request.profile, &recipe)
            && (waited.get() || same_compiler(&entry, host))
        {
            return Ok(entry);
        }
    }

    let toolbox = tools::provide(host, report)?;
    let compiler = toolbox.compiler()?;
    check_space(&host.cache)?;
    let source = match source {
        Some(source) => source,
        None => {
            let name = named.as_deref().unwrap_or_default();
            source::of_version(catalogue.expect_version(name)?, host, report)?
        }
    };
    let wanted = Wanted { catalogue: &catalogue, request, source, compiler, toolbox };
    wanted.build(host, report)
}

/// `gcc --version` of today against that of the entry. Where there is no gcc
/// nothing better could be built.
fn same_compiler(entry: &Entry, host: &Host) -> bool {
    if find_program("gcc", &host.path).is_none() {
        return true;
    }
    let toolbox = Toolbox { path: host.path.clone(), variables: Vec::new() };
    toolbox.compiler().is_ok_and(|compiler| compiler == entry.record.compiler)
}

struct Wanted<'a> {
    catalogue: &'a Catalogue,
    request: &'a Request,
    source: Source,
    compiler: String,
    toolbox: Toolbox,
}

impl Wanted<'_> {
    fn build(&self, host: &Host, report: Report<'_>) -> Result<Entry> {
        let started = Instant::now();
        let profile = &self.request.profile;
        if let Some(version) = &self.source.version
            && let Some(entry) = self.cached(version, &host.cache)?
        {
            return Ok(entry);
        }

        let area = Area::create(&host.cache)?;
        let name = format!("{}-{profile}.log", self.source.version.as_deref().unwrap_or("source"));
        let mut log = Log::create(&host.cache.dir("build-logs")?.join(name))?;
        report(Event::Stage("unpacking the source".to_owned()));
        unpack(&self.source.place, &area.tree, &mut log)?;
        let (version, source_release) = read_release(&area.tree.join("Makefile"))?;
        if let Some(wanted) = &self.request.version
            && *wanted != version
        {
            bail!(
                "the source is Linux {version}, not {wanted}: leave the version out, or name another source"
            );
        }
        if let Some(entry) = self.cached(&version, &host.cache)? {
            return Ok(entry);
        }
        let recipe = self.catalogue.recipe(&version, profile)?;
        if self.catalogue.version(&version).is_none() {
            report(Event::Note(format!(
                "Linux {source_release} is not in the catalogue: building it without patches"
            )));
        }

        self.patch(&recipe, &area, &mut log)?;
        report(Event::Stage(format!("configuring Linux {source_release}")));
        self.configure(&recipe, &area, &mut log)?;
        let steps = self.compile(&version, &source_release, &area, &host.cache, &mut log, report)?;

        let kernel = area.tree.join("linux");
        let mut strip = self.toolbox.command("strip");
        log.run(strip.arg("--strip-all").arg(&kernel), &mut |_| {})?;
        let probed = probe::probe(kernel.as_os_str(), &self.toolbox.path)
            .context("the kernel was built, but does not run")?;
        let (sha256, size) = sha256_of(&kernel)?;
        let record = Record {
            version: version.clone(),
            release: read_uname(&area.tree).unwrap_or(source_release),
            profile: profile.clone(),
            recipe: recipe.digest(),
            source: self.source.identity.clone(),
            compiler: self.compiler.clone(),
            built_at: now(),
            build_seconds: started.elapsed().as_secs(),
            steps,
            size,
            sha256,
            features: probed.features,
        };
        let key = key(&version, &self.source.identity, &recipe, &self.compiler);
        let entry = host.cache.insert(&key, &kernel, &area.tree.join(".config"), record)?;
        report(Event::Note(format!(
            "built guest kernel {} ({}) in {} s",
            label(&version, profile),
            entry.record.release,
            entry.record.build_seconds
        )));
        Ok(entry)
    }

    fn cached(&self, version: &str, cache: &Cache) -> Result<Option<Entry>> {
        if self.request.force {
            return Ok(None);
        }
        let recipe = self.catalogue.recipe(version, &self.request.profile)?;
        let key = key(version, &self.source.identity, &recipe, &self.compiler);
        Ok(cache.get(version, &self.request.profile, &key))
    }

    fn patch(&self, recipe: &Recipe, area: &Area, log: &mut Log) -> Result<()> {
        for patch in &recipe.patches {
            let file = area.dir.path().join(patch.name);
            fs::write(&file, patch.text).context("cannot write into the build area")?;
            let mut command = self.toolbox.command("patch");
            command
                .args(["-p1", "--silent", "--batch", "--forward", "--no-backup-if-mismatch", "-i"])
                .arg(&file)
                .current_dir(&area.tree);
            log.run(&mut command, &mut |_| {}).with_context(|| {
                format!(
                    "our patch {} does not fit this source: was it changed? try a release of kernel.org's \
                     or leave --source out",
                    patch.name
                )
            })?;
        }
        Ok(())
    }

    fn configure(&self, recipe: &Recipe, area: &Area, log: &mut Log) -> Result<()> {
        // In the user's own tree there may be the results of another build.
        if area.tree.join(".config").exists() || area.tree.join("include/generated").exists() {
            log.run(self.make(area).arg("mrproper"), &mut |_| {})?;
        }
        let fragments = area.dir.path().join("fragments");
        let mut file = fs::File::create(&fragments).context("cannot write into the build area")?;
        for fragment in &recipe.fragments {
            writeln!(file, "{}", fragment.text)?;
        }
        let mut make = self.make(area);
        make.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &fragments);
        log.run(&mut make, &mut |_| {}).context("cannot configure the kernel")
    }

    /// Gives the number of steps that it took.
    fn compile(
        &self,
        version: &str,
        release: &str,
        area: &Area,
        cache: &Cache,
        log: &mut Log,
        report: Report<'_>,
    ) -> Result<usize> {
        report(Event::Stage(format!("compiling Linux {release}")));
        let total = expected_steps(self.catalogue, cache, version, &self.request.profile);
        let jobs = self
            .request
            .jobs
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        let mut steps = 0;
        let mut make = self.make(area);
        make.arg(format!("-j{jobs}")).arg("linux");
        log.run(&mut make, &mut |line| {
            if line.is_none_or(is_step) {
                steps += usize::from(line.is_some());
                report(Event::Progress {
                    done: steps as u64,
                    // The last steps are the longest: never claim the end.
                    total: total.map(|total| total.max(steps + 1) as u64),
                    unit: Unit::Steps,
                });
            }
        })
        .with_context(|| format!("cannot compile Linux {release}"))?;
        Ok(steps)
    }

    fn make(&self, area: &Area) -> Command {
        let mut make = self.toolbox.command("make");
        make.arg("-C").arg(&area.tree).arg("ARCH=um");
        make.args(kernel_variables(&area.tree));
        make.env("TMPDIR", area.dir.path());
        make
    }
}

/// What would otherwise differ from build to build.
fn kernel_variables(tree: &Path) -> Vec<String> {
    // No file name of the build's directory reaches the kernel, neither in
    // messages nor in what the assembler writes down.
    let map = format!("-ffile-prefix-map={}/=", tree.display());
    vec![
        "KBUILD_BUILD_USER=sekexe".to_owned(),
        "KBUILD_BUILD_HOST=sekexe-ci".to_owned(),
        "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 2026".to_owned(),
        "KBUILD_BUILD_VERSION=1".to_owned(),
        "LOCALVERSION=".to_owned(),
        // The versions of these would stand in the configuration, which is part of the kernel,
        // although nothing of ours is made with them.
        "RUSTC=/nonexistent".to_owned(),
        "BINDGEN=/nonexistent".to_owned(),
        "PAHOLE=/nonexistent".to_owned(),
        format!("KCFLAGS={map}"),
        format!("KAFLAGS={map}"),
    ]
}

/// Lines such as `  CC      fs/open.o`: a command in capitals, then a file.
fn is_step(line: &str) -> bool {
    line.strip_prefix("  ")
        .and_then(|line| line.split_whitespace().next())
        .is_some_and(|command| command.len() > 1 && command.bytes().all(|b| b.is_ascii_uppercase()))
}

/// How many steps this will take: as many as last time, or as the catalogue says.
fn expected_steps(catalogue: &Catalogue, cache: &Cache, version: &str, profile: &str) -> Option<usize> {
    let earlier = cache
        .entries()
        .into_iter()
        .find(|entry| entry.record.version == version && entry.record.profile == profile)
        .map(|entry| entry.record.steps);
    earlier.or_else(|| {
        let known = catalogue.version(version).or_else(|| catalogue.versions().first())?;
        known.steps.get(profile).copied()
    })
}

/// `uname -r` of the kernel that was built in this tree.
fn read_uname(tree: &Path) -> Option<String> {
    let text = fs::read_to_string(tree.join("include/config/kernel.release")).ok()?;
    Some(text.trim().to_owned())
}

fn check_space(cache: &Cache) -> Result<()> {
    let dir = cache.dir("build")?;
    let stat = nix::sys::statvfs::statvfs(&dir)
        .with_context(|| format!("cannot ask for the free space of {}", dir.display()))?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    if free < DISK_SPACE {
        bail!(
            "building a kernel takes {:.1} GB below {} and {:.1} GB are free; make room, or put \
             the cache elsewhere with XDG_CACHE_HOME",
            DISK_SPACE as f64 / 1e9,
            dir.display(),
            free as f64 / 1e9
        );
    }
    Ok(())
}

/// The directory of one build. It is removed at the end, which signals wait
/// for; if its owner was killed the next build finds its lock free and
/// removes it.
struct Area {
    dir: tempfile::TempDir,
    tree: PathBuf,
    _lock: Lock,
    // Dropped last.
    _held: HeldSignals,
}

impl Area {
    fn create(cache: &Cache) -> Result<Self> {
        let held = HeldSignals::new()?;
        let parent = cache.dir("build")?;
        // Two builds at a time must not sweep each other's between these steps.
        let _creating = cache.lock("build-area", || {})?;
        let dir = tempfile::Builder::new()
            .prefix("kernel-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot write below {}", parent.display()))?;
        let lock = Lock::acquire(&dir.path().join("lock"), || {})?;
        let tree = dir.path().join("linux");
        fs::create_dir(&tree).context("cannot write into the build area")?;
        Ok(Self { dir, tree, _lock: lock, _held: held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_the_short_lines_of_kbuild() {
        for line in [
            "  CC      fs/open.o",
            "  AR      fs/built-in.a",
            "  HOSTCC  scripts/sorttable",
            "  LD      vmlinux.o",
        ] {
            assert!(is_step(line), "{line}");
        }
        for line in ["make[1]: Entering", "  CC [M]-like text", "fs/open.c: warning", "", "   15 | int"] {
            let expected = line.starts_with("  CC");
            assert_eq!(is_step(line), expected, "{line}");
        }
    }

    #[test]
    fn the_number_of_steps_is_that_of_last_time_or_of_the_catalogue() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::embedded().unwrap();
        let cache = Cache::new(dir.path());
        let known = catalogue.version("7.3").unwrap().steps["default"];
        assert_eq!(expected_steps(&catalogue, &cache, "7.3", "default"), Some(known));
        assert_eq!(expected_steps(&catalogue, &cache, "9.9", "default"), Some(known));
        assert_eq!(expected_steps(&catalogue, &cache, "7.3", "none"), None);
    }
}
