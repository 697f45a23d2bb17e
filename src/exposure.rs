//! Which host paths the guest sees, and which it may change.
//!
//! The rules: everything under the root is seen, as far as the host user may read it and it is not
//! hidden. The current directory may be changed, unless something else is asked for. Nothing that
//! is hidden may lie in what may be changed: it would have to be both allowed and denied.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use sekexe_init::protocol::{ByteBuf, Share};

/// Top-level directories that the guest has its own of; what lies in the last two can be shared.
const OWN: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];
const NEVER_SHARED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// What the user asked for.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// The guest's root on the host, absolute.
    pub rootfs: PathBuf,
    /// The current directory.
    pub current_dir: PathBuf,
    /// `--rw`, as given.
    pub writable: Vec<PathBuf>,
    /// What may be changed too, if it can be: paths by which a step speaks to its CI.
    pub also: Vec<PathBuf>,
    /// `--ro`: nothing may be changed.
    pub read_only: bool,
    /// Paths that are hidden: absolute, existing, without symbolic links.
    pub hidden: Vec<PathBuf>,
}

/// What the guest gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exposure {
    /// Paths that appear at the same place in the guest, beside the root.
    pub shares: Vec<Share>,
    /// Those that may be changed, for the confinement.
    pub writable: Vec<PathBuf>,
    /// Those that may only be read, for the confinement.
    pub readable: Vec<PathBuf>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A wish that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    path: PathBuf,
    why: &'static str,
    remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--rw {}: {}; {}", self.path.display(), self.why, self.remedy)
    }
}

impl std::error::Error for Refusal {}

/// Works the exposure out. Reads the file system, changes nothing.
pub fn resolve(wish: &Wish) -> Result<Exposure, Refusal> {
    let mut exposure = Exposure::default();
    for path in &wish.writable {
        exposure.writable.push(check(path, wish)?);
    }
    let current = wish.current_dir.as_path();
    if wish.writable.is_empty() && !wish.read_only {
        match check(current, wish) {
            Ok(path) => exposure.writable.push(path),
            Err(refusal) => exposure.notes.push(format!(
                "what the command changes in {} is thrown away: {}",
                current.display(),
                refusal.why
            )),
        }
    }
    for path in wish.also.iter().filter(|path| !wish.read_only && path.exists()) {
        match check(path, wish) {
            Ok(path) => exposure.writable.push(path),
            Err(refusal) => exposure.notes.push(format!(
                "what the command writes to {} is thrown away: {}",
                path.display(),
                refusal.why
            )),
        }
    }
    drop_nested(&mut exposure.writable);
    // A directory that the guest's own /tmp or /run would cover, or another root does not have.
    let covered = OWN.iter().any(|own| current.starts_with(own));
    let elsewhere = wish.rootfs != Path::new("/") && wish.writable.is_empty();
    if (covered || elsewhere) && !exposure.writable.iter().any(|path| current.starts_with(path)) {
        let sensible = current != Path::new("/") && !OWN.iter().any(|own| current == Path::new(own));
        if sensible && !NEVER_SHARED.iter().any(|own| current.starts_with(own)) {
            exposure.readable.push(current.to_owned());
        }
    }
    let share = |path: &PathBuf, writable| Share {
        path: ByteBuf::from(path.as_os_str().as_bytes()),
        directory: path.is_dir(),
        writable,
    };
    exposure.shares = exposure
        .writable
        .iter()
        .map(|path| share(path, true))
        .chain(exposure.readable.iter().map(|path| share(path, false)))
        .collect();
    Ok(exposure)
}

