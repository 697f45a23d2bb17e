//! The event loop: messages in, bytes and outcomes out, one thread, one `poll`.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use crate::protocol::{Failure, MAX_DATA, Outcome, SessionId, Spawn, Stream, ToGuest, ToHost, Usage};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::channel::Channel;
use crate::control_groups::Counters;
use crate::processes;
use crate::session::{self, Session};
use crate::{sys, unsent};

/// Above this backlog towards the host no more output is read; the commands' pipes then fill.
const MAX_BACKLOG: usize = 8 * MAX_DATA;

/// Names of processes left behind that the host is told.
const MAX_NAMES: usize = 1000;

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// What differs between machines.
#[derive(Debug, Clone, Copy)]
pub struct Ways {
    /// Who counts what was refused and killed.
    pub counters: Counters,
    /// Whether each command gets a control group of its own.
    pub own_groups: bool,
    /// Whether a user's supplementary groups can be set.
    pub supplementary_groups: bool,
    /// Whether the host's files lag behind until they are written back.
    pub write_back: bool,
    /// Whether every process that can be seen is the machine's.
    pub alone: bool,
    /// Whether its connections end with it.
    pub own_network: bool,
}

struct Server {
    ways: Ways,
    sessions: BTreeMap<SessionId, Session>,
    /// Files that could not be written, for commands not yet spawned.
    broken: BTreeMap<SessionId, Failure>,
    /// Whether the host has no more commands.
    closing: bool,
    max_tasks: u32,
    buffer: Vec<u8>,
}

/// Serves until the host has said `Shutdown` and no command runs, or until it goes away, which is an
/// error.
pub fn until_shutdown(channel: &mut Channel, max_tasks: u32, ways: Ways) -> Result<()> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().context("block SIGCHLD")?;
    let children = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("watch for ended processes")?;
    sys::set_default_limits();

    let mut server = Server {
        ways,
        sessions: BTreeMap::new(),
        broken: BTreeMap::new(),
        closing: false,
        max_tasks,
        buffer: vec![0; MAX_DATA],
    };
    // The host does not wait for `Ready`: its first commands may have arrived together with `Boot`.
    loop {
        server.obey(channel)?;
        if server.closing && server.sessions.is_empty() {
            break;
        }
        channel.flush()?;
        let ready = wait(channel, &children, &server)?;
        if ready.child {
            while let Ok(Some(_)) = children.read_signal() {}
            server.reap();
        }
        if ready.message {
            channel.fill()?;
        }
        server.move_bytes(channel, &ready.outputs)?;
        server.report_ended(channel)?;
    }
    server.reap();
    // Whoever was orphaned is a child of ours. To look at every process takes time, in a guest a lot.
    let left_behind =
        if sys::has_children() { processes::names_of_descendants(MAX_NAMES) } else { Vec::new() };
    // Nothing may write any more when the last bytes go to the host's files.
    if ways.alone {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    } else {
        for pid in processes::descendants() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let unsent = if ways.own_network { unsent::wait(channel)? } else { 0 };
    if ways.write_back {
        nix::unistd::sync();
    }
    channel.send(&ToHost::Bye { left_behind, unsent })?;
    channel.flush_all()?;
    // The host ends a guest now. Waiting for it spares the switching-off.
    while ways.write_back && channel.wait_and_fill().is_ok() {}
    Ok(())
}

/// What [`wait`] found.
struct Ready {
    message: bool,
    child: bool,
    /// Outputs that have something to read: asking the others would cost a system call each.
    outputs: Vec<(SessionId, Stream)>,
}

/// Sleeps until there is something to do.
fn wait(channel: &Channel, children: &SignalFd, server: &Server) -> Result<Ready> {
    let mut interest = PollFlags::POLLIN;
    interest.set(PollFlags::POLLOUT, channel.backlog() > 0);
    let mut fds =
        vec![PollFd::new(channel.as_fd(), interest), PollFd::new(children.as_fd(), PollFlags::POLLIN)];
    fds.extend(
        server
            .sessions
            .values()
            .filter_map(Session::wants_to_write)
            .map(|fd| PollFd::new(fd, PollFlags::POLLOUT)),
    );
    let first_output = fds.len();
    let mut outputs = Vec::new();
    let mut draining = false;
    for session in server.sessions.values() {
        for stream in STREAMS {
            let Some(fd) = session.wants_to_read(stream) else { continue };
            draining |= session.is_draining();
            if channel.backlog() < MAX_BACKLOG {
                fds.push(PollFd::new(fd, PollFlags::POLLIN));
                outputs.push((session.id, stream));
            }
        }
    }
    // A stream that something left behind holds open never becomes readable; look at once.
    let timeout =
        if draining && channel.backlog() < MAX_BACKLOG { PollTimeout::ZERO } else { PollTimeout::NONE };
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(e).context("wait for something to do"),
    }
    let readable = |fd: &PollFd<'_>| {
        let wanted = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        fd.revents().is_some_and(|events| events.intersects(wanted))
    };
    let mut found = fds[first_output..].iter().map(readable);
    outputs.retain(|_| found.next().unwrap_or(false));
    Ok(Ready { message: readable(&fds[0]), child: readable(&fds[1]), outputs })
}

