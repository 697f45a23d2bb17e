//! `exec`: one command in a fresh guest.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid};
use sekexe_init::protocol::{Boot, ByteBuf, Outcome, Usage, WindowSize};

use super::{Environment, Messages, Status, kernel};
use crate::cli::exec::{ExecArgs, MachineArgs};
use crate::detect::Limits;
use crate::exposure::{self, Exposure, Wish};
use crate::kernel::Kernel;
use crate::machine::run_dir::RunDir;
use crate::machine::uml::{self, Access, shadows};
use crate::machine::{Confinement, Ended, hidden};
use crate::plan::{self, Plan};
use crate::report::{self, Run};
use crate::session::{Command, Connection, Console, GuestInfo, Input, Output, Signals, SizeOf};
use crate::step::{self, Shell, Step, Work};

/// Runs the command.
pub fn run(args: &ExecArgs, env: &Environment) -> Result<Status> {
    let done = execute(args, env);
    if let (Err(error), Some(path)) = (&done, &args.result) {
        report::write_file(path, &report::failed_result(error))?;
    }
    done
}

fn execute(args: &ExecArgs, env: &Environment) -> Result<Status> {
    // Before the command has run for hours.
    args.result.as_deref().map_or(Ok(()), report::expect_writable)?;
    let job = Job {
        machine: &args.machine,
        work: work(args)?,
        shell: args.shell.as_deref().map_or(Ok(Shell::Unset), Shell::parse)?,
        timeout: Some(args.timeout),
        result: args.result.clone(),
        terminal: None,
    };
    let prepared = job.prepare(env)?;
    let input = match args.script.as_ref().is_some_and(|script| script == "-") {
        true => Input::Null,
        false => standard_input(),
    };
    let duplicate = |fd: std::os::fd::BorrowedFd<'_>| match fd.try_clone_to_owned() {
        Ok(fd) => Output::Fd(fd),
        // Closed by our caller: there is nobody who would read.
        Err(_) => Output::Hand(Box::new(|_| {})),
    };
    let streams = Streams {
        input,
        stdout: duplicate(std::io::stdout().as_fd()),
        stderr: duplicate(std::io::stderr().as_fd()),
    };
    prepared.run(streams, None)?.conclude(env)
}

fn standard_input() -> Input {
    std::io::stdin().as_fd().try_clone_to_owned().map_or(Input::Null, Input::Fd)
}

/// What is to be run, read from wherever it is.
fn work(args: &ExecArgs) -> Result<Work> {
    let script = match (&args.script, &args.script_file) {
        (Some(script), _) if script == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("read the script from standard input")?;
            bytes
        }
        (Some(script), _) => script.as_bytes().to_owned(),
        (None, Some(file)) => {
            fs::read(file).with_context(|| format!("read the script {}", file.display()))?
        }
        (None, None) if !args.argv.is_empty() => return Ok(Work::Arguments(args.argv.clone())),
        (None, None) => bail!(
            "there is nothing to run; give a script (exec 'make test'), a file (exec --script FILE), - for \
             standard input, or a program (exec -- make test)"
        ),
    };
    if script.iter().all(u8::is_ascii_whitespace) {
        bail!(
            "the script is empty, which is more likely a variable without a value than a wish; for a command that does nothing use: exec true"
        );
    }
    Ok(Work::Script(script))
}

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
    /// Size of its terminal, if it gets one.
    pub terminal: Option<WindowSize>,
}

/// Where a command's bytes come from and go to.
pub struct Streams {
    /// Its standard input.
    pub input: Input,
    /// Its standard output, or its terminal.
    pub stdout: Output,
    /// Its standard error.
    pub stderr: Output,
}

