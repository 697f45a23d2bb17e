//! The kernels that were built here, on disk.
//!
//! ```text
//! <cache>/kernels/<version>-<profile>-<key>/{linux,kernel.json,config}
//! <cache>/{sources,build,apt,tools,locks}/      see the modules of these names
//! ```
//!
//! An entry appears by one rename, complete, and is never changed afterwards.
//! Its key covers whatever may change the bytes: version, source, fragments,
//! patches, compiler. Looking for a kernel ([`Cache::find`]) is on the path of
//! every start, so it runs nothing and reads one small file per candidate: any
//! compiler and any source will do there, as long as the recipe is today's.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::catalogue::{Recipe, hex};
use super::features::Features;
use super::lock::Lock;

/// The directory that everything of ours is kept in.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// One kernel in the cache.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Directory of the entry.
    pub dir: PathBuf,
    /// What `kernel.json` says.
    pub record: Record,
}

impl Entry {
    /// The kernel itself.
    #[must_use]
    pub fn kernel_path(&self) -> PathBuf {
        self.dir.join("linux")
    }
}

/// `kernel.json`: how a kernel came to be.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Record {
    /// Catalogue version, such as `7.3`.
    pub version: String,
    /// `uname -r` in the guest.
    pub release: String,
    /// Profile whose fragments were used.
    pub profile: String,
    /// Digest of fragments and patches, see [`Recipe::digest`].
    pub recipe: String,
    /// Identity of the unpatched source.
    pub source: String,
    /// First line of `gcc --version`.
    pub compiler: String,
    /// Seconds since 1970.
    pub built_at: u64,
    /// Seconds that the build took, unpacking included.
    pub build_seconds: u64,
    /// Compiler, archiver and linker lines of the build.
    pub steps: usize,
    /// Size of the file in bytes.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// What the kernel can do.
    pub features: Features,
}

/// The part of a kernel's name that covers everything that shapes its bytes.
#[must_use]
pub fn key(version: &str, source: &str, recipe: &Recipe, compiler: &str) -> String {
    let mut hash = Sha256::new();
    for part in [version, source, &recipe.digest(), compiler] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())[..16].to_owned()
}

