//! The host's end of the protocol: sets a machine up, runs commands in it, carries their bytes.
//!
//! One thread and one `poll` serve the channel, the machine's console, every command's streams,
//! our signals and the deadlines. Several commands may run at once. Whatever happens to the
//! machine, each command ends with an [`Outcome`]: if the guest cannot tell, the outcome says that
//! the machine died, and why.

mod active;
mod console;
mod deadlines;
mod ending;
mod link;
mod signals;
mod streams;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use sekexe_init::protocol::{
    Boot, Failure, MAX_DATA, Outcome, SessionId, Spawn, ToGuest, ToHost, Usage, WindowSize,
};

use crate::machine::{Kind, Machine};
use crate::net::Network;
use active::Active;
pub use console::{Console, meaning};
use deadlines::Due;
use link::Link;
pub use signals::{Signals, hold_signals, release_signals};
pub use streams::{Input, Output};

/// A command to run, with where its bytes come from and go to.
pub struct Command {
    /// What the guest is told; its session number is filled in here.
    pub spawn: Spawn,
    /// Files that it needs, path and contents, written before it starts.
    pub files: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its standard input.
    pub input: Input,
    /// Its standard output.
    pub stdout: Output,
    /// Its standard error. Unused with a terminal.
    pub stderr: Output,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How.
    pub outcome: Outcome,
    /// What it used, as far as the guest could tell.
    pub usage: Usage,
    /// From being sent to having ended.
    pub duration: Duration,
    /// What `Output::Capture` collected from standard output and standard error.
    pub captured: [Vec<u8>; 2],
}

/// What the guest said when it was set up.
#[derive(Debug, Clone, Default)]
pub struct GuestInfo {
    /// Its kernel's release.
    pub release: String,
    /// What had to be left out.
    pub warnings: Vec<String>,
    /// From the start of its kernel until it was set up.
    pub boot_time: Duration,
    /// From the host's [`Connection::boot`] until it was set up.
    pub ready_after: Duration,
    /// Names of processes that commands left behind, known when it has been shut down.
    pub left_behind: Vec<String>,
    /// Bytes that commands sent last and that nobody took from the machine, known then too.
    pub unsent: u64,
}

/// Whether a failure is that somebody wanted us to end.
pub fn is_interruption(failure: &Failure) -> bool {
    failure.errno == Errno::EINTR as i32
}

/// Whom to ask for the terminal's size when it changes.
pub type SizeOf = fn() -> Option<WindowSize>;

/// Why waiting ended although no command did.
#[derive(Debug)]
struct Death(Failure);

/// The conversation with one machine.
pub struct Connection {
    machine: Machine,
    link: Link,
    console: Console,
    signals: Signals,
    window_size: Option<SizeOf>,
    active: BTreeMap<SessionId, Active>,
    finished: BTreeMap<SessionId, Finished>,
    next_session: SessionId,
    info: GuestInfo,
    booted: Option<Instant>,
    boot_failure: Option<Failure>,
    greeted: bool,
    ready: bool,
    closing: bool,
    hurries: bool,
    bye: bool,
    unhandled: VecDeque<Signal>,
    network: Option<Network>,
}

impl Connection {
    /// Takes a started machine over. `console` keeps what it prints; `signals` are passed on to the
    /// running commands; `window_size` is asked when the terminal changed.
    pub fn new(machine: Machine, console: Console, signals: Signals, window_size: Option<SizeOf>) -> Self {
        Self {
            link: Link::new(machine.line_buffer),
            // Any other channel than a serial line keeps what is written before somebody reads.
            greeted: machine.kind != Kind::Uml,
            machine,
            console,
            signals,
            window_size,
            active: BTreeMap::new(),
            finished: BTreeMap::new(),
            next_session: 1,
            info: GuestInfo::default(),
            booted: None,
            boot_failure: None,
            ready: false,
            closing: false,
            hurries: false,
            bye: false,
            unhandled: VecDeque::new(),
            network: None,
        }
    }

    /// Takes the machine's network over: if it ends, the machine does.
    pub fn attach(&mut self, network: Network) {
        self.network = Some(network);
    }

    /// Sends the machine its instructions. Commands may be spawned at once: they wait for the end
    /// of the set-up in the guest.
    pub fn boot(&mut self, boot: &Boot) -> Result<()> {
        self.booted = Some(Instant::now());
        self.link.send(&ToGuest::Boot(boot.clone()))
    }