impl Job<'_> {
    /// Does everything that can fail before a machine is started.
    pub fn prepare(self, env: &Environment) -> Result<Prepared> {
        let started = Instant::now();
        let args = self.machine;
        let messages = Messages::new(env);
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
        let hidden = hidden::existing(env.home.as_deref(), &current_dir, &args.hide, &args.show);
        let exposure = exposure::resolve(&Wish {
            rootfs: rootfs.clone(),
            current_dir: current_dir.clone(),
            writable: args.rw.clone(),
            read_only: args.ro,
            hidden: hidden.clone(),
        })?;
        let step = Step {
            work: self.work,
            shell: self.shell,
            env: variables(args, env)?,
            workdir: args.workdir.clone().unwrap_or(current_dir).into(),
            user: args.user.clone(),
        };
        let log = args.kernel_log.as_ref().map(|path| {
            File::create(path).with_context(|| format!("--kernel-log {}: create it", path.display()))
        });
        let request = plan::Request { memory: args.memory, cpus: args.cpus, untrusted: args.untrusted };
        let limits = Limits::probe()?;
        plan::check(&request, &limits)?;
        // After everything that can be refused at once: this may take minutes.
        let kernel = kernel::resolve(&args.kernel, args.profile.as_deref(), env)?;
        let run_dir = RunDir::create(&env.temporary_places)?;
        let plan = plan::plan(&request, &limits, &kernel.features, run_dir.disk_free(), std::process::id())?;
        if args.verbose {
            messages.note(format_args!("guest kernel {} ({})", kernel.release, kernel.path.display()));
        }
        Ok(Prepared {
            started,
            verbose: args.verbose,
            require_confinement: args.require.iter().any(|what| what == "confinement"),
            boot_timeout: args.boot_timeout,
            timeout: self.timeout,
            result: self.result,
            terminal: self.terminal,
            log: log.transpose()?,
            modules: modules(&kernel)?,
            access: Access {
                rootfs,
                writable: exposure.writable.clone(),
                readable: exposure.readable.clone(),
                hidden,
            },
            exposure,
            step,
            kernel,
            run_dir,
            plan,
        })
    }
}

/// The variables that the command gets; what is named later wins.
fn variables(args: &MachineArgs, env: &Environment) -> Result<Vec<(OsString, OsString)>> {
    let mut variables = step::allowed_environment(env.variables.iter().cloned());
    let mut set = |name: OsString, value: OsString| {
        variables.retain(|(known, _)| *known != name);
        variables.push((name, value));
    };
    for file in &args.env_file {
        let text = fs::read(file).with_context(|| format!("--env-file {}", file.display()))?;
        let read = step::parse_env_file(&text).map_err(|(line, why)| {
            anyhow::anyhow!("--env-file {}, line {line}: {why}; write NAME=VALUE", file.display())
        })?;
        read.into_iter().for_each(|(name, value)| set(name, value));
    }
    for given in &args.env {
        let bytes = given.as_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
            Some(0) => bail!("--env {}: the name is missing; write NAME=VALUE", given.display()),
            Some(at) => {
                set(OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(bytes[at + 1..].to_vec()));
            }
            // A variable that we do not have either is left unset, as the shell would.
            None => env.get(given).into_iter().for_each(|value| set(given.clone(), value.to_owned())),
        }
    }
    Ok(variables)
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

/// A command whose machine can be started.
pub struct Prepared {
    started: Instant,
    verbose: bool,
    require_confinement: bool,
    boot_timeout: Duration,
    timeout: Option<Duration>,
    result: Option<PathBuf>,
    terminal: Option<WindowSize>,
    log: Option<File>,
    modules: Vec<PathBuf>,
    access: Access,
    exposure: Exposure,
    step: Step,
    kernel: Kernel,
    run_dir: RunDir,
    plan: Plan,
}

impl Prepared {
    /// Starts the machine, runs the command, ends the machine.
    pub fn run(self, streams: Streams, window_size: Option<SizeOf>) -> Result<Concluded> {
        let signals = Signals::block()?;
        let mut access = self.access.clone();
        access.readable.extend(self.modules.iter().cloned());
        let machine = uml::start(&self.kernel, &self.plan, &access, self.run_dir)?;
        let confinement = machine.confinement.clone();
        let mut warnings = self.exposure.notes.clone();
        if !confinement.is_enforced() {
            let missing = "the host's kernel has no Landlock: guest root can write wherever you can";
            if self.require_confinement {
                bail!(
                    "--require confinement: {missing}; use a kernel from 5.13 on with landlock in its list of LSMs"
                );
            }
            warnings.push(missing.into());
        }
        // The kernel boots meanwhile.
        let boot = boot_message(&self.access, &self.exposure, &self.plan, &self.modules);
        let (spawn, files) = self.step.tell(&self.access.rootfs, self.terminal);
        let command = Command {
            spawn,
            files,
            input: streams.input,
            stdout: streams.stdout,
            stderr: streams.stderr,
            timeout: self.timeout,
        };

        let mut connection = Connection::new(machine, Console::new(self.log), signals, window_size);
        connection.boot(&boot)?;
        let session = connection.spawn(command)?;
        let finished = match connection.wait_until_ready(Instant::now() + self.boot_timeout) {
            Ok(()) => connection.wait(session)?,
            Err(failure) => connection.give_up(session, &failure)?,
        };
        let guest = connection.info().clone();
        warnings.extend(guest.warnings.iter().cloned());
        let mut machine_end = None;
        if !matches!(finished.outcome, Outcome::MachineDied(_)) {
            match connection.shut_down() {
                Ok(ended) => machine_end = Some(ended),
                Err(error) => warnings.push(format!("changes may not all have been written: {error:#}")),
            }
        }
        if let Some(error) = connection.console().log_failure() {
            warnings.push(format!("--kernel-log: the log is not complete: {error}"));
        }
        let died = matches!(finished.outcome, Outcome::MachineDied(_));
        let last_lines = connection.console().last_lines().map(str::to_owned);
        Ok(Concluded {
            started: self.started,
            verbose: self.verbose,
            result: self.result,
            last_lines: if died { last_lines.collect() } else { Vec::new() },
            outcome: finished.outcome,
            usage: finished.usage,
            command_time: finished.duration,
            plan: self.plan,
            kernel: self.kernel.path,
            guest,
            confinement,
            machine_end,
            warnings,
        })
    }
}

