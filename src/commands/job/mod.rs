//! A command and the machine it wants, from the typed options to the end.
//!
//! Whatever is wrong with a request shows before anything of it is done: [`Job::prepare`] resolves
//! paths, chooses the machine and gets what it needs. [`Prepared::start`] starts it, and the command
//! in it; [`Started::run`](run::Started::run) carries the command's bytes until it has ended, and ends
//! the machine; [`Concluded::conclude`] tells how it went.

mod conclude;
mod environment;
mod means;
mod names;
mod run;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use sekexe_init::protocol::WindowSize;

use super::{Environment, Messages, network};
use crate::cli::exec::MachineArgs;
use crate::cli::network::NetworkKind;
use crate::exposure::{self, Exposure, Wish};
use crate::machine::{Access, hidden};
use crate::net;
use crate::plan::{self, Choice, FallBack};
use crate::session::Input;
use crate::step::{Shell, Step, Work};
pub use conclude::Concluded;
pub use means::with_namespaces;
use means::{Chosen, Means};
pub use names::Additions;

/// A command and the machine it wants.
pub struct Job<'a> {
    /// The machine's options.
    pub machine: &'a MachineArgs,
    /// What to run.
    pub work: Work,
    /// How, if it is a script.
    pub shell: Shell,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// Where the result goes.
    pub result: Option<PathBuf>,
    /// Its standard input.
    pub input: Input,
    /// Size of its terminal, if it gets one.
    pub terminal: Option<WindowSize>,
    /// What it may change beside what the options say, if it can.
    pub also_writable: Vec<PathBuf>,
}

/// A command whose machine can be started.
pub struct Prepared<'a> {
    began: SystemTime,
    started: Instant,
    args: &'a MachineArgs,
    env: &'a Environment,
    timeout: Option<Duration>,
    result: Option<PathBuf>,
    input: Input,
    terminal: Option<WindowSize>,
    access: Access,
    exposure: Exposure,
    step: Step,
    request: plan::Request,
    reason: String,
    fall_back: Option<FallBack>,
    network: Option<net::Settings>,
    means: Means,
}

impl<'a> Job<'a> {
    /// Does everything that can fail before a machine is started.
    pub fn prepare(self, env: &'a Environment) -> Result<Prepared<'a>> {
        let (began, started) = (SystemTime::now(), Instant::now());
        let args = self.machine;
        let current_dir = std::env::current_dir()
            .context("the current directory cannot be found out; change to one that exists")?;
        let rootfs = args
            .rootfs
            .canonicalize()
            .with_context(|| format!("--rootfs {}: name a directory that exists", args.rootfs.display()))?;
        if !rootfs.is_dir() {
            bail!("--rootfs {}: it is not a directory; unpack it first", args.rootfs.display());
        }
        for path in &args.hide {
            if path.symlink_metadata().is_err() {
                bail!("--hide {}: it does not exist; check the name", path.display());
            }
        }
        let mut variables = environment::variables(args, env)?;
        let request = request(args, &rootfs);
        let capabilities = means::capabilities(&request, env)?;
        let Choice { machine, reason, fall_back } = plan::choose(&request, &capabilities)?;
        let messages = Messages::new(env);
        if let Some(fall_back) = &fall_back {
            messages.warning(fall_back);
        }
        if args.verbose {
            messages.note(format_args!("{}: {reason}", means::name_of(&machine)));
        }
        let network = network::prepare(&args.network, env, &machine, &mut variables)?;
        // Namespaces come to be while we work out what is to be in them.
        let chosen = Chosen::begin(machine, env, network.is_some());

        let hidden = hidden::existing(env.home.as_deref(), &current_dir, &args.hide, &args.show);
        let exposure = exposure::resolve(&Wish {
            rootfs: rootfs.clone(),
            current_dir: current_dir.clone(),
            writable: args.rw.clone(),
            also: self.also_writable,
            read_only: args.ro,
            hidden: hidden.clone(),
        })?;
        let step = Step {
            work: self.work,
            shell: self.shell,
            env: variables,
            workdir: args.workdir.clone().unwrap_or(current_dir).into(),
            user: args.user.clone(),
        };
        let access = Access {
            rootfs,
            writable: exposure.writable.clone(),
            readable: exposure.readable.clone(),
            hidden,
        };
        let means = Means::find(chosen, args, env, &request, &access, &capabilities.limits)?;
        Ok(Prepared {
            began,
            started,
            args,
            env,
            timeout: self.timeout,
            result: self.result,
            input: self.input,
            terminal: self.terminal,
            access,
            exposure,
            step,
            request,
            reason,
            fall_back,
            network,
            means,
        })
    }
}

fn request(args: &MachineArgs, rootfs: &Path) -> plan::Request {
    plan::Request {
        isolation: args.isolation.into(),
        memory: args.memory,
        cpus: args.cpus,
        untrusted: args.untrusted,
        kernel: args.kernel.is_some() || args.profile.is_some() || args.kernel_log.is_some(),
        needs: args.needs(),
        as_root: matches!(args.user.as_str(), "root" | "0" | "0:0" | "root:root"),
        host_network: args.network.network == NetworkKind::Host,
        host_rootfs: rootfs == Path::new("/"),
        guarded: args.ro || !(args.rw.is_empty() && args.hide.is_empty() && args.deny.is_empty()),
    }
}