    /// Waits until the machine is set up, at most until `deadline`. What it says of commands is left to
    /// [`Connection::wait`].
    pub fn wait_until_ready(&mut self, deadline: Instant) -> Result<(), Failure> {
        while !self.ready {
            if let Some(failure) = self.boot_failure.take() {
                return Err(failure);
            }
            if Instant::now() >= deadline {
                let _ = self.machine.end();
                // It may have come up at this very moment, and its command have begun.
                if self.link.read(&self.machine.channel).is_ok() && self.obey().is_ok() && self.ready {
                    break;
                }
                return Err(fail("boot deadline", "the guest did not come up in time".into()));
            }
            self.step(Some(deadline)).map_err(|Death(failure)| failure)?;
            if self.ready {
                break;
            }
            let interrupt = |signal: &Signal| *signal != Signal::SIGWINCH;
            if let Some(signal) = self.unhandled.iter().copied().find(interrupt) {
                let reason = format!("interrupted by {}", signal.as_str());
                return Err(Failure { errno: Errno::EINTR as i32, ..fail("boot", reason) });
            }
        }
        Ok(())
    }

    /// Ends the machine, which did not come up, and the command with it.
    pub fn give_up(&mut self, session: SessionId, failure: &Failure) -> Result<Finished> {
        self.machine.end()?;
        self.console.finish(&self.machine);
        self.die(failure);
        self.wait(session)
    }

    /// What the guest said of itself.
    pub fn info(&self) -> &GuestInfo {
        &self.info
    }

    /// The machine that this conversation is with.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What the machine printed last on its console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Starts a command.
    pub fn spawn(&mut self, command: Command) -> Result<SessionId> {
        let spawn = Spawn { stdin: command.input.is_some(), ..command.spawn };
        let session = self.announce(spawn, &command.files)?;
        self.connect(session, command.input, [command.stdout, command.stderr], command.timeout);
        Ok(session)
    }

