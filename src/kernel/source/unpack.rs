//! From a source to a tree that can be built in.
//!
//! A kernel source has 1.6 GB, of which an ARCH=um build reads a quarter. The
//! rest is passed over: half of the files, three quarters of the bytes, and a
//! third of the time. What stays of every directory are its Kconfig and Make
//! files, because Kconfig reads all of them whatever is built.

use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::super::catalogue::hex;
use super::super::process::Log;
use super::Place;

/// Directories of which no C, header or assembler file is needed: hardware that
/// a UML guest never has, and other architectures (UML itself is `um` on `x86`).
const NO_CODE: &[&str] = &[
    "arch/alpha",
    "arch/arc",
    "arch/arm",
    "arch/arm64",
    "arch/csky",
    "arch/hexagon",
    "arch/ia64",
    "arch/loongarch",
    "arch/m68k",
    "arch/microblaze",
    "arch/mips",
    "arch/nds32",
    "arch/nios2",
    "arch/openrisc",
    "arch/parisc",
    "arch/powerpc",
    "arch/riscv",
    "arch/s390",
    "arch/sh",
    "arch/sparc",
    "arch/xtensa",
    "drivers/accel",
    "drivers/clk",
    "drivers/gpu",
    "drivers/iio",
    "drivers/infiniband",
    "drivers/media",
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/pinctrl",
    "drivers/scsi",
    "drivers/staging",
    "drivers/usb",
    "drivers/video",
    "sound",
];
const CODE: &[&str] = &["c", "h", "S", "dts", "dtsi"];

/// Nothing but prose.
const NO_TEXT: &[&str] = &["Documentation"];
const TEXT: &[&str] = &["rst", "txt", "yaml", "svg"];

/// Programs for other purposes.
const NOTHING: &[&str] = &["tools/perf", "tools/testing"];

/// Puts a source into the empty directory `to`. Ends a second after its owner
/// was killed at the latest: see [`super::super::process`].
pub(crate) fn unpack(place: &Place, to: &Path, log: &mut Log) -> Result<()> {
    match place {
        Place::Tarball(tarball) => {
            let mut tar = Command::new("tar");
            tar.arg("-x").arg("-C").arg(to).args(["--strip-components=1", "--no-same-owner"]);
            // Several threads where this xz can: the files of a release can be
            // unpacked in parts.
            if is_xz(tarball)? {
                tar.arg("--use-compress-program=xz -T0");
            }
            // Output now and then, so that a killed owner is noticed.
            tar.arg("--checkpoint=1000");
            for pattern in tar_patterns() {
                tar.arg(format!("--exclude={pattern}"));
            }
            tar.arg("-f").arg(tarball);
            log.run(&mut tar, &mut |_| {}).with_context(|| {
                format!("cannot unpack {}: is it a whole tarball of a kernel source?", tarball.display())
            })
        }
        Place::Tree(tree) => walk(tree, &mut |relative, metadata| {
            let (from, to) = (tree.join(relative), to.join(relative));
            let name = || format!("cannot copy {} to {}", from.display(), to.display());
            if metadata.is_dir() {
                fs::create_dir_all(&to).with_context(name)
            } else if metadata.is_symlink() {
                let target = fs::read_link(&from).with_context(name)?;
                std::os::unix::fs::symlink(target, &to).with_context(name)
            } else {
                fs::copy(&from, &to).map(drop).with_context(name)
            }
        }),
    }
}

/// A digest over names, sizes and times of a tree: it changes with every edit,
/// and costs no reading of files.
pub(crate) fn digest_of_tree(tree: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    walk(tree, &mut |relative, metadata| {
        if metadata.is_file() {
            hash.update(relative.as_os_str().as_bytes());
            for number in
                [metadata.len(), metadata.mtime().cast_unsigned(), metadata.mtime_nsec().cast_unsigned()]
            {
                hash.update(number.to_le_bytes());
            }
        }
        Ok(())
    })?;
    Ok(hex(&hash.finalize()))
}

