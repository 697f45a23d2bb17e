//! What the root of a namespaces machine is made of.
//!
//! An overlay shows one directory of one file system: what is mounted below its lower layer is not
//! in it. In a user namespace such a lower layer is even refused, since it would show what the
//! mounts cover. So every mount has to be a layer of its own, and in a user namespace the
//! directories on the way to it have to be taken apart.
//!
//! Reads directories, changes nothing.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use sekexe_init::protocol::{ByteBuf, Layer, LayerKind, Shadow};

/// Top-level directories that the machine has its own of.
const OWN: [&str; 5] = ["proc", "sys", "dev", "run", "tmp"];
/// File systems that the machine mounts itself, or that mean nothing to it.
const OF_THE_KERNEL: [&str; 20] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "sysfs",
    "tracefs",
];
/// Most layers that are worth their time; what is left of the root is then read-only.
const MOST: usize = 200;
/// Most entries of a directory that is taken apart.
const MOST_ENTRIES: usize = 400;
/// Largest file that is copied, in bytes; a larger one is read-only.
const LARGEST_COPY: u64 = 256 << 10;

/// A mount of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where, absolute.
    pub at: PathBuf,
    /// Type of its file system.
    pub kind: String,
}

/// What decides about the layers.
#[derive(Debug, Clone)]
pub struct Survey<'a> {
    /// The directory that becomes the root.
    pub rootfs: &'a Path,
    /// Every mount of the host's.
    pub mounts: &'a [Mount],
    /// Absolute paths that must not be seen.
    pub hidden: &'a [PathBuf],
    /// Whether overlays can be mounted; otherwise everything is read-only.
    pub overlays: bool,
    /// Whether the mounts are set up in a user namespace.
    pub in_user_namespace: bool,
}

/// The layers, parents before children.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Layers {
    /// Them.
    pub all: Vec<Layer>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Layers {
    /// Whether there is something among them that commands must not remount.
    pub fn need_seal(&self) -> bool {
        self.all.iter().any(|layer| layer.kind == LayerKind::ReadOnly)
    }

    /// Leaves out copies of files that others stand in for: container engines mount the host's
    /// names over the container's.
    pub fn give_way(&mut self, files: &[Shadow]) {
        let replaced = |layer: &Layer| files.iter().any(|file| file.path == layer.path);
        self.all.retain(|layer| layer.kind != LayerKind::Copy || !replaced(layer));
    }
}

/// Works the layers out.
pub fn survey(survey: &Survey<'_>) -> Result<Layers> {
    let mut work = Work {
        mounts: below_root(survey, |mount| survey.in_user_namespace || !mount.is_of_the_kernel()),
        closed: below_root(survey, Mount::is_of_the_kernel),
        layers: Layers::default(),
        survey,
    };
    if survey.overlays && (work.mounts.is_empty() || !survey.in_user_namespace) && !work.is_plain_root() {
        let mode = fs::metadata(survey.rootfs).map_or(0o755, |found| found.permissions().mode() & 0o7777);
        work.add_whole(Path::new(""), mode);
    } else {
        work.take_apart(Path::new(""))?;
    }
    Ok(work.layers)
}

/// The mounts of this process, from `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
pub fn mounts(mountinfo: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let at = unescape(fields.nth(4)?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Mount {
            at: std::ffi::OsString::from(String::from_utf8_lossy(&at).into_owned()).into(),
            kind: String::from_utf8_lossy(kind).into_owned(),
        })
    };
    mountinfo.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// The kernel writes blanks, tabs, newlines and backslashes as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| field[at] == b'\\') {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(field[at]);
                at += 1;
            }
        }
    }
    plain
}

impl Mount {
    fn is_of_the_kernel(&self) -> bool {
        OF_THE_KERNEL.contains(&self.kind.as_str())
    }
}

/// Mounts of a sort below the root and outside the machine's own places, as paths relative to the
/// root, parents first.
fn below_root(survey: &Survey<'_>, wanted: impl Fn(&Mount) -> bool) -> Vec<PathBuf> {
    let below = |mount: &Mount| Some(mount.at.strip_prefix(survey.rootfs).ok()?.to_owned());
    let mut found: Vec<PathBuf> = survey
        .mounts
        .iter()
        .filter(|mount| wanted(mount))
        .filter_map(below)
        .filter(|at| !at.as_os_str().is_empty() && !is_own(at))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Whether the machine has its own of this path, which is relative to the root.
fn is_own(at: &Path) -> bool {
    OWN.iter().any(|own| at.starts_with(own))
}

struct Work<'a> {
    survey: &'a Survey<'a>,
    /// Mounts that an overlay of a directory above them does not show, or is refused for. In a user
    /// namespace those of the kernel's own file systems are among them.
    mounts: Vec<PathBuf>,
    /// Mounts whose contents are not shown.
    closed: Vec<PathBuf>,
    layers: Layers,
}

