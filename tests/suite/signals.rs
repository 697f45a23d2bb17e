//! Signals and terminals: what reaches the command, and what our own terminal looks like after.

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};

use crate::support::{Place, Ran, on_every_machine, ready, require, send, under};

/// After this long something that should have happened did not.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn signals_are_passed_on_and_the_command_decides() {
    on_every_machine(|place| {
        for (signal, name) in [
            (Signal::SIGINT, "INT"),
            (Signal::SIGTERM, "TERM"),
            (Signal::SIGHUP, "HUP"),
            (Signal::SIGQUIT, "QUIT"),
        ] {
            let script = format!(
                "trap 'echo got {name}; exit 7' {name}; echo ready; while :; do sleep 1000 & wait; done"
            );
            let (child, mut stdout) = ready(place, &["--shell", "bash {0}"], &script);
            send(&child, signal);
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, format!("got {name}\n"));
            Ran::from(child.wait_with_output().unwrap()).ended_with(7);
        }
        place.assert_nothing_left();
    });
}

#[test]
fn a_signal_that_is_not_caught_ends_the_command_with_128_plus_its_number() {
    on_every_machine(|place| {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            let (child, _stdout) = ready(place, &[], "echo ready; exec sleep 1000");
            send(&child, signal);
            let ran = Ran::from(child.wait_with_output().unwrap()).ended_with(128 + signal as i32);
            ran.says(signal.as_str());
        }
    });
}

#[test]
fn a_second_interrupt_kills() {
    on_every_machine(|place| {
        let script = "trap 'echo interrupted' INT; echo ready; while :; do sleep 1000 & wait; done";
        let (child, mut stdout) = ready(place, &["--shell", "bash {0}"], script);
        send(&child, Signal::SIGINT);
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "interrupted\n");
        send(&child, Signal::SIGINT);
        Ran::from(child.wait_with_output().unwrap()).ended_with(137).says("SIGKILL");
        place.assert_nothing_left();
    });
}

#[test]
fn a_signal_during_the_boot_ends_the_run() {
    require!(uml);
    let place = Place::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut command = place.sekexe(["exec", "sleep 1000"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The kernel's process exists as soon as its file does; the boot takes longer than that.
        let begun = Instant::now();
        while std::fs::read_dir(place.path("tmp")).unwrap().next().is_none() {
            assert!(begun.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        send(&child, signal);
        let ran = Ran::from(child.wait_with_output().unwrap());
        // On a busy machine the command may have been running when it came.
        let expected = [125, 128 + signal as i32];
        assert!(expected.contains(&ran.status), "{} {}", ran.status, ran.stderr);
        ran.says(signal.as_str());
        place.assert_nothing_left();
    }
}

/// Our program on a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
    /// The program's end, to look at its settings.
    device: File,
    /// What they were before the program started.
    before: Termios,
}

impl Terminal {
    fn open(mut command: Command, size: (u16, u16)) -> Self {
        let size = Winsize { ws_row: size.0, ws_col: size.1, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).unwrap();
        let before = tcgetattr(&pair.slave).unwrap();
        let end = || Stdio::from(pair.slave.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let keyboard = File::from(pair.master);
        let mut output = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                let _ = sender.send(buffer[..n].to_vec());
            }
        });
        Self { child, keyboard, screen, seen: String::new(), device: File::from(pair.slave), before }
    }

    fn shell(place: &Place, size: (u16, u16)) -> Self {
        let mut command = place.sekexe(["shell"]);
        command.env("TERM", "dumb");
        Self::open(command, size)
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the screen shows this, and forgets everything up to it.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                let before = self.seen[..at].to_owned();
                self.seen.drain(..at + text.len());
                return before;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(why) => panic!("no {text:?} ({why}) on: {:?}", self.seen),
            }
        }
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.device).unwrap()
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        set_size(self.device.as_fd(), &size);
        // The terminal is not the controlling one of our program, so the system tells nobody.
        send(&self.child, Signal::SIGWINCH);
    }

    fn end(mut self) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap();
            }
            let shown: Vec<u8> = self.screen.try_iter().flatten().collect();
            self.seen.push_str(&String::from_utf8_lossy(&shown));
            assert!(Instant::now() < end, "it does not end: {:?}", self.seen);
            std::thread::yield_now();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that failed must not leave a shell behind.
        let _ = self.child.kill();
    }
}

fn set_size(terminal: BorrowedFd<'_>, size: &libc::winsize) {
    let program = ["rows", &size.ws_row.to_string(), "cols", &size.ws_col.to_string()].map(str::to_owned);
    let device = terminal.try_clone_to_owned().unwrap();
    assert!(Command::new("stty").args(program).stdin(Stdio::from(device)).status().unwrap().success());
}

