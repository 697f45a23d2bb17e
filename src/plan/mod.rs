//! From what was asked and what the host gives to a machine, or a refusal. Pure: data in, data out.
//!
//! A wish that cannot be met is refused with the reason and something to try; nothing is silently
//! made smaller, and an isolation that was asked for by name is never replaced by another one.

pub mod guest;
pub mod namespaces;
pub mod needs;

use std::fmt;

use serde::Serialize;

use crate::detect::{Denial, Limits, Namespaces, Support};
use namespaces::Lack;
use needs::Need;

/// Most tasks in a machine where the host's limits allow it.
const MAX_TASKS: u32 = 16_384;
/// Smallest guest that boots and runs a shell, and smallest limit of memory.
pub const MIN_MEMORY: u64 = 64 * MIB;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Which isolation was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// The fastest that gives what was asked for.
    #[default]
    Auto,
    /// Namespaces of the host's kernel.
    Namespaces,
    /// A guest kernel.
    Uml,
    /// None.
    None,
}

/// What the user asked for; `None` where they did not say.
#[derive(Debug, Clone)]
pub struct Request {
    /// The isolation.
    pub isolation: Isolation,
    /// Memory of the machine in bytes.
    pub memory: Option<u64>,
    /// CPUs.
    pub cpus: Option<u32>,
    /// Whether programs are not trusted to stay out of the kernel that they run on.
    pub untrusted: bool,
    /// Whether a guest kernel was named.
    pub kernel: bool,
    /// What the step needs beyond what every machine gives.
    pub needs: Vec<Need>,
    /// Whether the command runs as root.
    pub as_root: bool,
    /// Whether the machine's root is the host's.
    pub host_rootfs: bool,
    /// Whether its network is the host's.
    pub host_network: bool,
    /// Whether paths are to be hidden or protected, or system calls closed.
    pub guarded: bool,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            isolation: Isolation::Auto,
            memory: None,
            cpus: None,
            untrusted: false,
            kernel: false,
            needs: Vec::new(),
            as_root: true,
            host_rootfs: true,
            host_network: false,
            guarded: false,
        }
    }
}

/// What the host gives, as far as it decides about machines.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// What may be done with namespaces.
    pub namespaces: Namespaces,
    /// Whether we are root, of the host or of a container.
    pub root: bool,
    /// Whether we have `CAP_SYS_ADMIN` where we are.
    pub admin: bool,
    /// Whether we are in a user namespace already, where the mounts that we found are locked.
    pub in_user_namespace: bool,
    /// Whether users other than us exist where we are, and their groups can be set.
    pub other_users: bool,
    /// Whether a control group of our own can be had, to limit a machine.
    pub control_group: Support,
    /// Whether guest kernels run on this processor.
    pub guest: Support,
    /// Upper bounds that hold for everything.
    pub limits: Limits,
}

impl Capabilities {
    /// Whether mounts can be made without a user namespace.
    fn is_host_root(&self) -> bool {
        self.root && self.admin
    }
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// Namespaces, set up like this.
    Namespaces(namespaces::Plan),
    /// A guest. What it gets depends on its kernel, too ([`guest::plan`]).
    Guest,
    /// No isolation.
    None,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The machine.
    pub machine: Machine,
    /// Why, in a sentence without its full stop.
    pub reason: String,
    /// What was missing for a faster machine, where it would have been chosen otherwise.
    pub fall_back: Option<FallBack>,
}

/// A machine in another one's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FallBack {
    /// What was missing.
    pub missing: String,
    /// What would bring it.
    pub remedy: Option<String>,
}

impl fmt::Display for FallBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no namespaces here ({}), so a guest kernel is used: system calls are slower there",
            self.missing
        )?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "; to avoid it: {remedy}"))
    }
}

/// Why a request cannot be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    what: String,
    remedy: String,
}

