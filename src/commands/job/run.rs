//! From a prepared command to a concluded one: the machine's life.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use nix::unistd::{Gid, Uid};
use sekexe_init::protocol::{self, Boot, ByteBuf, Ground, Outcome, SessionId, Shadow, Spawn};

use super::means::{Begun, Guest, Means};
use super::names::{self, HOSTNAME};
use super::{Concluded, Prepared};
use crate::cli::network::NetworkKind;
use crate::commands::{Messages, network};
use crate::detect::Limits;
use crate::machine::card::Source;
use crate::machine::namespaces;
use crate::machine::run_dir::RunDir;
use crate::machine::{Kind, Machine, none, shadows, uml};
use crate::net::Network;
use crate::plan::Isolation;
use crate::report::MachineFacts;
use crate::session::{
    Connection, Console, Finished, Input, Output, Signals, SizeOf, hold_signals, is_interruption,
    release_signals,
};
use crate::step::SCRIPT_DIR;

/// How often namespaces are begun where the host's mounts change all the time.
const ATTEMPTS: u32 = 5;

/// A machine that has come up, or will, and the command in it.
struct Up {
    connection: Connection,
    session: SessionId,
    facts: MachineFacts,
    /// The guest kernel's file.
    kernel: Option<PathBuf>,
    warnings: Vec<String>,
}

/// A command on its way in its machine.
pub struct Started<'a> {
    prepared: Prepared<'a>,
    up: Up,
}

impl Started<'_> {
    /// Carries the command's bytes, its standard output and standard error to `outputs`, until it has
    /// ended, and ends the machine. In between `ended` is called.
    pub fn run(self, outputs: [Output; 2], ended: impl FnOnce()) -> Result<Concluded> {
        let Self { mut prepared, mut up } = self;
        let input = std::mem::replace(&mut prepared.input, Input::Null);
        up.connection.connect(up.session, input, outputs, prepared.timeout);
        let deadline = Instant::now() + prepared.args.boot_timeout;
        let finished = match up.connection.wait_until_ready(deadline) {
            Ok(()) => {
                if up.connection.machine().kind == Kind::Uml {
                    crate::sys::release_program();
                }
                up.connection.wait(up.session)?
            }
            Err(failure) => up.connection.give_up(up.session, &failure)?,
        };
        ended();
        prepared.conclude_with(up, finished)
    }
}

