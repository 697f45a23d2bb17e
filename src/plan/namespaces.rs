//! Whether namespaces give what was asked for, and how they are set up if so. Pure.

use sekexe_init::protocol::Seal;

use super::needs::{Need, Of};
use super::{Capabilities, Refusal, Request};
use crate::detect::{Denial, Privilege, Support};

/// By what right the mounts of the machine are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foundation {
    /// A user namespace of its own.
    UserNamespace,
    /// The host's root, or that of the container we are in.
    HostRoot,
}

/// Whether a machine is to have something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It is of no use.
    No,
    /// It does without, if it has to.
    IfPossible,
    /// It does not start without.
    Yes,
}

/// What the machine gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// By what right its mounts are made.
    pub foundation: Foundation,
    /// Whether they are made in a user namespace, be it one that we were in before.
    pub in_user_namespace: bool,
    /// What keeps commands from undoing them.
    pub seal: Seal,
    /// Whether there may be a second user namespace, should the seal have to be that.
    pub can_seal: bool,
    /// Whether root inside is the host's root.
    pub host_root: bool,
    /// Whether users other than root exist inside: whoever exists here, or subordinate ids.
    pub many_users: bool,
    /// Whether the network is the host's.
    pub host_network: bool,
    /// Whether the root is made of overlays; otherwise it is read-only.
    pub overlays: bool,
    /// Whether it gets clocks of its own.
    pub time: bool,
    /// Host CPUs that it is kept on; empty for all.
    pub pin: Vec<usize>,
    /// Whether a control group of its own is to limit it.
    pub group: Wanted,
    /// Most memory of its processes in bytes.
    pub memory: Option<u64>,
    /// Size of everything writable that is thrown away, in bytes.
    pub writable: u64,
    /// Most tasks.
    pub max_tasks: u32,
}

impl Plan {
    /// The plan for a root of which a part is read-only, if it has to be.
    ///
    /// # Errors
    ///
    /// Where nothing would keep commands from making it writable.
    pub fn sealed(mut self, needed: bool) -> Result<Self, Refusal> {
        if !needed || self.seal != Seal::Open {
            return Ok(self);
        }
        if !self.can_seal {
            return Err(Refusal::new(
                "parts of the root could only be read-only, and commands could remount them",
                "try --isolation uml",
            ));
        }
        self.seal = Seal::UserNamespace;
        Ok(self)
    }
}

/// Something that was asked for and that namespaces do not give here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What, as a clause about namespaces.
    pub what: String,
    /// Why, and what would change it.
    pub why: Denial,
    /// Whether no setting of the host would change it, so that asking for it is asking for a guest.
    pub by_nature: bool,
}

impl Lack {
    pub(super) fn new(what: &str, why: &Denial) -> Self {
        Self { what: format!("namespaces lack {what} here"), why: why.clone(), by_nature: false }
    }

    fn by_nature(what: &str, reason: &str, remedy: &str) -> Self {
        Self { by_nature: true, ..Self::new(what, &denial(reason, remedy)) }
    }
}

fn denial(reason: &str, remedy: &str) -> Denial {
    Denial { reason: reason.into(), remedy: Some(remedy.into()) }
}

/// Everything that was asked for and that namespaces do not give here.
pub fn lacks(request: &Request, capabilities: &Capabilities) -> Vec<Lack> {
    let found = &capabilities.namespaces;
    if found.privilege == Privilege::None && !capabilities.is_host_root() {
        let denied = denial("they are denied", "see sekexe-ci detect");
        let why = found.user.denial().or(found.mount.denial()).unwrap_or(&denied);
        return vec![Lack { what: "namespaces are denied here".into(), why: why.clone(), by_nature: false }];
    }
    let required = [
        ("mounts of its own", &found.mount),
        ("processes of its own", &found.pid),
        ("a network of its own", &found.network),
        ("System V objects of its own", &found.ipc),
        ("a host name of its own", &found.uts),
        ("a /proc of its own", &found.proc),
    ];
    let denied = required.into_iter().filter_map(|(what, support)| Some(Lack::new(what, support.denial()?)));
    let mut lacks: Vec<Lack> = denied.collect();
    if let (Some(why), Some(_)) = (found.overlay.denial(), found.nested.denial()) {
        lacks.push(Lack::new("a root that is thrown away", why));
    }
    let as_root = Need { name: "users", of: Of::Users };
    let needs = request.needs.iter().chain((!request.as_root).then_some(&as_root));
    lacks.extend(needs.filter_map(|need| lacking(need, request, capabilities)));
    if let (Some(_), Support::No(why)) = (request.memory, &capabilities.control_group) {
        lacks.push(Lack::new("a limit of memory", why));
    }
    lacks
}

