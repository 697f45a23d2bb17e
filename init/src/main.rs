//! PID 1 of a machine.
//!
//! It greets the host over the one byte channel it was given, is told how to set the machine up,
//! does so, and then starts commands and carries their bytes until the host says `Shutdown` or
//! goes away. It decides nothing: whatever can be decided on the host is decided there.
//!
//! It has no panic path and never returns: the kernel would die with "attempted to kill init".
//! What fails is sent to the host as a [`Failure`] and ends in a power-off.

mod channel;
mod control_groups;
mod devices;
mod network;
mod root;
mod serve;
mod session;
mod shadows;
mod spawn;
mod sys;
mod users;

use anyhow::{Context, Result, bail};
use channel::Channel;
use sekexe_init::protocol::{Boot, Failure, ToGuest, ToHost};

fn main() {
    if std::process::id() == 1 {
        if let Err(error) = live() {
            eprintln!("sekexe-init: {error:#}");
        }
        sys::power_off();
    }
    eprintln!("sekexe-init: this program is the PID 1 of a sekexe-ci machine, not a command");
    std::process::exit(125);
}

/// The life of the machine, in order.
fn live() -> Result<()> {
    devices::provide_initial()?;
    let mut channel = Channel::open()?;
    channel.send(&ToHost::Hello { release: sys::kernel_release()? })?;
    channel.flush_all()?;
    let boot = await_boot(&mut channel)?;

    match set_up(&boot) {
        Ok(warnings) => channel.send(&ToHost::Ready { warnings, uptime_us: sys::uptime_us() })?,
        Err(error) => {
            channel.send(&ToHost::BootFailed(failure(&error)))?;
            channel.flush_all()?;
            return Err(error);
        }
    }
    serve::until_shutdown(&mut channel, &boot)
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

/// Sets the machine up as told. Returns what had to be left out.
fn set_up(boot: &Boot) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    root::provide_scratch(boot)?;
    root::load_modules(boot)?;
    root::assemble(boot, &mut warnings)?;
    root::enter()?;
    devices::mount_all()?;
    control_groups::set_up(boot.max_tasks, &mut warnings);
    network::name_host(&boot.hostname).context("set the host name")?;
    network::raise_loopback().unwrap_or_else(|e| warnings.push(format!("no loopback: {e:#}")));
    if let Some(device) = &boot.swap {
        sys::swap_on(device).unwrap_or_else(|e| warnings.push(format!("no swap: {e}")));
    }
    Ok(warnings)
}

/// Puts an error chain into the shape in which it travels: outermost context, then the causes.
fn failure(error: &anyhow::Error) -> Failure {
    let mut causes = error.chain().map(ToString::to_string);
    let stage = causes.next().unwrap_or_default();
    let errno = error.chain().find_map(|e| e.downcast_ref::<nix::errno::Errno>());
    Failure { stage, reason: causes.collect::<Vec<_>>().join(": "), errno: errno.map_or(0, |e| *e as i32) }
}
