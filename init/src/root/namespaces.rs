//! The root of namespaces: the host's files are the host's own mounts.
//!
//! An overlay cannot have a lower layer with mounts below it in a user namespace, so the root is
//! made of many layers, which the host has worked out ([`Layer`]). Every path of the host's is
//! opened without following symbolic links: whoever swaps one in meanwhile gets an error.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::protocol::{Boot, Layer, LayerKind, Namespaces, Shadow, ShadowKind, Share};
use anyhow::{Context, Result, bail};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{chdir, pivot_root};

use super::{ROOT, SCRATCH, Xattrs, create_directory, create_mount_point, path, throw_away};
use crate::shadows::{self, Style};
use crate::sys::mounts::{self, Attributes};

/// The host's root, until the new one is entered.
pub const HOST: &str = "/host";

/// Directories of which every host has one: the throw-away layer needs a place to be mounted.
const FOOTHOLDS: [&str; 5] = ["/tmp", "/run", "/mnt", "/proc", "/usr"];

/// Goes over to a tmpfs that has the host's root below it.
pub fn take_place(boot: &Boot) -> Result<()> {
    let foothold = FOOTHOLDS.into_iter().find(|place| Path::new(place).is_dir());
    let foothold = foothold.context("the host has no directory to mount anything on")?;
    super::mount_scratch(foothold, boot.writable_bytes)?;
    chdir(foothold).context("enter the throw-away layer")?;
    fs::create_dir("host").context("create /host")?;
    pivot_root(".", "host").context("change the root for a first time")?;
    chdir("/").context("enter the throw-away layer")?;
    [SCRATCH, ROOT].into_iter().try_for_each(|at| create_directory(Path::new(at), 0o755))
}

/// The overlays of a root, on their way to being made. That takes longer than anything else of the
/// set-up, and does not depend on anything else: one thread may [`make`](Self::make) them while
/// another already [puts the root together](assemble).
pub struct Overlays<'a> {
    wanted: Vec<Wanted<'a>>,
    rootfs: PathBuf,
    shadows: &'a [Shadow],
    xattrs: Xattrs,
    attributes: Attributes,
    every_owner: bool,
}

/// One of them: its layer, its mode, and what has become of it.
struct Wanted<'a> {
    layer: &'a Layer,
    mode: u32,
    state: Mutex<State>,
    made: Condvar,
}

enum State {
    Untouched,
    BeingMade,
    Made(Result<Made>),
    Taken,
}

/// An overlay that is mounted nowhere yet.
struct Made {
    mount: OwnedFd,
    warnings: Vec<String>,
}