impl Refusal {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }

    fn denied(what: &str, why: &Denial, otherwise: &str) -> Self {
        let remedy = why.remedy.clone().filter(|remedy| !remedy.is_empty());
        Self::new(format!("{what}: {}", why.reason), remedy.unwrap_or_else(|| otherwise.to_owned()))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

impl std::error::Error for Refusal {}

/// Chooses a machine.
///
/// # Errors
///
/// Where an isolation was named that does not give what was asked for, or none does.
pub fn choose(request: &Request, capabilities: &Capabilities) -> Result<Choice, Refusal> {
    match request.isolation {
        Isolation::None => choose_none(request),
        Isolation::Uml => {
            let guest = |_| chosen(Machine::Guest, "--isolation uml asks for it");
            guest_is_possible(capabilities, "--isolation uml").map(guest)
        }
        Isolation::Namespaces => choose_namespaces("--isolation namespaces", request, capabilities),
        // A guest's kernel has a network of its own.
        Isolation::Auto if request.host_network => choose_namespaces("--network host", request, capabilities),
        Isolation::Auto => choose_freely(request, capabilities),
    }
}

fn chosen(machine: Machine, reason: impl Into<String>) -> Choice {
    Choice { machine, reason: reason.into(), fall_back: None }
}

/// What asks for a guest whatever the host gives, if something does.
fn wants_guest(request: &Request) -> Option<String> {
    if request.kernel {
        return Some("--kernel asks for a guest kernel".into());
    }
    if request.untrusted {
        return Some("--untrusted asks for a kernel that is not the host's".into());
    }
    let need = request.needs.iter().find(|need| !need.kernel_options().is_empty())?;
    Some(format!("--need {need} asks for a kernel that is known to have it"))
}

fn choose_freely(request: &Request, capabilities: &Capabilities) -> Result<Choice, Refusal> {
    if let Some(reason) = wants_guest(request) {
        return guest_is_possible(capabilities, &reason).map(|()| chosen(Machine::Guest, reason));
    }
    let mut lacks = namespaces::lacks(request, capabilities);
    if let (true, Some(why)) = (lacks.is_empty(), capabilities.namespaces.overlay.denial()) {
        // A guest has a root that can be written everywhere, if it can be had.
        if capabilities.guest.is_yes() {
            lacks.push(Lack::new("a root that is thrown away", why));
        }
    }
    if lacks.is_empty() {
        let plan = namespaces::plan(request, capabilities)?;
        return Ok(chosen(Machine::Namespaces(plan), "namespaces give all that was asked for"));
    }
    let lack = &lacks[0];
    guest_is_possible(capabilities, &format!("{} ({})", lack.what, lack.why.reason))?;
    let reason = format!("{}: {}", lack.what, lack.why.reason);
    Ok(Choice {
        machine: Machine::Guest,
        fall_back: (!lack.by_nature).then(|| FallBack {
            missing: lack.why.reason.clone(),
            remedy: lack.why.remedy.clone().filter(|remedy| !remedy.is_empty()),
        }),
        reason,
    })
}

fn choose_namespaces(asked: &str, request: &Request, capabilities: &Capabilities) -> Result<Choice, Refusal> {
    if let Some(reason) = wants_guest(request) {
        return Err(Refusal::new(format!("{asked}: {reason}"), "leave one of them out"));
    }
    if let Some(lack) = namespaces::lacks(request, capabilities).first() {
        let what = format!("{asked}: {}", lack.what);
        return Err(Refusal::denied(&what, &lack.why, "try --isolation auto"));
    }
    let reason = match namespaces::is_read_only(capabilities) {
        true => {
            format!("{asked} asks for them; overlays are refused, so most of the root is read-only")
        }
        false => format!("{asked} asks for them"),
    };
    Ok(chosen(Machine::Namespaces(namespaces::plan(request, capabilities)?), reason))
}

fn choose_none(request: &Request) -> Result<Choice, Refusal> {
    const ASKED: &str = "--isolation none";
    let contradicts = |what: &str| Err(Refusal::new(format!("{ASKED}: {what}"), "leave one of them out"));
    if let Some(reason) = wants_guest(request) {
        return contradicts(&reason);
    }
    if let Some(need) = request.needs.first() {
        return contradicts(&format!("--need {need} asks for a machine"));
    }
    if request.memory.is_some() || request.cpus.is_some() {
        return contradicts("--memory and --cpus are limits of a machine");
    }
    if !request.host_rootfs {
        return contradicts("--rootfs asks for another root");
    }
    if request.guarded {
        return contradicts("--ro, --rw, --hide and --deny are kept by a machine");
    }
    if !request.as_root {
        return contradicts("--user chooses a user of a machine");
    }
    Ok(chosen(Machine::None, "--isolation none asks for it"))
}

fn guest_is_possible(capabilities: &Capabilities, why_asked: &str) -> Result<(), Refusal> {
    match &capabilities.guest {
        Support::Yes => Ok(()),
        Support::No(why) => Err(Refusal::denied(why_asked, why, "run it on another host")),
    }
}

fn check_memory(asked: Option<u64>, limits: &Limits) -> Result<(), Refusal> {
    let Some(asked) = asked else { return Ok(()) };
    if asked < MIN_MEMORY {
        return Err(Refusal::new(
            format!("--memory {}: a machine needs at least {}", size(asked), size(MIN_MEMORY)),
            "try --memory 1G",
        ));
    }
    if asked > limits.memory_bytes {
        return Err(Refusal::new(
            format!("--memory {}: this host has {}", size(asked), size(limits.memory_bytes)),
            format!("try --memory {}", size(limits.memory_bytes / 2)),
        ));
    }
    Ok(())
}

/// A size for people, exact where it is a whole number of units.
pub fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        b if b >= GIB && b % GIB == 0 => (GIB, "G"),
        b if b >= MIB => (MIB, "M"),
        b if b >= 1 << 10 => (1 << 10, "K"),
        _ => (1, " bytes"),
    };
    format!("{}{name}", bytes / unit)
}

#[cfg(test)]
mod tests;