impl Server {
    fn reap(&mut self) {
        while let Some(reaped) = sys::reap() {
            // Whoever is not a command's own process was orphaned and inherited by PID 1.
            if let Some(session) = self.sessions.values_mut().find(|s| s.owns(&reaped)) {
                session.process_ended(reaped);
            }
        }
    }

    /// Does what the messages say.
    fn obey(&mut self, channel: &mut Channel) -> Result<()> {
        loop {
            // A command to start answers on the channel, so it must not borrow from it.
            let spawn = match channel.next()? {
                None => return Ok(()),
                Some(ToGuest::Spawn(spawn)) => spawn,
                Some(other) => {
                    self.obey_one(other);
                    continue;
                }
            };
            self.spawn(&spawn, channel)?;
        }
    }

    fn obey_one(&mut self, message: ToGuest<'_>) {
        match message {
            ToGuest::WriteFile { session, path, mode, data } => {
                if let Err(failure) = session::write_file(&path, mode, data) {
                    self.broken.entry(session).or_insert(failure);
                }
            }
            ToGuest::Stdin { session, data } => self.with(session, |s| s.take_input(data)),
            ToGuest::StdinEof { session } => self.with(session, Session::end_input),
            ToGuest::Credit { session, stream, bytes } => self.with(session, |s| s.add_credit(stream, bytes)),
            ToGuest::CloseOutput { session, stream } => self.with(session, |s| s.close_output(stream)),
            ToGuest::Signal { session, signal, everything } => {
                self.with(session, |s| s.signal(signal, everything))
            }
            ToGuest::Resize { session, size } => self.with(session, |s| s.resize(size)),
            ToGuest::Shutdown => self.closing = true,
            ToGuest::Boot(_) | ToGuest::Spawn(_) => {}
        }
    }

    /// A message for a command that has ended meanwhile is nobody's fault.
    fn with(&mut self, id: SessionId, act: impl FnOnce(&mut Session)) {
        if let Some(session) = self.sessions.get_mut(&id) {
            act(session);
        }
    }

    fn spawn(&mut self, spawn: &Spawn, channel: &mut Channel) -> Result<()> {
        let session = spawn.session;
        let started = match self.broken.remove(&session) {
            Some(failure) => Err(failure),
            None => Session::start(spawn, self.max_tasks, self.ways),
        };
        match started {
            Ok(running) => {
                self.sessions.insert(session, running);
                channel.send(&ToHost::Started { session })
            }
            Err(failure) => {
                let outcome = Outcome::NeverStarted(failure);
                channel.send(&ToHost::Ended { session, outcome, usage: Usage::default() })
            }
        }
    }

    fn move_bytes(&mut self, channel: &mut Channel, ready: &[(SessionId, Stream)]) -> Result<()> {
        for session in self.sessions.values_mut() {
            if session.wants_to_write().is_some() {
                session.feed_input(channel)?;
            }
            for stream in STREAMS {
                // What is left behind by a process that ended need not show as readable.
                if !session.is_draining() && !ready.contains(&(session.id, stream)) {
                    continue;
                }
                while channel.backlog() < MAX_BACKLOG
                    && session.pump_output(stream, &mut self.buffer, channel)?
                {
                    channel.flush()?;
                }
            }
        }
        Ok(())
    }

    fn report_ended(&mut self, channel: &mut Channel) -> Result<()> {
        let ended: Vec<_> =
            self.sessions.values().filter_map(|s| s.conclusion().map(|how| (s.id, how))).collect();
        for (session, (outcome, usage)) in ended {
            self.sessions.remove(&session);
            channel.send(&ToHost::Ended { session, outcome, usage })?;
        }
        Ok(())
    }
}