/// What the guest is told about itself.
fn boot_message(access: &Access, exposure: &Exposure, plan: &Plan, modules: &[PathBuf]) -> Boot {
    let bytes = |path: &Path| ByteBuf::from(path.as_os_str().as_bytes());
    let user = Uid::effective();
    Boot {
        hostname: ByteBuf::from(*b"sekexe"),
        rootfs: bytes(&access.rootfs),
        owner: (!user.is_root()).then(|| (user.as_raw(), Gid::effective().as_raw())),
        shares: exposure.shares.clone(),
        shadows: shadows::find(&access.rootfs, &access.hidden),
        writable_bytes: plan.writable,
        swap: (plan.swap > 0).then(|| ByteBuf::from(uml::SWAP_DEVICE.as_bytes())),
        modules: modules.iter().map(|module| bytes(module)).collect(),
        max_tasks: plan.max_tasks,
    }
}

/// A command that ended, and all there is to tell of it.
pub struct Concluded {
    started: Instant,
    verbose: bool,
    result: Option<PathBuf>,
    last_lines: Vec<String>,
    outcome: Outcome,
    usage: Usage,
    command_time: Duration,
    plan: Plan,
    kernel: PathBuf,
    guest: GuestInfo,
    confinement: Confinement,
    machine_end: Option<Ended>,
    warnings: Vec<String>,
}

impl Concluded {
    /// Tells it, and says how this process shall end.
    pub fn conclude(self, env: &Environment) -> Result<Status> {
        let messages = Messages::new(env);
        self.warnings.iter().for_each(|warning| messages.warning(warning));
        if self.verbose {
            self.describe(messages);
        }
        if let Some(path) = &self.result {
            let run = Run {
                outcome: &self.outcome,
                usage: self.usage,
                command_time: self.command_time,
                total_time: self.started.elapsed(),
                plan: &self.plan,
                kernel: &self.kernel,
                guest: &self.guest,
                confinement: &self.confinement,
                machine: self.machine_end,
                warnings: &self.warnings,
            };
            report::write_file(path, &report::result(&run))?;
        }
        if !self.last_lines.is_empty() {
            messages.note("the guest's last words:");
            self.last_lines.iter().rev().take(12).rev().for_each(|line| messages.detail(line));
        }
        if let Some(line) = report::line(&self.outcome, &self.usage) {
            messages.outcome(line);
        }
        Ok(report::exit_status(&self.outcome))
    }

    fn describe(&self, messages: Messages) {
        let confinement = &self.confinement;
        let landlock = match confinement.landlock_abi {
            0 => "no Landlock".to_owned(),
            abi => format!("Landlock ABI {abi}"),
        };
        let mounts = if confinement.read_only_mounts { "read-only mounts" } else { "no mounts of its own" };
        messages.note(format_args!("enforced: {landlock}, {mounts}, no new privileges"));
        messages.detail(format_args!("writable: {}", or_nothing(&confinement.writable)));
        messages.detail(format_args!("hidden: {}", or_nothing(&confinement.hidden)));
        messages.note(format_args!(
            "{} CPU(s), {} memory, {} swap; ready after {} ms, command {} ms",
            self.plan.cpus,
            plan::size(self.plan.memory),
            plan::size(self.plan.swap),
            self.guest.ready_after.as_millis(),
            self.command_time.as_millis(),
        ));
    }
}

fn or_nothing(paths: &[String]) -> String {
    if paths.is_empty() { "nothing".into() } else { paths.join(" ") }
}