impl Work<'_> {
    /// Below the machine's root always lie its own mounts, so in a user namespace the host's root
    /// is never one layer.
    fn is_plain_root(&self) -> bool {
        self.survey.in_user_namespace && self.survey.rootfs == Path::new("/")
    }

    /// A directory or a file of the root.
    fn add(&mut self, at: &Path, metadata: &Metadata) -> Result<()> {
        let full = self.survey.rootfs.join(at);
        if self.survey.hidden.contains(&full) {
            return Ok(());
        }
        let kind = metadata.file_type();
        if kind.is_symlink() {
            let to = fs::read_link(&full).with_context(|| format!("read the link {}", full.display()))?;
            self.push(at, LayerKind::Link(ByteBuf::from(to.as_os_str().as_bytes())));
        } else if kind.is_file() {
            // A file that we cannot read is nothing to the machine either.
            if fs::File::open(&full).is_ok() {
                let copied = metadata.len() <= LARGEST_COPY;
                self.push(at, if copied { LayerKind::Copy } else { LayerKind::ReadOnly });
            }
        } else if kind.is_dir() {
            return self.add_directory(at, metadata);
        }
        Ok(())
    }

    fn add_directory(&mut self, at: &Path, metadata: &Metadata) -> Result<()> {
        let full = self.survey.rootfs.join(at);
        let mode = metadata.permissions().mode() & 0o7777;
        // Nothing to show, so nothing to put a layer on.
        if shows_nothing(&full, metadata) || self.closed.iter().any(|mount| mount == at) {
            self.push(at, LayerKind::Directory { mode });
        } else if !self.survey.overlays {
            self.add_read_only(at);
        } else if self.has_mounts_below(at) && self.survey.in_user_namespace {
            self.take_apart(at)?;
        } else {
            self.add_whole(at, mode);
        }
        Ok(())
    }

    /// One layer for all of a directory, and one for each mount below it.
    fn add_whole(&mut self, at: &Path, mode: u32) {
        self.push(at, LayerKind::Overlay { mode });
        let below: Vec<PathBuf> =
            self.mounts.iter().filter(|m| m.starts_with(at) && *m != at).cloned().collect();
        for mount in below {
            if self.layers.all.len() >= MOST {
                let at = self.survey.rootfs.join(at);
                self.note(format!("{} has too many mounts below; some are not shown", at.display()));
                return;
            }
            let full = self.survey.rootfs.join(&mount);
            match fs::metadata(&full) {
                Ok(found) if found.is_dir() => {
                    let mode = found.permissions().mode() & 0o7777;
                    self.push(&mount, LayerKind::Overlay { mode });
                }
                Ok(found) if found.is_file() && found.len() <= LARGEST_COPY => {
                    self.push(&mount, LayerKind::Copy);
                }
                Ok(found) if found.is_file() => self.push(&mount, LayerKind::ReadOnly),
                _ => {}
            }
        }
    }

    /// A directory of the machine's own, with a layer for each entry of the host's.
    fn take_apart(&mut self, at: &Path) -> Result<()> {
        let full = self.survey.rootfs.join(at);
        let mut entries: Vec<_> = fs::read_dir(&full)
            .with_context(|| format!("list {}", full.display()))?
            .filter_map(Result::ok)
            .collect();
        let is_root = at.as_os_str().is_empty();
        if !is_root && entries.len() + self.layers.all.len() > MOST_ENTRIES {
            self.add_read_only(at);
            return Ok(());
        }
        let mode = fs::metadata(&full).map_or(0o755, |found| found.permissions().mode() & 0o7777);
        if !is_root {
            self.push(at, LayerKind::Directory { mode });
        }
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = at.join(entry.file_name());
            let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
            if !is_own(&path) {
                self.add(&path, &metadata)?;
            }
        }
        Ok(())
    }

    fn add_read_only(&mut self, at: &Path) {
        self.push(at, LayerKind::ReadOnly);
        let full = self.survey.rootfs.join(at);
        self.note(format!("{} can be read only, changes are refused", full.display()));
    }

    fn has_mounts_below(&self, at: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.starts_with(at) && mount != at)
    }

    fn push(&mut self, at: &Path, kind: LayerKind) {
        self.layers.all.push(Layer { path: ByteBuf::from(at.as_os_str().as_bytes()), kind });
    }

    fn note(&mut self, text: String) {
        if !self.layers.notes.contains(&text) {
            self.layers.notes.push(text);
        }
    }
}

