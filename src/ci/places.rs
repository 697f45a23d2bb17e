//! Where the paths that tools print lead: to a file of the repository, or elsewhere.
//!
//! A machine shows this machine's files at their own paths, so nothing has to be translated; but what
//! a script prints is not trusted. A path counts if it leads to a file below the repository's root,
//! links followed, and not to one that the machine must not see: the line in question is shown.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Component, Path, PathBuf};

use super::annotation::{Annotation, Place};
use super::matcher::Found;

/// Longest line shown, in characters.
const LONGEST: usize = 400;

/// The repository, as a script that ran in `workdir` sees it.
#[derive(Debug, Clone)]
pub struct Places {
    root: PathBuf,
    workdir: PathBuf,
    hidden: Vec<PathBuf>,
}

impl Places {
    /// The repository at `workspace`, which is that of the CI job, or else the one that `workdir` is
    /// in, or else `workdir`.
    pub fn new(workspace: Option<&Path>, workdir: &Path, hidden: Vec<PathBuf>) -> Self {
        let real = |path: &Path| path.canonicalize().ok();
        let workdir = real(workdir).unwrap_or_else(|| workdir.to_owned());
        let workspace = workspace.and_then(real).filter(|workspace| workdir.starts_with(workspace));
        let repository = || workdir.ancestors().find(|above| above.join(".git").exists());
        let root = workspace.unwrap_or_else(|| repository().unwrap_or(&workdir).to_owned());
        Self { root, workdir, hidden }
    }

    /// The real path of a file that may be read, if it is one of the repository.
    pub fn find(&self, file: &str, from_path: Option<&str>) -> Option<PathBuf> {
        let file = match from_path.and_then(|project| Path::new(project).parent()) {
            Some(directory) => directory.join(file),
            None => PathBuf::from(file),
        };
        // Tools print paths relative to where they run, GitHub takes them relative to the root.
        let real = [&self.workdir, &self.root].into_iter().find_map(|base| {
            let path = base.join(&file).canonicalize().ok()?;
            (path.starts_with(&self.root) && path.is_file()).then_some(path)
        })?;
        let is_hidden = self.hidden.iter().any(|hidden| real.starts_with(hidden));
        (!is_hidden).then_some(real)
    }

    /// What a path is called in the repository.
    pub fn relative(&self, real: &Path) -> Option<String> {
        let parts = real.strip_prefix(&self.root).ok()?.components().map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        });
        parts.collect::<Option<Vec<_>>>().map(|parts| parts.join("/"))
    }

    /// The annotation for something that a matcher found, with the line in question if it shall be
    /// shown. A place outside of the repository becomes part of the message.
    pub fn annotate(&self, found: Found, show_source: bool) -> Annotation {
        let mut annotation = Annotation::new(found.level, &found.owner, found.message);
        annotation.code = found.code;
        let Some(file) = found.file else { return annotation };
        let place = Place {
            file,
            line: found.line,
            column: found.column,
            end_line: found.end_line,
            end_column: found.end_column,
        };
        let real = self.find(&place.file, found.from_path.as_deref());
        match real.as_deref().and_then(|real| self.relative(real)) {
            Some(file) => {
                annotation.excerpt =
                    real.filter(|_| show_source).and_then(|real| line_of(&real, place.line?));
                annotation.place = Some(Place { file, ..place });
            }
            None => annotation.message = format!("{place}: {}", annotation.message),
        }
        annotation
    }
}

/// One line of a file.
fn line_of(path: &Path, number: u32) -> Option<String> {
    let lines = BufReader::new(File::open(path).ok()?).split(b'\n');
    let line = lines.take(number as usize).nth(number as usize - 1)?.ok()?;
    Some(String::from_utf8_lossy(&line).trim_end().chars().take(LONGEST).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn repository() -> (tempfile::TempDir, Places) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        fs::create_dir_all(top.join("repo/.git")).unwrap();
        fs::create_dir_all(top.join("repo/src/deep")).unwrap();
        fs::write(top.join("repo/src/a.c"), "one\n\ttwo\n").unwrap();
        fs::write(top.join("repo/secret"), "word\n").unwrap();
        fs::write(top.join("outside.c"), "three\n").unwrap();
        symlink(top.join("outside.c"), top.join("repo/src/link.c")).unwrap();
        let hidden = vec![top.canonicalize().unwrap().join("repo/secret")];
        let places = Places::new(None, &top.join("repo/src"), hidden);
        (dir, places)
    }

    fn found(file: &str) -> Found {
        Found {
            owner: "gcc".into(),
            message: "no".into(),
            file: Some(file.into()),
            line: Some(2),
            ..Found::default()
        }
    }

    #[test]
    fn however_a_file_is_named_it_has_one_name_in_the_repository() {
        let (dir, places) = repository();
        let absolute = dir.path().join("repo/src/a.c");
        for name in ["a.c", "./deep/../a.c", "src/a.c", absolute.to_str().unwrap()] {
            let annotation = places.annotate(found(name), true);
            assert_eq!(annotation.place.as_ref().map(|place| place.file.as_str()), Some("src/a.c"), "{name}");
            assert_eq!(annotation.excerpt.as_deref(), Some("\ttwo"));
        }
        let project = Found { from_path: Some("deep/x.proj".into()), ..found("../a.c") };
        assert!(places.annotate(project, false).place.is_some());
    }

    #[test]
    fn what_is_not_of_the_repository_is_only_named() {
        let (_dir, places) = repository();
        for name in ["/etc/passwd", "../../outside.c", "link.c", "missing.c", "../secret", "deep"] {
            let annotation = places.annotate(found(name), true);
            assert_eq!((annotation.place, annotation.excerpt), (None, None), "{name}");
            assert_eq!(annotation.message, format!("{name}:2: no"));
        }
    }

    #[test]
    fn the_jobs_workspace_is_the_root_if_the_script_ran_in_it() {
        let (dir, _) = repository();
        let workspace = dir.path().canonicalize().unwrap();
        let places = Places::new(Some(&workspace), &workspace.join("repo/src"), Vec::new());
        let real = places.find("a.c", None).unwrap();
        assert_eq!(places.relative(&real).as_deref(), Some("repo/src/a.c"));
        let elsewhere =
            Places::new(Some(&workspace.join("repo/src/deep")), &workspace.join("repo/src"), Vec::new());
        assert_eq!(elsewhere.root, workspace.join("repo"));
    }
}
