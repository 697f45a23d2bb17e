//! A running command, as the host sees it.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use sekexe_init::protocol::{CREDIT_STEP, Outcome, SessionId, Stream, ToGuest, Usage};

use super::deadlines::Deadlines;
use super::link::Link;
use super::streams::{Input, Output, Sink, Source, Written};
use super::{Finished, fail};

/// See the module.
pub struct Active {
    /// Its standard input.
    pub source: Source,
    /// Standard output and standard error.
    pub sinks: [Sink; 2],
    /// When something must be done about it.
    pub deadlines: Deadlines,
    /// Why its output cannot be written.
    pub failure: Option<String>,
    /// Bytes of each output that the guest has not been told to be gone.
    owed: [u32; 2],
    started: Option<Instant>,
    interrupts: u32,
}

impl Active {
    /// One that has not started. `outputs` begins with its standard output.
    pub fn new(input: Input, outputs: [Output; 2], timeout: Option<Duration>) -> Self {
        Self {
            source: Source::new(input),
            sinks: outputs.map(Sink::new),
            deadlines: Deadlines::new(timeout),
            failure: None,
            owed: [0; 2],
            started: None,
            interrupts: 0,
        }
    }

    /// It runs.
    pub fn start(&mut self, now: Instant) {
        self.started = Some(now);
        self.deadlines.start(now);
    }

    /// Takes note of a signal that is meant for it. Says whether that must be its end: a second
    /// interrupt kills.
    pub fn must_die_of(&mut self, signal: Signal, now: Instant) -> bool {
        self.interrupts += u32::from(signal == Signal::SIGINT);
        let dies = self.interrupts >= 2;
        if dies {
            self.deadlines.was_killed(now);
        }
        dies
    }

    /// Feeds the guest from its input and its outputs from the guest.
    pub fn move_bytes(&mut self, session: SessionId, link: &mut Link) -> Result<()> {
        self.source.feed(session, link)?;
        for stream in [Stream::Stdout, Stream::Stderr] {
            match self.sinks[stream as usize].flush() {
                Written::Bytes(bytes) => {
                    let owed = &mut self.owed[stream as usize];
                    *owed += bytes;
                    if *owed >= CREDIT_STEP {
                        let bytes = std::mem::take(owed);
                        link.send(&ToGuest::Credit { session, stream, bytes })?;
                    }
                }
                Written::Closed => link.send(&ToGuest::CloseOutput { session, stream })?,
                Written::Failed(why) => self.failure = Some(why),
            }
        }
        Ok(())
    }

    /// It has ended. What it wrote before reaches its destination first, however long its readers take.
    pub fn end(mut self, outcome: Outcome, usage: Usage) -> Finished {
        for sink in &mut self.sinks {
            if let Some(why) = sink.flush_all() {
                self.failure = Some(why);
            }
        }
        let outcome = match self.failure {
            Some(why) => Outcome::MachineDied(fail("output", why)),
            None if self.deadlines.timed_out() => Outcome::TimedOut,
            None => outcome,
        };
        let captured = self.sinks.map(Sink::into_captured);
        let duration = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        Finished { outcome, usage, duration, captured }
    }
}