impl<'a> Overlays<'a> {
    /// Nothing is made by this.
    pub fn of(boot: &'a Boot, namespaces: &'a Namespaces) -> Self {
        let wanted = |layer: &'a Layer| match layer.kind {
            LayerKind::Overlay { mode } => {
                let state = Mutex::new(State::Untouched);
                Some(Wanted { layer, mode, state, made: Condvar::new() })
            }
            _ => None,
        };
        Self {
            wanted: namespaces.layers.iter().filter_map(wanted).collect(),
            rootfs: Path::new(HOST).join(inside(&boot.rootfs)),
            shadows: &boot.shadows,
            xattrs: if namespaces.in_user_namespace { Xattrs::User } else { Xattrs::Trusted },
            attributes: if namespaces.host_root { Attributes::NO_DEVICES } else { Attributes::NONE },
            every_owner: !namespaces.in_user_namespace,
        }
    }

    /// Makes those that nobody else makes.
    pub fn make(&self) {
        for number in 0..self.wanted.len() {
            self.make_untouched(number);
        }
    }

    /// Makes this one unless somebody has begun to. Says whether it was for us to make.
    fn make_untouched(&self, number: usize) -> bool {
        let wanted = &self.wanted[number];
        let untouched = wanted.lock().claim();
        if untouched {
            let made = self.make_one(number, path(&wanted.layer.path), wanted.mode);
            *wanted.lock() = State::Made(made);
            wanted.made.notify_all();
        }
        untouched
    }

    fn make_one(&self, number: usize, at: &Path, mode: u32) -> Result<Made> {
        let source = self.rootfs.join(at);
        let shadows: Vec<Shadow> = self.shadows.iter().filter_map(|shadow| below(shadow, at)).collect();
        let mut warnings = Vec::new();
        let fill = |upper: &Path| {
            let style = Style { opaque: self.xattrs.opaque(), owner: None, every_owner: self.every_owner };
            let failed = shadows::apply(&shadows, upper, style);
            failed.into_iter().try_for_each(|(shadow, why)| forgive(shadow, why, &mut warnings))
        };
        let name = format!("layer-{number}");
        let make = |lower: &Path| {
            let lower = lower.to_str().context("a path of ours is not text")?;
            super::make_overlay(&name, lower, mode, self.xattrs, self.attributes, fill)
        };
        if is_plain(at) {
            return Ok(Made { mount: make(&source)?, warnings });
        }
        // By the name of a descriptor, so that no path of the user's is part of a mount option, and
        // so that nobody can put a link in its way.
        let opened = open(&source, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let by_number = Path::new(HOST).join(format!("proc/self/fd/{}", opened.as_raw_fd()));
        if by_number.is_dir() {
            return Ok(Made { mount: make(&by_number)?, warnings });
        }
        let lower = Path::new(SCRATCH).join(format!("{name}-lower"));
        create_directory(&lower, 0o755)?;
        mounts::bind_alone(opened.as_fd(), &lower).context("bind the lower layer")?;
        Ok(Made { mount: make(&lower)?, warnings })
    }

    /// The overlay of this layer, once, as soon as it is made.
    fn take(&self, layer: &Layer) -> Result<Made> {
        let found = self.wanted.iter().position(|wanted| std::ptr::eq(wanted.layer, layer));
        let number = found.context("it is no overlay")?;
        self.make_untouched(number);
        let wanted = &self.wanted[number];
        let being_made = |state: &mut State| matches!(state, State::BeingMade);
        // To make another one takes as long as to fall asleep and wake up.
        let mut others = number + 1..self.wanted.len();
        while being_made(&mut wanted.lock()) && others.any(|other| self.make_untouched(other)) {}
        let state = wanted.lock();
        let mut state = wanted.made.wait_while(state, being_made).unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Taken) {
            State::Made(made) => made,
            _ => bail!("it is in its place already"),
        }
    }

    /// Whether a path lies in one of them.
    fn cover(&self, at: &Path) -> bool {
        self.wanted.iter().any(|wanted| at.starts_with(path(&wanted.layer.path)))
    }
}

impl State {
    /// Whether it is for the caller to make it.
    fn claim(&mut self) -> bool {
        let untouched = matches!(self, Self::Untouched);
        if untouched {
            *self = Self::BeingMade;
        }
        untouched
    }
}

impl Wanted<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts the new root together at [`ROOT`].
pub fn assemble(
    boot: &Boot,
    namespaces: &Namespaces,
    overlays: &Overlays<'_>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    // A root has to be a mount. Where one layer is all of it, it covers this one.
    super::bind(Path::new(ROOT), Path::new(ROOT))?;
    let plain = !namespaces.layers.first().is_some_and(|layer| layer.path.is_empty());
    for layer in &namespaces.layers {
        let added = add(layer, overlays, warnings);
        // The host lives on: nobody misses what it has removed since it was looked at.
        if added.is_ok() || !is_gone(&overlays.rootfs.join(path(&layer.path))) {
            added.with_context(|| format!("/{}", path(&layer.path).display()))?;
        }
    }
    for shadow in boot.shadows.iter().filter(|shadow| !overlays.cover(path(&shadow.path))) {
        shadows::apply_directly(shadow, Path::new(ROOT)).or_else(|why| forgive(shadow, why, warnings))?;
    }
    if !plain {
        // The host's own has nothing in it that would be of use without its mounts.
        let dev = Path::new(SCRATCH).join("dev");
        create_directory(&dev, 0o755)?;
        create_mount_point(&Path::new(ROOT).join("dev"), true).context("create /dev")?;
        super::bind(&dev, &Path::new(ROOT).join("dev"))?;
    }
    super::provide_private_places(plain)?;
    share_host_paths(boot, overlays.xattrs, namespaces.host_root)
}

