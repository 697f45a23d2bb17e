//! The life of a machine's PID 1.
//!
//! It greets the host over the one byte channel it was given, is told how to set the machine up,
//! does so, and then starts commands and carries their bytes until the host says `Shutdown` or
//! goes away. It decides nothing: whatever can be decided on the host is decided there.
//!
//! It has no panic path and never returns: the kernel would die with "attempted to kill init".
//! What fails is sent to the host as a [`Failure`] and ends in a power-off.

use std::path::Path;
use std::thread::Builder;

use anyhow::{Context, Result, bail};
use nix::sys::stat::{Mode, umask};

use crate::channel::Channel;
use crate::control_groups::{self, Counters};
use crate::protocol::{Boot, Failure, Ground, Guest, Namespaces, Seal, ToGuest, ToHost};
use crate::serve::{self, Ways};
use crate::{devices, network, root, seal, seccomp, sys};

/// Lives as the PID 1 of a machine. Returns when the machine has ended; a guest's never does.
pub fn main() {
    // The host names the descriptor of the channel. A guest's kernel names nothing.
    let socket = std::env::args().nth(1).and_then(|number| number.parse().ok());
    let in_guest = socket.is_none();
    if in_guest && std::process::id() != 1 {
        eprintln!("sekexe-init: this program is the PID 1 of a sekexe-ci machine, not a command");
        std::process::exit(125);
    }
    // It may have been executed under the name of a link.
    let _ = nix::sys::prctl::set_name(c"sekexe-init");
    let opened = match socket {
        Some(fd) => sys::adopt(fd).map(Channel::over).context("take the channel over"),
        None => devices::guest::provide_initial().and_then(|()| Channel::open()),
    };
    if let Err(error) = opened.and_then(live) {
        eprintln!("sekexe-init: {error:#}");
    }
    if in_guest {
        sys::power_off();
    }
}

/// The life of the machine, in order.
fn live(mut channel: Channel) -> Result<()> {
    channel.send(&ToHost::Hello { release: sys::kernel_release()? })?;
    channel.flush_all()?;
    let boot = await_boot(&mut channel)?;
    let mut warnings = Vec::new();
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let done = match &boot.ground {
        Ground::Guest(guest) => set_up_guest(&boot, guest, &mut warnings),
        Ground::Namespaces(namespaces) => set_up_namespaces(&boot, namespaces, &mut warnings),
        Ground::Nothing => set_up_nothing(),
    };
    match done {
        Ok(ways) => {
            channel.send(&ToHost::Ready { warnings, uptime_us: sys::uptime_us() })?;
            serve::until_shutdown(&mut channel, boot.max_tasks, ways)
        }
        Err(error) => {
            channel.send(&ToHost::BootFailed(failure(&error)))?;
            channel.flush_all()?;
            Err(error)
        }
    }
}

fn await_boot(channel: &mut Channel) -> Result<Boot> {
    loop {
        match channel.next()? {
            Some(ToGuest::Boot(boot)) => return Ok(boot),
            Some(other) => bail!("the host began with {other:?} instead of Boot"),
            None => channel.wait_and_fill()?,
        }
    }
}

/// Sets a guest up as told. What has to be left out is a warning.
fn set_up_guest(boot: &Boot, guest: &Guest, warnings: &mut Vec<String>) -> Result<Ways> {
    root::guest::provide_scratch(boot)?;
    root::guest::load_modules(guest)?;
    root::guest::assemble(boot, guest, warnings)?;
    root::enter()?;
    devices::guest::mount_all()?;
    control_groups::set_up(boot.max_tasks, warnings);
    network::set_up(boot, true, warnings)?;
    if let Some(device) = &guest.swap {
        sys::swap_on(device).unwrap_or_else(|e| warnings.push(format!("no swap: {e}")));
    }
    if boot.deny_io_uring {
        std::fs::write("/proc/sys/kernel/io_uring_disabled", "2").context("close io_uring")?;
    }
    Ok(Ways {
        counters: Counters::Kernel,
        own_groups: true,
        supplementary_groups: true,
        write_back: true,
        alone: true,
        own_network: boot.network.is_some(),
    })
}

/// Sets namespaces up as told. What has to be left out is a warning.
fn set_up_namespaces(boot: &Boot, namespaces: &Namespaces, warnings: &mut Vec<String>) -> Result<Ways> {
    root::namespaces::take_place(boot)?;
    let overlays = root::namespaces::Overlays::of(boot, namespaces);
    let aside = || {
        overlays.make();
        seccomp::install(boot.deny_io_uring).context("install the filter of system calls")
    };
    std::thread::scope(|scope| {
        // A second user namespace is only for a process of one thread, which this one would not be
        // until some time after the other thread's end.
        let one_thread = namespaces.seal == Seal::UserNamespace;
        let thread = (!one_thread).then(|| Builder::new().spawn_scoped(scope, aside));
        network::enter(namespaces)?;
        root::namespaces::assemble(boot, namespaces, &overlays, warnings)?;
        devices::namespaces::mount_below(Path::new(root::ROOT), namespaces)?;
        match thread {
            Some(Ok(thread)) => thread.join().unwrap_or_else(|_| bail!("a thread of the set-up panicked")),
            _ => aside(),
        }
    })?;
    root::enter()?;
    let counted = match control_groups::show(namespaces.own_group) {
        Ok(()) => namespaces.own_group,
        Err(error) => {
            warnings.push(format!("no control groups: {}", error.desc()));
            false
        }
    };
    seal::apply(&namespaces.seal, namespaces.host_network)?;
    if namespaces.seal == Seal::UserNamespace {
        let groups = control_groups::hold();
        devices::namespaces::mount_owned(Path::new("/"), namespaces)?;
        if let Some(groups) = &groups {
            control_groups::show_again(groups).context("show the control groups")?;
        }
    }
    network::set_up(boot, !namespaces.host_network, warnings)?;
    Ok(Ways {
        counters: if counted { Counters::Group } else { Counters::None },
        own_groups: false,
        supplementary_groups: namespaces.many_users,
        write_back: false,
        alone: true,
        own_network: boot.network.is_some(),
    })
}

/// Nothing is set up; but what commands leave behind shall be ours to end.
fn set_up_nothing() -> Result<Ways> {
    nix::sys::prctl::set_child_subreaper(true).context("adopt orphans")?;
    Ok(Ways {
        counters: Counters::None,
        own_groups: false,
        supplementary_groups: false,
        write_back: false,
        alone: false,
        own_network: false,
    })
}

/// Puts an error chain into the shape in which it travels: outermost context, then the causes.
fn failure(error: &anyhow::Error) -> Failure {
    let mut causes = error.chain().map(ToString::to_string);
    let stage = causes.next().unwrap_or_default();
    let errno = error.chain().find_map(|e| e.downcast_ref::<nix::errno::Errno>());
    Failure { stage, reason: causes.collect::<Vec<_>>().join(": "), errno: errno.map_or(0, |e| *e as i32) }
}
