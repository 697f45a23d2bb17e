//! When a command that does not end is told to, is killed, and is given up with its machine.
//!
//! Each step gives the command some time to follow it. The last one is for a guest that cannot even
//! kill: its machine is ended from outside.

use std::time::{Duration, Instant};

/// How long a command has between being told to end and being killed.
const TERMINATION_GRACE: Duration = Duration::from_secs(10);
/// How long a killed command has before the machine is ended.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// What has to be done about a command now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Its time is up: tell it to end.
    Terminate,
    /// It was told, and did not.
    Kill,
    /// It was killed, and still did not: end the machine.
    GiveUp,
}

/// The deadlines of one command.
#[derive(Debug)]
pub struct Deadlines {
    timeout: Option<Duration>,
    terminate: Option<Instant>,
    kill: Option<Instant>,
    give_up: Option<Instant>,
    timed_out: bool,
}

impl Deadlines {
    /// Those of a command that may take so long once it has started.
    pub fn new(timeout: Option<Duration>) -> Self {
        Self { timeout, terminate: None, kill: None, give_up: None, timed_out: false }
    }

    /// The command has started.
    pub fn start(&mut self, now: Instant) {
        self.terminate = self.timeout.map(|timeout| now + timeout);
    }

    /// Somebody else had it killed. Doing so again gives it no more time.
    pub fn was_killed(&mut self, now: Instant) {
        self.give_up.get_or_insert(now + KILL_GRACE);
    }

    /// What is to be done now; each step is said once, but for the last.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        let passed = |deadline: &mut Instant| now >= *deadline;
        if self.give_up.is_some_and(|deadline| now >= deadline) {
            Some(Due::GiveUp)
        } else if self.kill.take_if(passed).is_some() {
            self.was_killed(now);
            Some(Due::Kill)
        } else if self.terminate.take_if(passed).is_some() {
            self.timed_out = true;
            self.kill = Some(now + TERMINATION_GRACE);
            Some(Due::Terminate)
        } else {
            None
        }
    }

    /// When to ask again.
    pub fn next(&self) -> Option<Instant> {
        [self.terminate, self.kill, self.give_up].into_iter().flatten().min()
    }

    /// Whether its time was up.
    pub fn timed_out(&self) -> bool {
        self.timed_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);
    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn a_command_that_ignores_everything_is_told_then_killed_then_given_up() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(Some(TIMEOUT));
        assert_eq!((deadlines.next(), deadlines.due(start + TIMEOUT)), (None, None), "it has not started");
        deadlines.start(start);
        let mut at = start;
        for (after, due) in
            [(TIMEOUT, Due::Terminate), (TERMINATION_GRACE, Due::Kill), (KILL_GRACE, Due::GiveUp)]
        {
            at += after;
            assert_eq!(deadlines.next(), Some(at));
            assert_eq!(deadlines.due(at - MOMENT), None, "{due:?} too early");
            assert_eq!(deadlines.due(at), Some(due));
        }
        assert_eq!(deadlines.due(at + MOMENT), Some(Due::GiveUp));
        assert!(deadlines.timed_out());
    }

    #[test]
    fn a_command_killed_by_somebody_else_is_given_up_without_having_timed_out() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(None);
        deadlines.start(start);
        assert_eq!(deadlines.next(), None);
        deadlines.was_killed(start);
        deadlines.was_killed(start + MOMENT);
        assert_eq!(deadlines.next(), Some(start + KILL_GRACE));
        assert_eq!(deadlines.due(start + KILL_GRACE), Some(Due::GiveUp));
        assert!(!deadlines.timed_out());
    }
}
