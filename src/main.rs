//! Parses, calls the library, turns the result into an exit status; nothing else. Under another
//! name it is the init of a namespaces machine.

use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use sekexe_ci::cli::Cli;
use sekexe_ci::commands;
use sekexe_ci::machine::INIT_NAME;
use sekexe_ci::report::status;

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name.as_bytes() == INIT_NAME.to_bytes()) {
        sekexe_init::main();
        return ExitCode::FAILURE;
    }
    match Cli::parse_typed() {
        Ok(cli) => commands::run(&cli).into(),
        Err(error) => {
            // Help and version are asked for and are no failure.
            let failed = error.use_stderr();
            let _ = error.print();
            if !failed {
                return ExitCode::SUCCESS;
            }
            commands::tell_of_bad_usage(&error.to_string());
            status::OURS.into()
        }
    }
}