/// The real path behind one that shall be writable, if it can be.
fn check(path: &Path, wish: &Wish) -> Result<PathBuf, Refusal> {
    let refuse = |why, remedy: &str| Err(Refusal { path: path.to_owned(), why, remedy: remedy.into() });
    let Ok(real) = path.canonicalize() else {
        return refuse("it does not exist", "create it first");
    };
    if real == Path::new("/") {
        return refuse(
            "the guest could change every file that you can",
            "name the directories that it needs",
        );
    }
    if NEVER_SHARED.iter().any(|own| real.starts_with(own)) || OWN.iter().any(|own| real == Path::new(own)) {
        return refuse("the guest has its own", "name a directory below it, outside /proc, /sys and /dev");
    }
    if let Some(secret) = wish.hidden.iter().find(|hidden| hidden.starts_with(&real)) {
        return Err(Refusal {
            path: path.to_owned(),
            why: "it contains hidden files",
            remedy: format!(
                "name a directory without {}, or add --show {}",
                secret.display(),
                secret.display()
            ),
        });
    }
    if access(&real, AccessFlags::W_OK).is_err() {
        return refuse(
            "you may not write there yourself",
            "leave it out: the guest's changes are thrown away",
        );
    }
    Ok(real)
}

fn drop_nested(paths: &mut Vec<PathBuf>) {
    paths.sort();
    paths.dedup();
    let all = paths.clone();
    paths.retain(|path| !all.iter().any(|other| other != path && path.starts_with(other)));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        fs::create_dir_all(path.join("work/sub")).unwrap();
        fs::create_dir_all(path.join("home/.ssh")).unwrap();
        fs::write(path.join("file"), "").unwrap();
        std::os::unix::fs::symlink("work", path.join("link")).unwrap();
        (dir, path)
    }

    fn wish(top: &Path, writable: &[&str]) -> Wish {
        Wish {
            rootfs: "/".into(),
            current_dir: top.join("work"),
            writable: writable.iter().map(|name| top.join(name)).collect(),
            also: Vec::new(),
            read_only: false,
            hidden: vec![top.join("home/.ssh")],
        }
    }

    #[test]
    fn by_default_the_current_directory_may_be_changed() {
        let (_guard, top) = tree();
        let exposure = resolve(&wish(&top, &[])).unwrap();
        assert_eq!(exposure.writable, [top.join("work")]);
        assert!(exposure.notes.is_empty());
    }

    #[test]
    fn a_file_a_link_and_a_nested_path_are_resolved() {
        let (_guard, top) = tree();
        let exposure = resolve(&wish(&top, &["file", "link", "work/sub"])).unwrap();
        assert_eq!(exposure.writable, [top.join("file"), top.join("work")]);
        assert!(!exposure.shares[0].directory && exposure.shares[1].directory);
    }

    #[test]
    fn what_cannot_be_given_is_refused_with_a_remedy() {
        let (_guard, top) = tree();
        let refusal = |path: &str| resolve(&wish(&top, &[path])).unwrap_err().to_string();
        assert!(refusal("missing").ends_with("it does not exist; create it first"));
        assert!(refusal("/").contains("every file that you can"));
        assert!(refusal("/proc/self").contains("the guest has its own"));
        assert!(refusal("home").contains("--show"));
    }

    #[test]
    fn what_a_step_speaks_by_may_be_changed_if_it_can_be() {
        let (_guard, top) = tree();
        let also = ["file", "missing", "home"].map(|name| top.join(name)).into();
        let exposure = resolve(&Wish { also, ..wish(&top, &[]) }).unwrap();
        assert_eq!(exposure.writable, [top.join("file"), top.join("work")]);
        assert!(exposure.notes[0].contains("home is thrown away: it contains hidden files"));
        let also = vec![top.join("file")];
        let exposure = resolve(&Wish { also, read_only: true, ..wish(&top, &[]) }).unwrap();
        assert!(exposure.writable.is_empty());
    }

    #[test]
    fn a_current_directory_with_secrets_is_thrown_away_rather_than_refused() {
        let (_guard, top) = tree();
        let exposure = resolve(&Wish { current_dir: top.join("home"), ..wish(&top, &[]) }).unwrap();
        assert!(exposure.writable.is_empty());
        assert!(exposure.notes[0].contains("hidden"), "{:?}", exposure.notes);
    }
}
