//! The guest kernels in the cache, booted where that was asked for.
//!
//! A kernel is booted by an `exec` of our own program, in a process of its own: that is what users
//! do, and a kernel that hangs or panics takes nothing of this report with it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::super::{Environment, kernel};
use crate::detect::Support;
use crate::kernel::cache::Entry;
use crate::kernel::catalogue::Catalogue;
use crate::kernel::label;

/// A guest kernel.
#[derive(Debug, Serialize)]
pub struct Guest {
    /// What `--kernel` calls it.
    pub label: String,
    /// Its file.
    pub path: PathBuf,
    /// Its release, as its build says.
    pub release: String,
    /// Whether it is what this version of the program would build, and so what `--kernel` finds.
    pub current: bool,
    /// How a boot went.
    pub boot: Option<Boot>,
}

/// A boot.
#[derive(Debug, Serialize)]
pub struct Boot {
    /// It came up.
    pub works: Support,
    /// The release that the running kernel told.
    pub release: Option<String>,
    /// From its start until it was ready, in milliseconds.
    pub boot_ms: Option<f64>,
}

/// How long a kernel may take to come up, as `exec` takes it.
const PATIENCE: &str = "20s";

impl Boot {
    fn of(kernel: &Path) -> Self {
        let no = |reason: String| Self { works: Support::no(reason, None), release: None, boot_ms: None };
        let result = match result_of(kernel) {
            Ok(result) => result,
            Err(error) => return no(format!("{error:#}")),
        };
        // Whether the command was found does not matter: whoever says so has booted.
        match result["kernel"]["release"].as_str().filter(|release| !release.is_empty()) {
            Some(release) => Self {
                works: Support::Yes,
                release: Some(release.to_owned()),
                boot_ms: result["times"]["ready_ms"].as_f64(),
            },
            None => no(result["outcome"]["reason"].as_str().unwrap_or("it did not come up").to_owned()),
        }
    }
}

/// The result file of a command that does nothing.
fn result_of(kernel: &Path) -> Result<Value> {
    let file = tempfile::NamedTempFile::new().context("create a file for the result")?;
    Command::new("/proc/self/exe")
        .args(["exec", "--ro", "--boot-timeout", PATIENCE, "--timeout", PATIENCE, "--kernel"])
        .arg(kernel)
        .arg("--result")
        .arg(file.path())
        .args(["--", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("start sekexe-ci")?;
    let text = std::fs::read(file.path()).context("read the result")?;
    serde_json::from_slice(&text).context("there is no result")
}

/// Lists them, newest first.
pub fn list(boot: bool, env: &Environment) -> Result<Vec<Guest>> {
    // Without a place for a cache there are none.
    let Ok(host) = kernel::host(env, false) else { return Ok(Vec::new()) };
    let catalogue = Catalogue::embedded()?;
    let guest = |entry: Entry| {
        let (path, record) = (entry.kernel_path(), entry.record);
        let recipe = catalogue.recipe(&record.version, &record.profile);
        Guest {
            label: label(&record.version, &record.profile),
            boot: boot.then(|| Boot::of(&path)),
            current: recipe.is_ok_and(|recipe| recipe.digest() == record.recipe),
            release: record.release,
            path,
        }
    };
    Ok(host.cache.entries().into_iter().map(guest).collect())
}