/// What a need lacks, if it lacks something.
fn lacking(need: &Need, request: &Request, capabilities: &Capabilities) -> Option<Lack> {
    let found = &capabilities.namespaces;
    let host_root = capabilities.is_host_root();
    let many_users = if host_root { capabilities.other_users } else { found.subordinate_ids.is_yes() };
    match need.of {
        Of::SystemRoot if host_root && many_users => None,
        // Another root may belong to the ids that are mapped.
        Of::SystemRoot if !request.host_rootfs && many_users => None,
        Of::SystemRoot => Some(Lack::by_nature(
            "root over the system's files",
            "in an ordinary user's namespaces these belong to nobody",
            "run as root",
        )),
        Of::Users if many_users => None,
        Of::Users => Some(Lack::new(
            "users other than root",
            found.subordinate_ids.denial().unwrap_or(&denial("", "")),
        )),
        Of::Mounts | Of::Network if !host_root || found.user.is_yes() => None,
        Of::Mounts | Of::Network => Some(Lack::new(
            need.name,
            &denial(
                "without user namespaces, commands of the host's root are deprived of that right",
                "allow user namespaces",
            ),
        )),
        Of::Kernel(_) => {
            Some(Lack::by_nature(need.name, "it is a matter of the host's kernel", "try --isolation uml"))
        }
    }
}

/// Whether all but the throw-away layer can be had.
pub fn is_read_only(capabilities: &Capabilities) -> bool {
    !capabilities.namespaces.overlay.is_yes()
}

/// How they are set up. Only where nothing lacks.
///
/// # Errors
///
/// Where a size that was asked for cannot be had.
pub fn plan(request: &Request, capabilities: &Capabilities) -> Result<Plan, Refusal> {
    let found = &capabilities.namespaces;
    let limits = &capabilities.limits;
    let foundation =
        if capabilities.is_host_root() { Foundation::HostRoot } else { Foundation::UserNamespace };
    // As the host's root the kernel's own files have to be covered, and have to stay so.
    let can_seal = found.user.is_yes() && (found.nested.is_yes() || foundation == Foundation::HostRoot);
    let seal = match foundation {
        Foundation::HostRoot if found.user.is_yes() => Seal::UserNamespace,
        Foundation::HostRoot => Seal::Capabilities,
        Foundation::UserNamespace if capabilities.root => Seal::UserNamespace,
        Foundation::UserNamespace => Seal::Open,
    };
    if seal == Seal::UserNamespace && !can_seal {
        return Err(Refusal::new(
            "root's namespaces need a second user namespace, which is denied here",
            "try --isolation uml",
        ));
    }
    super::check_memory(request.memory, limits)?;
    let pin = match request.cpus {
        None => Vec::new(),
        Some(0) => {
            return Err(Refusal::new("--cpus 0: a machine needs at least one CPU", "leave --cpus out"));
        }
        Some(n) if n as usize > limits.cpus.len() => {
            let most = limits.cpus.len();
            return Err(Refusal::new(
                format!("--cpus {n}: {most} may be used here"),
                format!("try --cpus {most}"),
            ));
        }
        Some(n) => limits.cpus[..n as usize].to_vec(),
    };
    Ok(Plan {
        foundation,
        in_user_namespace: foundation == Foundation::UserNamespace || capabilities.in_user_namespace,
        seal,
        can_seal,
        host_root: capabilities.root,
        host_network: request.host_network,
        many_users: match foundation {
            Foundation::HostRoot => capabilities.other_users,
            Foundation::UserNamespace => found.subordinate_ids.is_yes() && !capabilities.root,
        },
        overlays: found.overlay.is_yes(),
        time: found.time.is_yes(),
        pin,
        group: match (request.memory, capabilities.root) {
            (Some(_), _) => Wanted::Yes,
            // For others the limit of a user's processes does it, which root is exempt from.
            (None, true) => Wanted::IfPossible,
            (None, false) => Wanted::No,
        },
        memory: request.memory,
        // It is memory of the host's; a half leaves the other to programs.
        writable: request.memory.unwrap_or(limits.available_bytes) / 2,
        max_tasks: u32::try_from(limits.processes).unwrap_or(u32::MAX).min(super::MAX_TASKS),
    })
}