fn add(layer: &Layer, overlays: &Overlays<'_>, warnings: &mut Vec<String>) -> Result<()> {
    let at = path(&layer.path);
    let (source, target) = (overlays.rootfs.join(at), Path::new(ROOT).join(at));
    match &layer.kind {
        LayerKind::Overlay { .. } => {
            let Made { mount, warnings: mut more } = overlays.take(layer)?;
            warnings.append(&mut more);
            create_mount_point(&target, true).context("create the mount point")?;
            mounts::attach(&mount, &target).context("mount the overlay")
        }
        LayerKind::ReadOnly => {
            let opened = open(&source, OFlag::O_PATH)?;
            let directory = is_directory(&opened)?;
            create_mount_point(&target, directory).context("create the mount point")?;
            mounts::bind(opened.as_fd(), &target, Attributes::READ_ONLY).context("bind it read-only")
        }
        LayerKind::Directory { mode } => create_directory(&target, *mode),
        LayerKind::Copy => {
            let mut from = File::from(open(&source, OFlag::O_RDONLY)?);
            let mut to = File::create(&target)?;
            match std::io::copy(&mut from, &mut to) {
                // A namespace that was mounted on the file meanwhile, which has nothing to be read.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                copied => _ = copied?,
            }
            Ok(to.set_permissions(Permissions::from_mode(from.metadata()?.permissions().mode()))?)
        }
        LayerKind::Link(to) => Ok(symlink(OsStr::from_bytes(to), &target)?),
    }
}

fn is_gone(source: &Path) -> bool {
    fs::symlink_metadata(source).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Lets a failed shadow be, unless it hides something: nothing else keeps that from being read.
fn forgive(shadow: &Shadow, why: anyhow::Error, warnings: &mut Vec<String>) -> Result<()> {
    let name = path(&shadow.path).display();
    if shadow.kind == ShadowKind::Absent {
        return Err(why.context(format!("hide /{name}")));
    }
    warnings.push(format!("/{name} is not shadowed: {why}"));
    Ok(())
}

/// Whether a layer's path may be part of a mount option as it is: a top-level directory, which only
/// the system's root can replace, with a plain name.
fn is_plain(at: &Path) -> bool {
    let name = at.as_os_str().as_bytes();
    name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// The shadow as the layer at `at` sees it, if it lies in there.
fn below(shadow: &Shadow, at: &Path) -> Option<Shadow> {
    let rest = path(&shadow.path).strip_prefix(at).ok()?;
    let named = !rest.as_os_str().is_empty();
    named.then(|| Shadow { path: rest.as_os_str().as_bytes().to_vec().into(), ..shadow.clone() })
}

/// Brings the paths of `--rw` and the working directory into the root, shortest path first, so
/// that a path inside another one lies above it.
fn share_host_paths(boot: &Boot, xattrs: Xattrs, host_root: bool) -> Result<()> {
    let mut shares: Vec<&Share> = boot.shares.iter().collect();
    shares.sort_by_key(|share| share.path.len());
    let attributes = if host_root { Attributes::NO_DEVICES } else { Attributes::NONE };
    for (number, share) in shares.into_iter().enumerate() {
        let shown = path(&share.path).display();
        let source = Path::new(HOST).join(inside(&share.path));
        let target = Path::new(ROOT).join(inside(&share.path));
        let opened = open(&source, OFlag::O_PATH).with_context(|| format!("open {shown}"))?;
        if is_directory(&opened)? != share.directory {
            bail!("{shown} has become something else meanwhile");
        }
        create_mount_point(&target, share.directory)
            .with_context(|| format!("create {shown} in the machine"))?;
        if share.writable {
            mounts::bind(opened.as_fd(), &target, attributes).with_context(|| format!("bind {shown}"))?;
        } else if share.directory {
            throw_away(number, &target, xattrs, |lower| {
                mounts::bind(opened.as_fd(), lower, attributes).with_context(|| format!("bind {shown}"))
            })?;
        }
    }
    Ok(())
}

/// Opens a path of the host's in which nothing is a symbolic link.
fn open(at: &Path, flags: OFlag) -> Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(nix::fcntl::AT_FDCWD, at, how).context("open it without following links")
}

fn is_directory(opened: &OwnedFd) -> nix::Result<bool> {
    let kind = SFlag::from_bits_truncate(fstat(opened)?.st_mode) & SFlag::S_IFMT;
    Ok(kind == SFlag::S_IFDIR)
}

fn inside(absolute: &[u8]) -> &Path {
    path(absolute).strip_prefix("/").unwrap_or(path(absolute))
}
