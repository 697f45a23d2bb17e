//! What the machine prints on its console: the kernel's messages and the init's.
//!
//! It never mixes with a command's output. The last lines are kept, for the moment when the
//! machine dies; all of it goes to a file if one is wanted.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;

use nix::unistd::read;

use crate::machine::Machine;

/// Lines kept.
const KEPT: usize = 40;
/// Longest line kept, in bytes: a guest must not fill the host's memory.
const LONGEST: usize = 1024;
/// What the kernel says when it gives up.
const PANIC: &str = "Kernel panic - not syncing: ";

/// The console's reader.
#[derive(Default)]
pub struct Console {
    log: Option<File>,
    log_failure: Option<std::io::Error>,
    lines: VecDeque<String>,
    partial: Vec<u8>,
    closed: bool,
}

impl Console {
    /// Copies everything to `log` as well.
    pub fn new(log: Option<File>) -> Self {
        Self { log, ..Self::default() }
    }

    /// Whether more may come.
    pub fn is_open(&self) -> bool {
        !self.closed
    }

    /// Reads what is there. Returns whether there was something.
    pub fn read(&mut self, machine: &Machine) -> bool {
        let mut buffer = [0; 16 << 10];
        match read(&machine.console, &mut buffer) {
            Ok(0) => self.closed = true,
            Ok(n) => {
                self.take(&buffer[..n]);
                return true;
            }
            Err(_) => {}
        }
        false
    }

    /// Reads the rest, after the machine ended.
    pub fn finish(&mut self, machine: &Machine) {
        while !self.closed && self.read(machine) {}
    }

    /// The last lines, oldest first.
    pub fn last_lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// Why the log is not complete, if it is not.
    pub fn log_failure(&self) -> Option<&std::io::Error> {
        self.log_failure.as_ref()
    }

    /// The kernel's own words for why it stopped, if it said.
    pub fn panic_message(&self) -> Option<String> {
        let words = self.lines.iter().find_map(|line| line.split_once(PANIC))?.1;
        Some(format!("kernel panic: {}", words.trim()))
    }

    fn take(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log
            && let Err(error) = log.write_all(bytes)
        {
            self.log = None;
            self.log_failure = Some(error);
        }
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
                self.partial.clear();
                if self.lines.len() == KEPT {
                    self.lines.pop_front();
                }
                self.lines.push_back(line);
            } else if self.partial.len() < LONGEST {
                self.partial.push(byte);
            }
        }
    }
}

/// What a guest's last lines mean where they do not say it themselves, and what to try.
pub fn meaning(last_lines: &[String]) -> Option<&'static str> {
    let has = |words| last_lines.iter().any(|line| line.contains(words));
    let is_about_registers = has("put_fp_registers") || has("set fp regs failed");
    is_about_registers.then_some(
        "a kernel before Linux 6.13 starts no process on a CPU with AMX; those of `sekexe-ci kernel build` do",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_a_panic_is_found() {
        let mut console = Console::default();
        for n in 0..100 {
            console.take(format!("line {n}\r\n").as_bytes());
        }
        console.take(b"[ 0.1] Kernel panic - not syncing: no ");
        console.take(b"init\nEnd\n");
        assert_eq!(console.last_lines().count(), KEPT);
        assert_eq!(console.last_lines().next(), Some("line 62"));
        assert_eq!(console.panic_message().as_deref(), Some("kernel panic: no init"));
    }

    #[test]
    fn a_kernel_too_old_for_the_cpu_is_known_by_its_words() {
        let lines = |line: &str| vec!["Modules linked in:".to_owned(), line.to_owned()];
        assert!(meaning(&lines(" [<6004b1ca>] ? put_fp_registers+0x10/0x12")).unwrap().contains("AMX"));
        assert_eq!(meaning(&lines(" [<60048839>] userspace+0xab/0x570")), None);
    }

    #[test]
    fn an_endless_line_does_not_fill_memory() {
        let mut console = Console::default();
        console.take(&vec![b'x'; 10 * LONGEST]);
        assert_eq!(console.partial.len(), LONGEST);
    }
}
