//! Parses, calls the library, turns the result into an exit status; nothing else.

use std::process::ExitCode;

use clap::Parser;
use sekexe_ci::cli::Cli;
use sekexe_ci::commands;
use sekexe_ci::report::status;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => commands::run(&cli).into(),
        Err(error) => {
            // Help and version are asked for and are no failure.
            let failed = error.use_stderr();
            let _ = error.print();
            if failed { status::OURS.into() } else { ExitCode::SUCCESS }
        }
    }
}