    /// Tells the machine of a command, which starts as soon as the machine can: it need not wait for
    /// us to have heard that. Must be connected before anything is waited for but the machine itself.
    pub fn announce(&mut self, spawn: Spawn, files: &[(Vec<u8>, Vec<u8>)]) -> Result<SessionId> {
        let session = self.next_session;
        self.next_session += 1;
        for (path, contents) in files {
            // At least one piece, so that an empty file comes to be.
            let mut rest = contents.as_slice();
            loop {
                let (data, behind) = rest.split_at(rest.len().min(MAX_DATA));
                let path = path.clone().into();
                self.link.send(&ToGuest::WriteFile { session, path, mode: 0o755, data })?;
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
        }
        self.link
            .send(&ToGuest::Spawn(Spawn { session, ..spawn }))
            .context("the arguments and the environment are too long for any program")?;
        Ok(session)
    }

    /// Says where the bytes of an announced command come from and go to, standard output first, and how
    /// long it may take.
    pub fn connect(
        &mut self,
        session: SessionId,
        input: Input,
        outputs: [Output; 2],
        timeout: Option<Duration>,
    ) {
        self.active.insert(session, Active::new(input, outputs, timeout));
    }

    /// Starts no more commands: the machine shall write everything back as soon as the last one has
    /// ended, without waiting to be told.
    pub fn close(&mut self) -> Result<()> {
        self.closing = true;
        self.link.send(&ToGuest::Shutdown)
    }

    /// Waits until the command has ended. Other commands go on meanwhile.
    pub fn wait(&mut self, session: SessionId) -> Result<Finished> {
        // What has come with the news that the machine is ready.
        if let Err(Death(failure)) = self.obey() {
            self.die(&failure);
        }
        loop {
            if let Some(finished) = self.finished.remove(&session) {
                return Ok(finished);
            }
            let Some(active) = self.active.get(&session) else {
                return Err(anyhow!("session {session} was never started"));
            };
            if let Some(failure) = &active.failure {
                return Err(anyhow!("{failure}"));
            }
            if let Some(failure) = self.boot_failure.clone() {
                self.die(&failure);
                continue;
            }
            // Some may have come with the news that the machine is ready.
            while let Some(signal) = self.unhandled.pop_front() {
                self.forward(signal)?;
            }
            let deadline = self.enforce_deadlines()?;
            if let Err(Death(failure)) = self.step(deadline) {
                self.die(&failure);
            }
        }
    }

    /// The machine is gone, and every command with it.
    fn die(&mut self, failure: &Failure) {
        for (session, active) in std::mem::take(&mut self.active) {
            let outcome = Outcome::MachineDied(failure.clone());
            self.finished.insert(session, active.end(outcome, Usage::default()));
        }
    }

    /// Does what is due about commands that do not end. Returns when to look again.
    fn enforce_deadlines(&mut self) -> Result<Option<Instant>> {
        let now = Instant::now();
        let due = |(session, active): (&SessionId, &mut Active)| Some((*session, active.deadlines.due(now)?));
        let orders: Vec<_> = self.active.iter_mut().filter_map(due).collect();
        for (session, due) in orders {
            match due {
                Due::Terminate => self.signal(session, Signal::SIGTERM, true)?,
                Due::Kill => self.signal(session, Signal::SIGKILL, true)?,
                Due::GiveUp => {
                    self.machine.end()?;
                }
            }
        }
        Ok(self.active.values().filter_map(|active| active.deadlines.next()).min())
    }

    fn signal(&mut self, session: SessionId, signal: Signal, everything: bool) -> Result<()> {
        self.link.send(&ToGuest::Signal { session, signal: signal as i32, everything })
    }

    /// Passes one of our signals on. A second interrupt kills.
    fn forward(&mut self, signal: Signal) -> Result<()> {
        if signal == Signal::SIGWINCH {
            let Some(size) = self.window_size.and_then(|ask| ask()) else { return Ok(()) };
            for &session in self.active.keys() {
                self.link.send(&ToGuest::Resize { session, size })?;
            }
            return Ok(());
        }
        let now = Instant::now();
        let order =
            |(session, active): (&SessionId, &mut Active)| (*session, active.must_die_of(signal, now));
        for (session, dies) in self.active.iter_mut().map(order).collect::<Vec<_>>() {
            self.signal(session, if dies { Signal::SIGKILL } else { signal }, dies)?;
        }
        Ok(())
    }

    /// Waits for one thing to happen, at most until `deadline`, and deals with it.
    fn step(&mut self, deadline: Option<Instant>) -> Result<(), Death> {
        self.write_to_guest()?;
        let ready = self.poll(deadline).map_err(|e| Death(fail("poll", e.desc().into())))?;
        if ready.console {
            self.console.read(&self.machine);
        }
        if ready.signals {
            self.unhandled.extend(self.signals.arrived());
        }
        if ready.channel {
            self.link.read(&self.machine.channel).map_err(|why| self.autopsy(&why))?;
            self.obey()?;
        } else if ready.ended {
            return Err(self.autopsy("its process ended"));
        } else if ready.network {
            return Err(self.without_network());
        }
        self.move_bytes()
    }

    /// Writes what is queued, but nothing before the guest has spoken: a serial line never notices
    /// bytes that arrived before it was opened.
    fn write_to_guest(&mut self) -> Result<(), Death> {
        if !self.greeted {
            return Ok(());
        }
        self.link.write(&self.machine.channel).map_err(|why| self.autopsy(&why))
    }

    fn poll(&self, deadline: Option<Instant>) -> Result<Ready, Errno> {
        let mut interest = PollFlags::POLLIN;
        interest.set(PollFlags::POLLOUT, self.greeted && self.link.may_write());
        let mut fds = vec![
            PollFd::new(self.machine.channel.as_fd(), interest),
            PollFd::new(self.machine.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        let network = self.network.as_ref().map(|network| {
            fds.push(PollFd::new(network.ended(), PollFlags::POLLIN));
            fds.len() - 1
        });
        let console = self.console.is_open().then(|| {
            fds.push(PollFd::new(self.machine.console.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        for active in self.active.values() {
            fds.extend(active.source.wants().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            for sink in &active.sinks {
                fds.extend(sink.wants().map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
            }
        }
        match poll(&mut fds, timeout(deadline)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
        let happened = |index: usize| fds[index].revents().is_some_and(|events| !events.is_empty());
        let readable = fds[0].revents().is_some_and(|events| {
            events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR)
        });
        Ok(Ready {
            channel: readable,
            ended: happened(1),
            console: console.is_some_and(happened),
            signals: happened(2),
            network: network.is_some_and(happened),
        })
    }

    /// Does what the guest says.
    fn obey(&mut self) -> Result<(), Death> {
        // The link is taken out, because a message borrows from it.
        let empty = Link::new(Some(0));
        let mut link = std::mem::replace(&mut self.link, empty);
        let result = loop {
            match link.next() {
                Ok(Some(message)) => {
                    let was_ready = self.ready;
                    self.obey_one(message);
                    if self.ready && !was_ready {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(fail("protocol", error.to_string())),
            }
        };
        let meanwhile = std::mem::replace(&mut self.link, link);
        self.link.append(meanwhile);
        result.map_err(Death)
    }

    fn obey_one(&mut self, message: ToHost<'_>) {
        match message {
            ToHost::Hello { release } => {
                self.greeted = true;
                self.info.release = release;
            }
            ToHost::Ready { warnings, uptime_us } => {
                self.ready = true;
                self.machine.came_up();
                self.info.warnings = warnings;
                self.info.boot_time = Duration::from_micros(uptime_us);
                self.info.ready_after = self.booted.map_or(Duration::ZERO, |booted| booted.elapsed());
            }
            ToHost::Received { bytes } => self.link.was_taken(bytes as usize),
            ToHost::BootFailed(failure) => self.boot_failure = Some(failure),
            ToHost::Started { session } => {
                if let Some(active) = self.active.get_mut(&session) {
                    active.start(Instant::now());
                }
            }
            ToHost::Output { session, stream, data } => {
                if let Some(active) = self.active.get_mut(&session) {
                    active.sinks[stream as usize].take(data);
                }
            }
            ToHost::Credit { session, bytes } => {
                if let Some(active) = self.active.get_mut(&session) {
                    active.source.add_credit(bytes);
                }
            }
            ToHost::StdinClosed { session } => {
                if let Some(active) = self.active.get_mut(&session) {
                    active.source.close();
                }
            }
            ToHost::Ended { session, outcome, usage } => {
                if let Some(active) = self.active.remove(&session) {
                    self.finished.insert(session, active.end(outcome, usage));
                }
            }
            ToHost::Bye { left_behind, unsent } => {
                self.bye = true;
                self.info.left_behind = left_behind;
                self.info.unsent = unsent;
                // Who did not take it from the machine does not take it from us either.
                self.hurries |= unsent > 0;
            }
        }
    }

    /// Feeds the guest from our inputs and our outputs from the guest.
    fn move_bytes(&mut self) -> Result<(), Death> {
        let Self { active, link, .. } = self;
        let wrong = |error: anyhow::Error| Death(fail("protocol", format!("{error:#}")));
        for (&session, active) in active.iter_mut() {
            active.move_bytes(session, link).map_err(wrong)?;
        }
        Ok(())
    }

    /// Ends the machine because its network has ended.
    fn without_network(&mut self) -> Death {
        let why = self.network.take().map(|mut network| network.stop());
        let _ = self.machine.end();
        self.console.finish(&self.machine);
        let reason = match why {
            Some(Err(error)) => format!("{error:#}"),
            _ => "it ended by itself".into(),
        };
        Death(fail("network", reason))
    }

    /// Finds out why the machine ended.
    fn autopsy(&mut self, what_we_saw: &str) -> Death {
        let ended = self.machine.end();
        self.console.finish(&self.machine);
        let reason = match (self.console.panic_message(), ended) {
            (Some(panic), _) => panic,
            (None, Ok(ended)) => format!("{what_we_saw} ({})", ended.status),
            (None, Err(error)) => format!("{what_we_saw} ({error:#})"),
        };
        Death(fail("guest kernel", reason))
    }
}

/// Until then, or for ever.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    deadline.map_or(PollTimeout::NONE, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the deadline has passed when the wait ends.
        let milliseconds = left.as_millis().saturating_add(1).min(i32::MAX as u128) as i32;
        PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
    })
}

/// What [`Connection::poll`] found.
struct Ready {
    channel: bool,
    ended: bool,
    console: bool,
    signals: bool,
    network: bool,
}

fn fail(stage: &str, reason: String) -> Failure {
    Failure { stage: stage.into(), reason, errno: 0 }
}

/// Exit status that a shell gives to a command ended by `signal`.
pub fn status_of_signal(signal: i32) -> u8 {
    (128 + signal.clamp(1, libc::SIGRTMAX())) as u8
}
