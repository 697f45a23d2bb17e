//! What a chosen machine takes: a guest's kernel and its files, or the layers of a root.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::cli::exec::MachineArgs;
use crate::commands::{Environment, Messages, kernel};
use crate::detect::{self, Limits, Support};
use crate::kernel::Kernel;
use crate::kernel::catalogue::Catalogue;
use crate::machine::namespaces::group;
use crate::machine::namespaces::layers::{self, Layers, Survey};
use crate::machine::run_dir::RunDir;
use crate::machine::{self, Access};
use crate::plan::{Capabilities, Isolation, MIN_MEMORY, Machine, Request, guest, namespaces};
use crate::session::hold_signals;
use crate::sys::mounts::{changed_mountinfo, mountinfo};

/// Everything that starting a machine takes.
pub enum Means {
    /// A guest.
    Guest(Guest),
    /// Namespaces, begun.
    Namespaces(Begun),
    /// Namespaces that could not be begun, and why.
    NoNamespaces(anyhow::Error),
    /// No isolation: a place for the script.
    None(RunDir),
    /// What was there has been used.
    Spent,
}

/// Everything that starting a guest takes.
pub struct Guest {
    /// Its kernel.
    pub kernel: Kernel,
    /// What it gets.
    pub plan: guest::Plan,
    /// Modules that its kernel needs for its root.
    pub modules: Vec<PathBuf>,
    /// Where its files are.
    pub run_dir: RunDir,
    /// Where its kernel's messages go.
    pub log: Option<File>,
}

/// What the host gives, as far as the request depends on it: to probe takes time.
pub fn capabilities(request: &Request, env: &Environment) -> Result<Capabilities> {
    let cache = env.cache_dir.as_ref().map(|dir| dir.join("sekexe-ci"));
    let namespaces = match request.isolation {
        Isolation::Auto | Isolation::Namespaces => {
            detect::namespaces::probe_cached(&env.path, cache.as_deref())
        }
        Isolation::Uml | Isolation::None => detect::Namespaces::not_asked(),
    };
    let control_group = match request.memory {
        Some(_) if request.isolation != Isolation::Uml => control_group(),
        _ => Support::no("it was not asked for", None),
    };
    with_namespaces(namespaces, control_group)
}

/// The same where it is known what may be done with namespaces and control groups.
pub fn with_namespaces(namespaces: detect::Namespaces, control_group: Support) -> Result<Capabilities> {
    let guest = match cfg!(target_arch = "x86_64") {
        true => Support::Yes,
        false => Support::no("User Mode Linux exists for x86-64 only", Some("use an x86-64 host")),
    };
    let root = Uid::effective().is_root();
    Ok(Capabilities {
        namespaces,
        root,
        // To nobody else does it matter, and to find out takes time.
        admin: root && detect::namespaces::has_admin_capability(),
        in_user_namespace: root && detect::namespaces::in_user_namespace(),
        other_users: root && detect::namespaces::has_other_users(),
        control_group,
        guest,
        limits: Limits::probe()?,
    })
}

/// Whether a control group can be had, found out by making one.
fn control_group() -> Support {
    let limits = group::Limits { memory: Some(MIN_MEMORY), tasks: 16 };
    match group::Group::create(limits) {
        Ok(_) => Support::Yes,
        Err(error) => Support::no(
            format!("no control group can be had: {error}"),
            Some("delegate one, as `systemd-run --user --scope -p Delegate=yes` does, or leave --memory out"),
        ),
    }
}

/// What a machine is called in messages.
pub fn name_of(machine: &Machine) -> &'static str {
    match machine {
        Machine::Namespaces(_) => "namespaces",
        Machine::Guest => "a guest kernel",
        Machine::None => "no isolation",
    }
}

/// A chosen machine, begun where that takes no more than the choice.
pub enum Chosen {
    /// A guest.
    Guest,
    /// Namespaces, if they could be begun.
    Namespaces(namespaces::Plan, Result<machine::namespaces::Starting>),
    /// No isolation.
    None,
}

impl Chosen {
    /// Starts the init where it can be. `with_card` says whether the machine gets a network card.
    pub fn begin(machine: Machine, env: &Environment, with_card: bool) -> Self {
        match machine {
            Machine::Guest => Self::Guest,
            Machine::None => Self::None,
            Machine::Namespaces(plan) => {
                let begun = machine::namespaces::start(&plan, &env.path, with_card);
                Self::Namespaces(plan, begun)
            }
        }
    }
}