#[test]
fn the_shell_has_a_terminal_with_job_control_and_leaves_ours_as_it_was() {
    on_every_machine(|place| {
        let mut terminal = Terminal::shell(place, (33, 99));
        let before = terminal.before.clone();
        terminal.press("echo $((40 + 2)) up\n");
        let banner = terminal.expect("42 up");
        assert!(!banner.contains("no job control") && !banner.contains("cannot set terminal"), "{banner}");
        assert!(!terminal.settings().local_flags.contains(LocalFlags::ICANON), "our terminal is not raw");

        terminal.press("tty; stty size; id -u; echo en''d\n");
        let answer = terminal.expect("\nend");
        assert!(
            answer.contains("/dev/pts/") && answer.contains("33 99") && answer.contains("\n0\r"),
            "{answer}"
        );

        // A stopped job, brought back and interrupted, as only job control can.
        terminal.press(
            "sh -c 'trap \"echo wo\"\"ken\" CONT; echo be\"\"gun; while :; do sleep 1000 & wait; done'\n",
        );
        terminal.expect("\nbegun");
        terminal.press("\x1a");
        terminal.expect("Stopped");
        terminal.press("fg\n");
        terminal.expect("\nwoken");
        terminal.press("\x03");
        terminal.expect("# ");
        terminal.press("echo status $?\n");
        terminal.expect("status 130");
        terminal.expect("# ");

        terminal.press("exit 43\n");
        let device = terminal.device.try_clone().unwrap();
        assert_eq!(terminal.end(), 43);
        let after = tcgetattr(&device).unwrap();
        assert_eq!(after.local_flags, before.local_flags);
        assert_eq!((after.input_flags, after.output_flags), (before.input_flags, before.output_flags));
        place.assert_nothing_left();
    });
}

#[test]
fn a_new_window_size_reaches_the_program() {
    on_every_machine(|place| {
        let mut terminal = Terminal::shell(place, (24, 80));
        // Not a trap of the interactive bash, which forgets its input when one interrupts its prompt.
        let watch = "sh -c 'trap \"stty size; exit\" WINCH; echo rea\"\"dy; while :; do sleep 0.1; done'\n";
        terminal.press(watch);
        terminal.expect("\nready");
        terminal.resize(50, 132);
        terminal.expect("\n50 132");
        terminal.press("exit\n");
        assert_eq!(terminal.end(), 0);
    });
}

#[test]
fn an_interrupt_key_meets_the_foreground_program_only() {
    on_every_machine(|place| {
        let mut terminal = Terminal::shell(place, (24, 80));
        // A program whose answer cannot be taken for the echo of what it is sent: a terminal writes a
        // line and its end separately, and may echo a key in between.
        terminal.press("sleep 1000 & echo st''arted; sed --unbuffered s/asked/answered/\n");
        terminal.expect("\nstarted");
        terminal.press("asked\n");
        terminal.expect("answered");
        terminal.press("\x03");
        terminal.expect("# ");
        terminal.press("jobs; echo do''ne\n");
        let jobs = terminal.expect("\ndone");
        assert!(jobs.contains("Running"), "{jobs}");
        terminal.expect("# ");
        terminal.press("\x04");
        assert_eq!(terminal.end(), 0);
    });
}

#[test]
fn the_terminal_is_restored_when_the_shell_is_told_to_end() {
    on_every_machine(|place| {
        let mut terminal = Terminal::shell(place, (24, 80));
        let before = terminal.before.clone();
        terminal.press("echo $((40 + 2)) up\n");
        terminal.expect("42 up");
        send(&terminal.child, Signal::SIGHUP);
        let device = terminal.device.try_clone().unwrap();
        assert_ne!(terminal.end(), 0);
        assert_eq!(tcgetattr(&device).unwrap().local_flags, before.local_flags);
        place.assert_nothing_left();
    });
}

#[test]
fn a_shell_needs_a_terminal() {
    let place = Place::new();
    let ran = Ran::from(place.sekexe(["shell"]).output().unwrap()).ended_with(125);
    ran.says("terminal").says("exec -");
}

#[test]
fn exec_on_a_terminal_interrupts_by_key() {
    on_every_machine(|place| {
        let command = place.sekexe(["exec", "echo rea''dy; exec sleep 1000"]);
        // A session of its own, so that the terminal can be its controlling one.
        let mut terminal = Terminal::open(under(&["setsid", "--ctty", "--wait"], &command), (24, 80));
        terminal.expect("ready");
        terminal.press("\x03");
        terminal.expect("SIGINT");
        assert_eq!(terminal.end(), 130);
    });
}