/// Visits what is needed of a tree, directories before their content, in a
/// stable order.
fn walk(tree: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<()>) -> Result<()> {
    fn enter(
        tree: &Path,
        relative: &Path,
        visit: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<()>,
    ) -> Result<()> {
        let dir = tree.join(relative);
        let name = || format!("cannot read {}", dir.display());
        let mut entries =
            fs::read_dir(&dir).with_context(name)?.collect::<Result<Vec<_>, _>>().with_context(name)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let relative = relative.join(entry.file_name());
            if !is_needed(&relative) {
                continue;
            }
            let metadata = entry.metadata().with_context(name)?;
            visit(&relative, &metadata)?;
            if metadata.is_dir() {
                enter(tree, &relative, visit)?;
            }
        }
        Ok(())
    }
    enter(tree, Path::new(""), visit)
}

fn is_needed(relative: &Path) -> bool {
    let below = |dirs: &[&str]| dirs.iter().any(|dir| relative.starts_with(dir));
    let extension = relative.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    // Left over from a build in that tree, or its version control.
    if relative == Path::new(".git") || ["o", "a", "ko", "cmd"].contains(&extension) {
        return false;
    }
    !(below(NOTHING)
        || below(NO_CODE) && CODE.contains(&extension)
        || below(NO_TEXT) && TEXT.contains(&extension))
}

/// The same as [`is_needed`] in the terms of tar, whose `*` matches slashes too.
fn tar_patterns() -> Vec<String> {
    let mut patterns: Vec<_> = NOTHING.iter().map(|dir| format!("*/{dir}/*")).collect();
    for (dirs, extensions) in [(NO_CODE, CODE), (NO_TEXT, TEXT)] {
        for dir in dirs {
            patterns.extend(extensions.iter().map(|extension| format!("*/{dir}/*.{extension}")));
        }
    }
    patterns
}

fn is_xz(path: &Path) -> Result<bool> {
    let mut magic = [0; 6];
    let mut file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(file.read_exact(&mut magic).is_ok() && magic == *b"\xfd7zXZ\0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kconfig_and_um_read_is_needed() {
        for needed in [
            "Makefile",
            "arch/um/kernel/um_arch.c",
            "arch/x86/um/signal.c",
            "arch/arm/crypto/Kconfig",
            "Documentation/Kconfig",
            "drivers/gpu/drm/Kconfig",
            "include/dt-bindings/leds/common.h",
            "drivers/net/veth.c",
            "tools/include/linux/types.h",
        ] {
            assert!(is_needed(Path::new(needed)), "{needed}");
        }
        for other in [
            ".git",
            "arch/arm/kernel/head.S",
            "drivers/gpu/drm/drm_drv.c",
            "sound/core/pcm.c",
            "Documentation/index.rst",
            "tools/perf/perf.c",
            "kernel/fork.o",
            "kernel/.fork.o.cmd",
        ] {
            assert!(!is_needed(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn a_tree_is_copied_without_what_is_not_needed_and_its_digest_follows_edits() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sound/core")).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("Makefile"), "VERSION = 7\n").unwrap();
        fs::write(from.join("sound/core/pcm.c"), "").unwrap();
        fs::write(from.join("sound/core/Kconfig"), "").unwrap();
        std::os::unix::fs::symlink("Makefile", from.join("link")).unwrap();
        let mut log = Log::create(&dir.path().join("log")).unwrap();
        unpack(&Place::Tree(from.clone()), &to, &mut log).unwrap();
        assert!(to.join("sound/core/Kconfig").exists());
        assert!(!to.join("sound/core/pcm.c").exists());
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("Makefile"));

        let before = digest_of_tree(&from).unwrap();
        assert_eq!(before, digest_of_tree(&from).unwrap());
        fs::write(from.join("Makefile"), "VERSION = 7\n\n").unwrap();
        assert_ne!(before, digest_of_tree(&from).unwrap());
    }
}