impl<'a> Prepared<'a> {
    /// Starts the machine, or the one that takes its place, and tells it of the command.
    pub fn start(mut self, window_size: Option<SizeOf>) -> Result<Started<'a>> {
        hold_signals()?;
        let means = std::mem::replace(&mut self.means, Means::Spent);
        let up = match means {
            Means::Guest(guest) => self.boot_guest(guest, window_size)?,
            Means::None(run_dir) => self.start_nothing(run_dir, window_size)?,
            Means::Namespaces(begun) => self.start_namespaces(begun, window_size)?,
            Means::NoNamespaces(error) => self.fall_back(error, window_size)?,
            Means::Spent => bail!("a command is run only once"),
        };
        Ok(Started { prepared: self, up })
    }

    fn conclude_with(self, up: Up, finished: Finished) -> Result<Concluded> {
        let Up { mut connection, facts, kernel, mut warnings, .. } = up;
        let confinement = connection.machine().confinement.clone();
        let mut notes = self.exposure.notes.clone();
        notes.append(&mut warnings);
        notes.extend(connection.info().warnings.iter().cloned());
        let died = matches!(finished.outcome, Outcome::MachineDied(_));
        let mut machine_end = None;
        let (messages, mut is_told) = (Messages::new(self.env), false);
        // Whoever has ended a command wants to be done.
        let was_ended = matches!(finished.outcome, Outcome::Signalled(_) | Outcome::TimedOut);
        let mut late = || {
            if !was_ended && !std::mem::replace(&mut is_told, true) {
                messages.note("the command has ended; what it wrote or sent last is still on its way");
            }
            !was_ended
        };
        if !died {
            match connection.shut_down(&mut late) {
                Ok(ended) => machine_end = Some(ended),
                Err(error) => notes.push(format!("changes may not all have been written: {error:#}")),
            }
        }
        let machine = connection.info().clone();
        let contacts = connection.detach_network(&mut late);
        let unsent = machine.unsent + contacts.unsent_bytes;
        if unsent > 0 {
            let unsent = crate::plan::size(unsent);
            notes.push(format!("connections were cut: nobody took {unsent} that the command sent last"));
        }
        if let Some(error) = connection.console().log_failure() {
            notes.push(format!("--kernel-log: the log is not complete: {error}"));
        }
        let last_lines = connection.console().last_lines().map(str::to_owned);
        Ok(Concluded {
            began: self.began,
            started: self.started,
            verbose: self.args.verbose,
            result: self.result,
            last_lines: if died { last_lines.collect() } else { Vec::new() },
            outcome: finished.outcome,
            usage: finished.usage,
            command_time: finished.duration,
            facts,
            kernel,
            machine,
            confinement,
            machine_end,
            contacts,
            log_network: self.args.network.log_network,
            warnings: notes,
        })
    }

    /// A guest boots while the caller goes on.
    fn boot_guest(&mut self, guest: Guest, window_size: Option<SizeOf>) -> Result<Up> {
        let mut access = self.access.clone();
        access.readable.extend(guest.modules.iter().cloned());
        let network = self.network.take().filter(|_| guest.kernel.features.has_card());
        let mut machine = uml::start(&guest.kernel, &guest.plan, &access, network.is_some(), guest.run_dir)?;
        let mut warnings = self.check_confinement(&machine)?;
        if network.is_none() && self.args.network.network == NetworkKind::User {
            warnings.push("this guest kernel has no network card: there is no network".into());
        }
        // The kernel boots meanwhile.
        let user = Uid::effective();
        let ground = Ground::Guest(protocol::Guest {
            owner: (!user.is_root()).then(|| (user.as_raw(), Gid::effective().as_raw())),
            swap: (guest.plan.swap > 0).then(|| ByteBuf::from(uml::SWAP_DEVICE.as_bytes())),
            modules: guest.modules.iter().map(|module| bytes(module)).collect(),
        });
        let mut shadows = shadows::find(&self.access.rootfs, &self.access.hidden, !user.is_root());
        let additions = network.as_ref().map(|settings| network::additions(&settings.addresses));
        shadows.extend(names::shadows(&self.access.rootfs, &additions.unwrap_or_default()));
        let mut boot = self.boot_message(shadows, guest.plan.writable, guest.plan.max_tasks, ground);
        let network = match (machine.card.take(), network) {
            (Some(source), Some(settings)) => {
                boot.network = Some(network::card(&settings.addresses, source.for_init()));
                source.take()?.map(|card| Network::start(card, settings)).transpose()?
            }
            _ => None,
        };
        let (mut connection, session) =
            self.connect(machine, &boot, SCRIPT_DIR.as_ref(), guest.log, window_size)?;
        network.into_iter().for_each(|network| connection.attach(network));
        Ok(Up {
            connection,
            session,
            facts: MachineFacts::of_guest(&guest.plan, &self.reason, self.fall_back.as_ref()),
            kernel: Some(guest.kernel.path),
            warnings,
        })
    }

    /// Starts namespaces, once more where the host's mounts have changed meanwhile, or a guest in
    /// their place.
    fn start_namespaces(&mut self, mut begun: Begun, window_size: Option<SizeOf>) -> Result<Up> {
        let mut attempts = ATTEMPTS;
        let error = loop {
            let plan = begun.plan.clone();
            let error = match self.set_up_namespaces(begun, window_size) {
                // The command may have begun: nothing can take this machine's place any more.
                Ok((up, card)) => return self.start_network(up, card),
                Err(error) => error,
            };
            attempts -= 1;
            if attempts == 0 || error.downcast_ref().is_some_and(is_interruption) {
                break error;
            }
            match Begun::again(plan, self.env, &self.access, self.network.is_some()) {
                Ok(Some(again)) => begun = again,
                Ok(None) => break error,
                Err(error) => break error,
            }
        };
        self.fall_back(error, window_size)
    }

    /// Namespaces are up when this returns, but for what is behind their network card: until then
    /// another machine may take their place.
    fn set_up_namespaces(
        &mut self,
        begun: Begun,
        window_size: Option<SizeOf>,
    ) -> Result<(Up, Option<Source>)> {
        let Begun { plan, mut layers, mut machine } = begun;
        machine.confinement.admit(&self.access);
        let mut warnings = self.check_confinement(&machine)?;
        warnings.extend(layers.notes.iter().cloned());
        // The host's root is exempt from the limit of a user's processes.
        let limited = machine.has_group() || !plan.host_root;
        let mut shadows = shadows::find(&self.access.rootfs, &self.access.hidden, false);
        if plan.in_user_namespace {
            shadows.extend(shadows::filled(&self.access.rootfs));
        }
        let card = machine.card.take();
        let additions = self.network.as_ref().map(|settings| network::additions(&settings.addresses));
        let additions = match plan.host_network {
            true => network::additions_of_host(),
            false => additions.unwrap_or_default(),
        };
        let names = names::shadows(&self.access.rootfs, &additions);
        layers.give_way(&names);
        shadows.extend(names);
        let ground = Ground::Namespaces(namespaces::ground(&plan, layers, machine.has_group()));
        let mut boot = self.boot_message(shadows, plan.writable, plan.max_tasks, ground);
        boot.network = card
            .as_ref()
            .zip(self.network.as_ref())
            .map(|(source, settings)| network::card(&settings.addresses, source.for_init()));
        let (mut connection, session) =
            self.connect(machine, &boot, SCRIPT_DIR.as_ref(), None, window_size)?;
        connection.wait_until_ready(Instant::now() + self.args.boot_timeout)?;
        let facts = MachineFacts::of_namespaces(&plan, limited, &self.reason);
        Ok((Up { connection, session, facts, kernel: None, warnings }, card))
    }

    /// Serves the card of namespaces that are up.
    fn start_network(&mut self, mut up: Up, card: Option<Source>) -> Result<Up> {
        // Without one the init has said why.
        let card = card.map(Source::take).transpose()?.flatten();
        if let Some((card, settings)) = card.zip(self.network.take()) {
            up.connection.attach(Network::start(card, settings)?);
        }
        Ok(up)
    }

    /// The command runs as what the caller is, with what the caller may.
    fn start_nothing(&mut self, run_dir: RunDir, window_size: Option<SizeOf>) -> Result<Up> {
        // Whoever the caller is.
        self.step.user = String::new();
        let script_dir = run_dir.path().to_owned();
        let machine = none::start(run_dir)?;
        let warnings = self.check_confinement(&machine)?;
        let boot = self.boot_message(Vec::new(), 0, u32::MAX, Ground::Nothing);
        let (connection, session) = self.connect(machine, &boot, &script_dir, None, window_size)?;
        Ok(Up { connection, session, facts: MachineFacts::of_nothing(&self.reason), kernel: None, warnings })
    }

    /// The probe said yes and the start said no: a guest takes the namespaces' place, once.
    fn fall_back(&mut self, error: anyhow::Error, window_size: Option<SizeOf>) -> Result<Up> {
        if error.downcast_ref().is_some_and(is_interruption) {
            return Err(error);
        }
        if self.request.isolation != Isolation::Auto || self.request.host_network {
            return Err(
                anyhow!("{error:#}").context("the namespaces machine did not start; see sekexe-ci detect")
            );
        }
        let fall_back =
            crate::plan::FallBack { missing: format!("they did not start: {error:#}"), remedy: None };
        Messages::new(self.env).warning(&fall_back);
        self.reason = fall_back.missing.clone();
        self.fall_back = Some(fall_back);
        // Its kernel may have to be built, which takes minutes, and nothing is there to be cleaned up.
        release_signals()?;
        let guest = Guest::find(self.args, self.env, &self.request, &Limits::probe()?)?;
        self.boot_guest(guest, window_size)
    }

    /// Tells the machine all that it needs to know, the command included: each wait for an answer
    /// would cost the time of two processes' waking up. Its script goes to `script_dir`.
    fn connect(
        &self,
        machine: Machine,
        boot: &Boot,
        script_dir: &Path,
        log: Option<File>,
        window_size: Option<SizeOf>,
    ) -> Result<(Connection, SessionId)> {
        let mut connection = Connection::new(machine, Console::new(log), Signals::block()?, window_size);
        connection.boot(boot)?;
        let (spawn, files) = self.step.tell(&self.access.rootfs, script_dir, self.terminal);
        let session = connection.announce(Spawn { stdin: self.input.is_some(), ..spawn }, &files)?;
        connection.close()?;
        Ok((connection, session))
    }

    fn check_confinement(&self, machine: &Machine) -> Result<Vec<String>> {
        if machine.confinement.is_enforced() {
            return Ok(Vec::new());
        }
        let missing = match machine.kind {
            Kind::None => "nothing keeps the command from what you can do",
            _ => "the host's kernel has no Landlock: guest root can write wherever you can",
        };
        if self.args.require.iter().any(|what| what == "confinement") {
            bail!(
                "--require confinement: {missing}; use a kernel from 5.13 on with landlock in its list of LSMs"
            );
        }
        Ok(vec![missing.into()])
    }

    /// What the machine is told about itself.
    fn boot_message(
        &self,
        shadows: Vec<Shadow>,
        writable_bytes: u64,
        max_tasks: u32,
        ground: Ground,
    ) -> Boot {
        Boot {
            hostname: ByteBuf::from(HOSTNAME.as_bytes()),
            rootfs: bytes(&self.access.rootfs),
            shares: self.exposure.shares.clone(),
            shadows,
            writable_bytes,
            max_tasks,
            deny_io_uring: self.args.deny.iter().any(|what| what == "io-uring"),
            ground,
            network: None,
        }
    }
}

fn bytes(path: &Path) -> ByteBuf {
    ByteBuf::from(path.as_os_str().as_bytes())
}
