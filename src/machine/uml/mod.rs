//! The User Mode Linux guest: a kernel that runs as an ordinary process of the host user.

mod arguments;
mod confine;

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::unistd::Pid;
use sekexe_init::protocol::LINE_BUFFER;

use super::card::{MTU, Source};
use super::run_dir::RunDir;
use super::{Access, Confinement, INIT, Kind, Machine, SOCKET_BUFFER, channel};
use crate::kernel::Kernel;
use crate::net::{Card, CardKind};
use crate::plan::guest::Plan;
use crate::sys::{self, Restrictions};
use arguments::{CardDriver, Carrier};

/// Mount points in the directory that the guest's kernel starts in; the init knows the names.
const MOUNT_POINTS: [&str; 2] = ["dev", "scratch"];

/// Name of the swap file in the run directory.
const SWAP: &str = "swap";

/// Device under which the guest sees its swap file.
pub const SWAP_DEVICE: &str = "/dev/ubda";

/// Starts the kernel. It boots while the caller prepares the rest.
///
/// Must be called by the main thread (see [`sys::start_restricted`]).
pub fn start(
    kernel: &Kernel,
    plan: &Plan,
    access: &Access,
    with_card: bool,
    run_dir: RunDir,
) -> Result<Machine> {
    raise_open_files();
    // The kernel's own files lie beside the guest's first ones: some file systems take milliseconds
    // to remove a directory.
    let boot = run_dir.path();
    prepare_boot_directory(boot).context("write the guest's first files to the temporary directory")?;
    let swap = run_dir.path().join(SWAP);
    if plan.swap > 0 {
        create_swap_file(&swap, plan.swap).context("create the swap file")?;
    }

    let (ours, theirs) = channel().context("create the channel to the guest")?;
    let driver = if kernel.features.virtio_net { CardDriver::Virtio } else { CardDriver::Vector };
    let card = with_card.then(|| card(driver)).transpose().context("create the guest's network card")?;
    let (card, card_end) = card.unzip();
    let (console, console_end) = super::console().context("create the console's pipe")?;

    let ruleset = confine::ruleset(access, &kernel.path, run_dir.path())?;
    let carrier = if kernel.features.hostfd { Carrier::HostFd } else { Carrier::SerialLine };
    let mut command = Command::new(&kernel.path);
    command
        .args(arguments::kernel_arguments(&arguments::Launch {
            plan,
            boot,
            swap: (plan.swap > 0).then_some(swap.as_path()),
            carrier,
            channel: theirs.as_raw_fd(),
            card: card_end.as_ref().map(|end| (driver, end.as_raw_fd())),
            smp: kernel.features.smp,
            has_seccomp: kernel.features.seccomp,
        }))
        .env_clear()
        .env("HOME", run_dir.path())
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(console_end.try_clone().context("create the console's pipe")?)
        .stderr(console_end);
    if !kernel.features.virtio_net {
        // Where its memory is a file; one that others can share has no name, unless this names a place.
        command.env("TMPDIR", run_dir.path());
    }
    let writable: Vec<PathBuf> = access.writable.iter().cloned().chain([run_dir.path().to_owned()]).collect();
    let keep: Vec<BorrowedFd<'_>> =
        [Some(&theirs), card_end.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect();
    let restrictions = Restrictions {
        keep: &keep,
        ruleset: ruleset.fd.as_ref().map(AsFd::as_fd),
        cpus: &plan.pin,
        writable: &writable,
    };
    let started = sys::start_restricted(&mut command, &restrictions)
        .with_context(|| format!("cannot start the guest kernel {}", kernel.path.display()))?;
    let mut confinement = Confinement {
        landlock_abi: ruleset.abi,
        no_new_privs: true,
        read_only_mounts: started.sealed,
        ..Confinement::default()
    };
    confinement.admit(access);
    Ok(Machine {
        kind: Kind::Uml,
        channel: ours,
        console,
        pidfd: sys::open_pidfd(&started.child).context("watch the machine's process")?,
        card,
        confinement,
        line_buffer: (carrier == Carrier::SerialLine).then_some(LINE_BUFFER),
        pid: Pid::from_raw(started.child.id() as i32),
        ended: None,
        mounts_may_linger: false,
        mounts: None,
        group: None,
        run_dir: Some(run_dir),
    })
}

/// The guest's kernel holds a descriptor for each of its processes and open files.
fn raise_open_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn prepare_boot_directory(boot: &Path) -> std::io::Result<()> {
    for name in MOUNT_POINTS {
        fs::create_dir(boot.join(name))?;
    }
    let mut init = File::create(boot.join("init"))?;
    init.write_all(INIT)?;
    init.set_permissions(Permissions::from_mode(0o755))
}

/// A sparse file with the signature that `mkswap` would write (`union swap_header` in
/// `include/linux/swap.h`): version 1, the last page's number, and the magic at the page's end.
fn create_swap_file(at: &Path, bytes: u64) -> std::io::Result<()> {
    const PAGE: u64 = 4096;
    let last_page = u32::try_from(bytes / PAGE - 1).unwrap_or(u32::MAX);
    let mut header = vec![0; PAGE as usize];
    header[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    header[1028..1032].copy_from_slice(&last_page.to_le_bytes());
    header[PAGE as usize - 10..].copy_from_slice(b"SWAPSPACE2");
    let mut file = File::create_new(at)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(&header)?;
    file.set_len(bytes)
}

/// The two ends of a network card.
fn card(driver: CardDriver) -> nix::Result<(Source, OwnedFd)> {
    // The name is the one that the guest's kernel gives it.
    let (carries, kind, name) = match driver {
        CardDriver::Virtio => (SockType::Stream, CardKind::Memory, "eth0"),
        CardDriver::Vector => (SockType::SeqPacket, CardKind::Socket, "vec0"),
    };
    let (ours, theirs) = socketpair(AddressFamily::Unix, carries, None, SockFlag::SOCK_CLOEXEC)?;
    for end in [&ours, &theirs] {
        let _ = setsockopt(end, sockopt::SndBuf, &SOCKET_BUFFER);
    }
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let card = Card { fd: ours, kind, offload: kind == CardKind::Memory, mtu: MTU, outside: None };
    Ok((Source::Here(card, name), theirs))
}
