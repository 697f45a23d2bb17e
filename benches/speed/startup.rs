//! How long it takes to run nothing: `exec -- true`, from the start of the process to its end.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::debian::Debian;
use crate::measure::{self, Bench, Contender, Figures, seconds};
use crate::table::{Bar, Line, Measure};

const WHAT: &str = "exec -- true";

const GUEST: Measure = Measure {
    what: WHAT,
    unit: "ms",
    bar: Some(Bar::AtMost(200.0)),
    peers: &[("docker run --rm", Some(Bar::TimesPeer(0.5))), ("bwrap", None), ("Debian's linux.uml", None)],
};

const NAMESPACES: Measure = Measure {
    what: "exec --isolation namespaces -- true",
    unit: "ms",
    bar: None,
    peers: &[("docker run --rm", Some(Bar::TimesPeer(1.0 / 15.0))), ("bwrap", Some(Bar::TimesPeer(1.2)))],
};

/// Namespaces and mounts as our machine has them, as far as bwrap can: no overlays, no init of its
/// own to talk to, no network card.
const BWRAP: &str = "--unshare-all --new-session --die-with-parent --hostname x --uid 0 --gid 0 --ro-bind / / \
    --dev /dev --mqueue /dev/mqueue --tmpfs /dev/shm --proc /proc --tmpfs /tmp --tmpfs /run";

/// Measures it.
pub fn run(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let debian = Debian::new(&bench.options.debian, &bench.path(""));
    let image = provide_image(&bench.options.docker_image);
    if let Err(error) = &image {
        bench.miss("docker", error);
    }
    let mut contenders = vec![];
    let milliseconds = |command: &mut Command| Ok(1000.0 * seconds(|| measure::run(command))?);
    let place = bench.sekexe.work().to_owned();
    let mut ours = bench.sekexe.exec();
    ours.args(["--", "true"]);
    contenders.push(Contender::of("ours", WHAT, move || milliseconds(&mut ours)));
    if image.is_ok() {
        let mut docker = docker();
        docker.args(["run", "--rm", "--network=none", &bench.options.docker_image, "/bin/busybox", "true"]);
        contenders.push(Contender::new("docker run --rm", move || {
            let took = milliseconds(&mut docker)?;
            Ok(Figures::from([(WHAT, took), (NAMESPACES.what, took)]))
        }));
    }
    let mut bwrap = Command::new("bwrap");
    bwrap.args(BWRAP.split_ascii_whitespace()).arg("--bind").args([&place, &place]).arg("true");
    let mut namespaces = bench.sekexe.exec_in("namespaces");
    namespaces.args(["--network", "none", "--", "true"]);
    contenders.push(Contender::new("bwrap", move || {
        let took = milliseconds(&mut bwrap)?;
        Ok(Figures::from([(WHAT, took), (NAMESPACES.what, took)]))
    }));
    contenders.push(Contender::of("namespaces", NAMESPACES.what, move || milliseconds(&mut namespaces)));
    match debian {
        Ok(debian) => contenders.push(Contender::of("Debian's linux.uml", WHAT, move || {
            Ok(1000.0 * seconds(|| debian.run("true"))?)
        })),
        Err(error) => bench.miss("Debian's linux.uml", &error),
    }
    let medians = bench.take_turns("startup", contenders);
    Ok([GUEST.lines(&medians, "ours"), NAMESPACES.lines(&medians, "namespaces")].concat())
}

fn docker() -> Command {
    Command::new("docker")
}

/// Makes an image that holds a static busybox and nothing else, unless there is one of this name.
fn provide_image(name: &str) -> Result<()> {
    if measure::run(docker().args(["image", "inspect", name])).is_ok() {
        return Ok(());
    }
    let busybox = which::which("busybox").context("there is no busybox")?;
    let archive = tempfile::NamedTempFile::new()?;
    let (directory, file) = (busybox.parent().unwrap_or(Path::new("/")), "busybox");
    measure::run(
        Command::new("tar")
            .args(["--transform=s,^,bin/,", "--dereference", "-cf"])
            .arg(archive.path())
            .arg("-C")
            .args([directory, Path::new(file)]),
    )?;
    measure::run(docker().args(["import", "-", name]).stdin(Stdio::from(File::open(archive.path())?)))?;
    Ok(())
}
