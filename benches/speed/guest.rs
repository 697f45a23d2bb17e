//! Our program, ready to start guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use sekexe_ci::kernel::cache::{Cache, Record, key};
use sekexe_ci::kernel::catalogue::{Catalogue, DEFAULT_PROFILE};
use sekexe_ci::kernel::probe;

use crate::measure::run;

/// Our program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_sekexe-ci");

/// Our program, its working directory and its cache.
pub struct Sekexe {
    /// A copy, as an installed program is one: the kernel holds what the linker has written in small
    /// pieces, so that to start it takes a millisecond longer.
    program: PathBuf,
    work: PathBuf,
    /// Set if a kernel was named: a cache that holds nothing else, since a kernel outside the cache
    /// is examined at each start, and one in it is not.
    cache: Option<PathBuf>,
}

impl Sekexe {
    /// `kernel` takes the place of the default one.
    pub fn new(kernel: Option<&Path>, place: &Path) -> Result<Self> {
        let work = place.join("work");
        fs::create_dir_all(&work)?;
        let program = place.join("sekexe-ci");
        fs::copy(PROGRAM, &program)?;
        let cache = place.join("cache");
        if let Some(kernel) = kernel {
            enter_into_cache(kernel, &cache)?;
        }
        Ok(Self { program, work, cache: kernel.map(|_| cache) })
    }

    /// The guests' working directory, which they may change.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// `sekexe-ci exec` in a guest, to which arguments may be added.
    pub fn exec(&self) -> Command {
        self.exec_in("uml")
    }

    /// `sekexe-ci exec` in this kind of machine, to which arguments may be added.
    pub fn exec_in(&self, isolation: &str) -> Command {
        let mut command = self.command("exec");
        command.args(["--isolation", isolation]);
        command
    }

    /// One of our commands, to which arguments may be added.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name).current_dir(&self.work).stdin(Stdio::null());
        command.envs(self.cache.as_ref().map(|cache| ("XDG_CACHE_HOME", cache)));
        command
    }

    /// Runs a command in a guest; `complete` adds it to an `exec`. Gives how many seconds the command
    /// itself took, without the guest's start, and what it wrote.
    pub fn timed(&self, complete: impl FnOnce(&mut Command)) -> Result<(f64, Output)> {
        self.timed_in("uml", complete)
    }

    /// The same in this kind of machine.
    pub fn timed_in(&self, isolation: &str, complete: impl FnOnce(&mut Command)) -> Result<(f64, Output)> {
        let result = self.work.join("result.json");
        let mut command = self.exec_in(isolation);
        command.arg("--result").arg(&result);
        complete(&mut command);
        let output = run(&mut command)?;
        let result: serde_json::Value = serde_json::from_slice(&fs::read(&result)?)?;
        let milliseconds = result["times"]["command_ms"].as_f64().context("no time in the result")?;
        Ok((milliseconds / 1000.0, output))
    }
}

/// Makes `kernel` the default one of a cache of its own.
fn enter_into_cache(kernel: &Path, cache: &Path) -> Result<()> {
    let catalogue = Catalogue::embedded()?;
    let version = catalogue.default_version();
    let recipe = catalogue.recipe(version, DEFAULT_PROFILE)?;
    let probed = probe(kernel.as_os_str(), "".as_ref())?;
    let cache = Cache::new(cache.join("sekexe-ci"));
    let record = Record {
        version: version.into(),
        release: probed.release,
        profile: DEFAULT_PROFILE.into(),
        recipe: recipe.digest(),
        source: String::new(),
        compiler: String::new(),
        built_at: 0,
        build_seconds: 0,
        steps: 0,
        size: fs::metadata(kernel)?.len(),
        sha256: String::new(),
        features: probed.features,
    };
    let no_config = cache.dir("")?.join("config");
    fs::write(&no_config, "")?;
    cache.insert(&key(version, "", &recipe, ""), kernel, &no_config, record)?;
    Ok(())
}
