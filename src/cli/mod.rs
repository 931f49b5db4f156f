//! One file a command: what was typed, nothing more.
//!
//! Each file has `Arguments`, as clap reads them, and `run`, which turns them into a configuration, lets the library
//! work, and says what came of it. The conventions of mount(8) decide the exit code.

mod demo;
mod host;
mod key;
mod mount;
mod pair;
mod status;
mod sum;
mod umount;

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Mounts a folder of another machine so that it feels local.
#[derive(Debug, Parser)]
#[command(name = "wormhole", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a folder to other machines
    Host(host::Arguments),
    /// Mount a folder of another machine
    Mount(mount::Arguments),
    /// Take a mount down, or give up on a dead one
    Umount(umount::Arguments),
    /// Show what the mounts and hosts of this machine are doing
    Status(status::Arguments),
    /// Print BLAKE3 sums of files on a mount without transferring them
    Sum(sum::Arguments),
    /// Show and revoke the keys that may connect to this host
    Key(key::Arguments),
    /// Make, list and revoke join tickets
    Pair(pair::Arguments),
    /// Host, mount and read sample files on this machine, and show what happened
    Demo(demo::Arguments),
}

/// Why a command ends without success, and with which exit code.
#[derive(Debug)]
pub struct CliError {
    exit_code: u8,
    message: String,
}

impl CliError {
    /// The command line is wrong: 1.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { exit_code: 1, message: message.to_string() }
    }

    /// The system refuses: 2.
    pub fn system(message: impl fmt::Display) -> Self {
        Self { exit_code: 2, message: message.to_string() }
    }

    /// Mounting or unmounting failed: 32.
    pub fn mount(message: impl fmt::Display) -> Self {
        Self { exit_code: 32, message: message.to_string() }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Runs the command that was typed and says how the process ends.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage_or_help(&error),
    };
    start_logging(cli.verbose);
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wormhole: {error}");
            ExitCode::from(error.exit_code)
        }
    }
}

fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Host(arguments) => host::run(arguments),
        Command::Mount(arguments) => mount::run(arguments),
        Command::Umount(arguments) => umount::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Sum(arguments) => sum::run(&arguments),
        Command::Key(arguments) => key::run(arguments),
        Command::Pair(arguments) => pair::run(arguments),
        Command::Demo(arguments) => demo::run(arguments),
    }
}

/// clap's own exit code for a wrong command line is 2, which mount(8) keeps for the system.
fn usage_or_help(error: &clap::Error) -> ExitCode {
    let wrong = error.use_stderr();
    // The stream being closed already leaves nobody to tell.
    let _ = error.print();
    if wrong { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

/// Logs go to standard error: warnings, with `-v` what happens, with `-vv` all of it; `WORMHOLE_LOG` overrides.
fn start_logging(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "wormhole=info,warn",
        _ => "wormhole=debug,info",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("WORMHOLE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