/// Whether a directory is empty, or closed to us.
fn shows_nothing(directory: &Path, metadata: &Metadata) -> bool {
    // Most file systems count directories in a directory as links to it, and to list one takes time.
    if metadata.nlink() > 2 {
        let wanted = AccessFlags::R_OK | AccessFlags::X_OK;
        return faccessat(AT_FDCWD, directory, wanted, AtFlags::AT_EACCESS).is_err();
    }
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["proc", "tmp", "empty", "usr/bin", "var/lib/docker/x", "var/log", "etc/ssl", "etc/empty"]
        {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        for name in
            ["usr/bin/true", "var/lib/state", "var/log/a", "etc/hosts", "etc/key", "etc/ssl/x", "file"]
        {
            fs::write(dir.path().join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("usr/bin", dir.path().join("bin")).unwrap();
        dir
    }

    fn shown(root: &Path, mounts: &[(&str, &str)], change: impl FnOnce(&mut Survey<'_>)) -> (String, Layers) {
        let mounts: Vec<Mount> =
            mounts.iter().map(|(at, kind)| Mount { at: root.join(at), kind: (*kind).to_owned() }).collect();
        let hidden = [root.join("etc/key")];
        let mut asked = Survey {
            rootfs: root,
            mounts: &mounts,
            hidden: &hidden,
            overlays: true,
            in_user_namespace: true,
        };
        change(&mut asked);
        let layers = survey(&asked).unwrap();
        let line = |layer: &Layer| {
            let kind = format!("{:?}", layer.kind);
            let kind = kind.split([' ', '(', '{']).next().unwrap();
            format!("{}={kind}", String::from_utf8_lossy(&layer.path))
        };
        (layers.all.iter().map(line).collect::<Vec<_>>().join(" "), layers)
    }

    #[test]
    fn a_root_without_mounts_is_one_layer() {
        let dir = tree();
        assert_eq!(shown(dir.path(), &[], |_| {}).0, "=Overlay");
        assert_eq!(shown(dir.path(), &[("proc", "proc")], |_| {}).0, "=Overlay");
    }

    #[test]
    fn in_a_user_namespace_the_way_to_a_mount_is_taken_apart() {
        let dir = tree();
        let (line, layers) = shown(dir.path(), &[("var/lib/docker", "ext4")], |_| {});
        assert_eq!(
            line,
            "bin=Link empty=Directory etc=Overlay file=Copy usr=Overlay var=Directory \
             var/lib=Directory var/lib/docker=Overlay var/lib/state=Copy var/log=Overlay"
        );
        assert!(!layers.need_seal());
    }

    #[test]
    fn elsewhere_the_mount_is_a_layer_above() {
        let dir = tree();
        let mounts = [("var/lib/docker", "ext4"), ("usr/bin/true", "ext4"), ("etc/ssl", "sysfs")];
        let (line, _) = shown(dir.path(), &mounts, |survey| survey.in_user_namespace = false);
        assert_eq!(line, "=Overlay usr/bin/true=Copy var/lib/docker=Overlay");
    }

    #[test]
    fn a_file_mount_has_its_directory_copied_without_what_is_hidden() {
        let dir = tree();
        let (line, _) = shown(dir.path(), &[("etc/hosts", "ext4")], |_| {});
        assert!(line.contains("etc=Directory etc/empty=Directory etc/hosts=Copy etc/ssl=Overlay"), "{line}");
        assert!(!line.contains("etc/key"), "{line}");
    }

    #[test]
    fn without_overlays_everything_is_read_only_and_sealed() {
        let dir = tree();
        let (line, layers) = shown(dir.path(), &[], |survey| survey.overlays = false);
        assert_eq!(line, "bin=Link empty=Directory etc=ReadOnly file=Copy usr=ReadOnly var=ReadOnly");
        assert!(layers.need_seal() && layers.notes.len() == 3, "{:?}", layers.notes);
    }

    #[test]
    fn thousands_of_mounts_are_no_thousands_of_layers() {
        let dir = tree();
        let names: Vec<String> = (0..5000).map(|n| format!("var/lib/m{n}")).collect();
        for name in &names {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mounts: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "tmpfs")).collect();
        let (line, layers) = shown(dir.path(), &mounts, |_| {});
        assert!(line.contains("var/lib=ReadOnly") && layers.need_seal(), "{line}");
        let (_, layers) = shown(dir.path(), &mounts, |survey| survey.in_user_namespace = false);
        assert!(layers.all.len() <= MOST && layers.notes[0].contains("too many"), "{:?}", layers.notes);
    }

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        let text = b"22 1 0:5 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     30 22 0:9 /a /mnt/with\\040blank\\134 rw - tmpfs none rw\nbroken\n";
        let found = mounts(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], Mount { at: "/mnt/with blank\\".into(), kind: "tmpfs".into() });
    }
}