impl Cache {
    /// A cache at `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A directory or file inside.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// A directory inside, made if missing.
    pub fn dir(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).with_context(|| {
            format!(
                "cannot create {}: the cache must be writable; set XDG_CACHE_HOME to a directory that is",
                dir.display()
            )
        })?;
        Ok(dir)
    }

    /// Takes the lock of this name; `waiting` is called once if it is taken.
    pub fn lock(&self, name: &str, waiting: impl FnOnce()) -> Result<Lock> {
        Lock::acquire(&self.dir("locks")?.join(name), waiting)
    }

    /// Every kernel, newest first. Entries that cannot be read are passed over:
    /// the cache may hold what another version of this program wrote.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.entries_named("")
    }

    /// The newest kernel of this version and profile with today's recipe.
    #[must_use]
    pub fn find(&self, version: &str, profile: &str, recipe: &Recipe) -> Option<Entry> {
        let candidates = self.entries_named(&format!("{version}-{profile}-"));
        if candidates.is_empty() {
            return None;
        }
        let digest = recipe.digest();
        candidates.into_iter().find(|entry| {
            entry.record.version == version
                && entry.record.profile == profile
                && entry.record.recipe == digest
        })
    }

    fn entries_named(&self, prefix: &str) -> Vec<Entry> {
        let Ok(dir) = fs::read_dir(self.path("kernels")) else { return Vec::new() };
        let mut entries: Vec<_> = dir
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.as_encoded_bytes();
                name.starts_with(prefix.as_bytes()) && !name.starts_with(b".")
            })
            .filter_map(|entry| read_entry(entry.path()))
            .collect();
        entries.sort_by(|a, b| b.record.built_at.cmp(&a.record.built_at).then_with(|| a.dir.cmp(&b.dir)));
        entries
    }

    /// The kernel of exactly this key.
    #[must_use]
    pub fn get(&self, version: &str, profile: &str, key: &str) -> Option<Entry> {
        read_entry(self.path("kernels").join(format!("{version}-{profile}-{key}")))
    }

    /// Makes the kernel of `record` an entry. An entry of the same key is replaced.
    pub fn insert(&self, key: &str, kernel: &Path, config: &Path, record: Record) -> Result<Entry> {
        let kernels = self.dir("kernels")?;
        let temporary = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(&kernels)
            .with_context(|| format!("cannot write below {}", kernels.display()))?;
        // Readable to whoever may read the cache directory, as other files are.
        set_mode(temporary.path(), 0o755)?;
        for (from, name, mode) in [(kernel, "linux", 0o755), (config, "config", 0o644)] {
            let to = temporary.path().join(name);
            fs::copy(from, &to)
                .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
            set_mode(&to, mode)?;
            fs::File::open(&to)?.sync_all()?;
        }
        let json = serde_json::to_string_pretty(&record)? + "\n";
        fs::write(temporary.path().join("kernel.json"), json)
            .with_context(|| format!("cannot write below {}", kernels.display()))?;

        let dir = kernels.join(format!("{}-{}-{key}", record.version, record.profile));
        if dir.exists() {
            remove_entry(&dir)?;
        }
        fs::rename(temporary.path(), &dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // Renamed away: there is nothing left to remove.
        let _ = temporary.keep();
        Ok(Entry { dir, record })
    }

    /// Removes one kernel.
    pub fn remove(&self, entry: &Entry) -> Result<()> {
        remove_entry(&entry.dir)
    }

    /// Removes every kernel and everything that was downloaded. Gives the number
    /// of kernels. Locks stay: others may be waiting for them.
    pub fn clear(&self) -> Result<usize> {
        let entries = self.entries();
        for dir in ["kernels", "sources", "apt", "tools", "build-logs"] {
            let dir = self.path(dir);
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
                }
                _ => {}
            }
        }
        self.sweep();
        Ok(entries.len())
    }

    /// Removes what killed processes left: half-written entries and build trees
    /// whose owner is gone.
    pub fn sweep(&self) {
        for (place, prefix) in [
            ("kernels", ".new-"),
            ("kernels", ".old-"),
            ("sources", ".download-"),
            ("tools", ".download-"),
            ("build", ""),
        ] {
            let Ok(dir) = fs::read_dir(self.path(place)) else { continue };
            for entry in dir.flatten() {
                let name = entry.file_name();
                if !name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
                    continue;
                }
                // The owner of a build tree holds the lock inside it.
                let free = match place {
                    "build" => matches!(Lock::try_acquire(&entry.path().join("lock")), Ok(Ok(_))),
                    _ => older_than_an_hour(&entry),
                };
                if free && fs::remove_dir_all(entry.path()).is_err() {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// Half-written entries and downloads carry no lock: none lives for an hour.
fn older_than_an_hour(entry: &fs::DirEntry) -> bool {
    entry
        .metadata()
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|time| SystemTime::now().duration_since(time).ok())
        .is_some_and(|age| age.as_secs() > 3600)
}

/// The entry in this directory, if it is one.
pub(crate) fn read_entry(dir: PathBuf) -> Option<Entry> {
    let record = serde_json::from_slice(&fs::read(dir.join("kernel.json")).ok()?).ok()?;
    dir.join("linux").exists().then_some(Entry { dir, record })
}

fn remove_entry(dir: &Path) -> Result<()> {
    // Out of sight first, so that nobody finds half of it.
    let name = dir.file_name().unwrap_or(OsStr::new("kernel"));
    let mut hidden = std::ffi::OsString::from(".old-");
    hidden.push(name);
    hidden.push(format!("-{}", std::process::id()));
    let hidden = dir.with_file_name(hidden);
    match fs::rename(dir, &hidden) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot remove {}", dir.display()))?,
    }
    fs::remove_dir_all(&hidden).with_context(|| format!("cannot remove {}", hidden.display()))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::Part;
    use super::*;

    fn recipe(text: &'static str) -> Recipe {
        Recipe { fragments: vec![Part { name: "base.config", text }], patches: vec![] }
    }

    fn record(built_at: u64, recipe: &Recipe, compiler: &str) -> Record {
        Record {
            version: "7.3".into(),
            release: "7.3.4-sekexe".into(),
            profile: "default".into(),
            recipe: recipe.digest(),
            source: "source".into(),
            compiler: compiler.into(),
            built_at,
            build_seconds: 1,
            steps: 1,
            size: 4,
            sha256: String::new(),
            features: Features::default(),
        }
    }

    fn insert(cache: &Cache, record: Record, recipe: &Recipe) -> Entry {
        let file = cache.dir("").unwrap().join("input");
        fs::write(&file, "\x7fELF").unwrap();
        let key = key(&record.version, &record.source, recipe, &record.compiler);
        cache.insert(&key, &file, &file, record).unwrap()
    }

    #[test]
    fn the_key_changes_with_each_ingredient() {
        let base = key("7.3", "source", &recipe("a"), "gcc 12");
        assert_eq!(base, key("7.3", "source", &recipe("a"), "gcc 12"));
        for other in [
            key("7.4", "source", &recipe("a"), "gcc 12"),
            key("7.3", "other", &recipe("a"), "gcc 12"),
            key("7.3", "source", &recipe("b"), "gcc 12"),
            key("7.3", "source", &recipe("a"), "gcc 13"),
            key("7.3s", "ource", &recipe("a"), "gcc 12"),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn find_takes_the_newest_of_todays_recipe_whatever_the_compiler() {
        let temporary = tempfile::tempdir().unwrap();
        let cache = Cache::new(temporary.path());
        assert!(cache.find("7.3", "default", &recipe("a")).is_none());
        insert(&cache, record(10, &recipe("a"), "gcc 12"), &recipe("a"));
        insert(&cache, record(20, &recipe("a"), "gcc 13"), &recipe("a"));
        insert(&cache, record(30, &recipe("old"), "gcc 13"), &recipe("old"));
        let found = cache.find("7.3", "default", &recipe("a")).unwrap();
        assert_eq!(found.record.compiler, "gcc 13");
        assert_eq!(found.record.built_at, 20);
        assert!(cache.find("7.3", "full", &recipe("a")).is_none());
        assert!(cache.find("7.3", "default", &recipe("b")).is_none());
        assert_eq!(cache.entries().len(), 3);
    }

    #[test]
    fn an_entry_is_replaced_and_removed_whole() {
        let temporary = tempfile::tempdir().unwrap();
        let cache = Cache::new(temporary.path());
        insert(&cache, record(10, &recipe("a"), "gcc 12"), &recipe("a"));
        let entry = insert(&cache, record(11, &recipe("a"), "gcc 12"), &recipe("a"));
        assert_eq!(cache.entries().len(), 1);
        assert_eq!(cache.entries()[0].record.built_at, 11);
        cache.remove(&entry).unwrap();
        cache.remove(&entry).unwrap();
        assert_eq!(fs::read_dir(cache.path("kernels")).unwrap().count(), 0);
    }

    #[test]
    fn a_broken_entry_is_passed_over() {
        let temporary = tempfile::tempdir().unwrap();
        let cache = Cache::new(temporary.path());
        let dir = cache.dir("kernels/7.3-default-0123").unwrap();
        fs::write(dir.join("kernel.json"), "{").unwrap();
        assert!(cache.entries().is_empty());
        assert!(cache.find("7.3", "default", &recipe("a")).is_none());
    }

    #[test]
    fn the_sweep_takes_abandoned_build_trees_and_leaves_those_in_use() {
        let temporary = tempfile::tempdir().unwrap();
        let cache = Cache::new(temporary.path());
        let used = cache.dir("build/used").unwrap();
        let _lock = Lock::acquire(&used.join("lock"), || {}).unwrap();
        let abandoned = cache.dir("build/abandoned").unwrap();
        fs::write(abandoned.join("lock"), "").unwrap();
        cache.sweep();
        assert!(used.exists());
        assert!(!abandoned.exists());
    }
}