impl Means {
    /// Gets what the machine takes. Builds a kernel where a guest has none yet.
    pub fn find(
        chosen: Chosen,
        args: &MachineArgs,
        env: &Environment,
        request: &Request,
        access: &Access,
        limits: &Limits,
    ) -> Result<Self> {
        Ok(match chosen {
            Chosen::Guest => Self::Guest(Guest::find(args, env, request, limits)?),
            Chosen::None => Self::None(run_dir(env)?),
            Chosen::Namespaces(_, Err(error)) => Self::NoNamespaces(error),
            Chosen::Namespaces(plan, Ok(starting)) => {
                let mountinfo = mountinfo().context("read /proc/self/mountinfo")?;
                let layers = survey(&plan, access, mountinfo)?;
                let plan = plan.sealed(layers.need_seal())?;
                match starting.machine() {
                    Ok(machine) => Self::Namespaces(Begun { plan, layers, machine }),
                    Err(error) => Self::NoNamespaces(error),
                }
            }
        })
    }
}

/// Namespaces that are begun, for the first time or once more.
pub struct Begun {
    /// What they are.
    pub plan: namespaces::Plan,
    /// What their root is made of.
    pub layers: Layers,
    /// Their init, which waits for its instructions.
    pub machine: machine::Machine,
}

impl Begun {
    /// The same once more if the host's mounts have changed since somebody looked at them: there may
    /// be no other reason why it failed.
    pub fn again(
        plan: namespaces::Plan,
        env: &Environment,
        access: &Access,
        with_card: bool,
    ) -> Result<Option<Self>> {
        let Some(mountinfo) = changed_mountinfo().context("read /proc/self/mountinfo")? else {
            return Ok(None);
        };
        let starting = machine::namespaces::start(&plan, &env.path, with_card)?;
        let layers = survey(&plan, access, &mountinfo)?;
        let plan = plan.sealed(layers.need_seal())?;
        Ok(Some(Self { plan, layers, machine: starting.machine()? }))
    }
}

fn survey(plan: &namespaces::Plan, access: &Access, mountinfo: &[u8]) -> Result<Layers> {
    layers::survey(&Survey {
        rootfs: &access.rootfs,
        mounts: &layers::mounts(mountinfo),
        hidden: &access.hidden,
        overlays: plan.overlays,
        in_user_namespace: plan.in_user_namespace,
    })
}

impl Guest {
    /// Gets what a guest takes.
    pub fn find(args: &MachineArgs, env: &Environment, request: &Request, limits: &Limits) -> Result<Self> {
        guest::check(request, limits)?;
        let log = args.kernel_log.as_ref().map(|path| {
            File::create(path).with_context(|| format!("--kernel-log {}: create it", path.display()))
        });
        let log = log.transpose()?;
        let options: Vec<&str> =
            request.needs.iter().flat_map(|need| need.kernel_options()).copied().collect();
        let catalogue = Catalogue::embedded()?;
        let profile = match (&args.profile, options.is_empty()) {
            (None, false) => catalogue.profile_with(&options),
            (asked, _) => asked.as_deref(),
        };
        let selector = args.kernel.clone().unwrap_or_else(|| "auto".into());
        // After everything that can be refused at once: this may take minutes.
        let kernel = kernel::resolve(&selector, profile, env)?;
        let run_dir = run_dir(env)?;
        let plan = guest::plan(request, limits, &kernel.features, run_dir.disk_free(), std::process::id())?;
        if args.verbose {
            let messages = Messages::new(env);
            messages.note(format_args!("guest kernel {} ({})", kernel.release, kernel.path.display()));
        }
        Ok(Self { modules: modules(&kernel)?, kernel, plan, run_dir, log })
    }
}

/// From here on there is something to clean up, which a signal must not prevent.
fn run_dir(env: &Environment) -> Result<RunDir> {
    hold_signals()?;
    RunDir::create(&env.temporary_places)
}

/// Modules that a distribution's kernel needs for the guest's root.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    if kernel.features.overlay {
        return Ok(Vec::new());
    }
    let places = ["/usr/lib/uml/modules", "/lib/modules", "/usr/lib/modules"];
    let name = Path::new("kernel/fs/overlayfs/overlay.ko");
    let mut files = places.iter().map(|place| Path::new(place).join(&kernel.release).join(name));
    match files.find(|file| file.exists()) {
        Some(file) => Ok(vec![file]),
        None => bail!(
            "{}: this kernel has no overlay file system, neither built in nor as a module; try --kernel auto",
            kernel.path.display()
        ),
    }
}
