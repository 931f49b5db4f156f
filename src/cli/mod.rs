//! One file a command: what was typed, nothing more.
//!
//! Each file has `Arguments`, as clap reads them, and `run`, which turns them into a configuration, lets the library
//! work, and says what came of it. The conventions of mount(8) decide the exit code.

mod argv;
mod cache;
mod completions;
mod daemons;
mod demo;
mod doctor;
mod host;
mod index_progress;
mod key;
mod logging;
mod man;
mod mount;
mod mount_daemon;
mod mountpoint;
mod on_state;
mod pair;
mod progress;
mod rest;
mod status;
mod sum;
mod sync;
mod threads;
mod umount;
mod words;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Environment;
use crate::proto::words as peer_words;
use crate::transport::ticket::{without_pieces_of_tickets, without_tickets};

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
    /// Check what this machine offers, and whether a host can be reached
    Doctor(doctor::Arguments),
    /// Look after what is cached: warm, pin, verify, tidy up
    Cache(cache::Arguments),
    /// Print BLAKE3 sums of files on a mount without transferring them
    Sum(sum::Arguments),
    /// Wait until the host's disk has everything that was written on a mount
    Sync(sync::Arguments),
    /// Show and revoke the keys that may connect to this host
    Key(key::Arguments),
    /// Make, list and revoke join tickets
    Pair(pair::Arguments),
    /// Host, mount and read sample files on this machine, and show what happened
    Demo(demo::Arguments),
    /// Print what a shell needs to complete command lines
    Completions(completions::Arguments),
    /// Print a manual page, or write all of them; for packagers
    #[command(hide = true)]
    Man(man::Arguments),
    /// What `mount` leaves behind
    #[command(name = mount_daemon::NAME, hide = true)]
    MountDaemon(mount_daemon::Arguments),
    /// What `mount` and `status` have look at a mount that may hang
    #[command(name = mountpoint::PROBE, hide = true)]
    MountProbe(mountpoint::ProbeArguments),
}

impl Command {
    /// Where the log goes, if not to standard error.
    fn log_file(&self) -> Option<&Path> {
        match self {
            Self::MountDaemon(arguments) => arguments.log_file.as_deref(),
            _ => None,
        }
    }
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
        Self { exit_code: 1, message: one_line(&message.to_string()) }
    }

    /// The system refuses: 2.
    pub fn system(message: impl fmt::Display) -> Self {
        Self { exit_code: 2, message: one_line(&message.to_string()) }
    }

    /// Mounting or unmounting failed: 32.
    pub fn mount(message: impl fmt::Display) -> Self {
        Self { exit_code: 32, message: one_line(&message.to_string()) }
    }
}

/// Longest message to people, in characters.
const MESSAGE_CHARS_MAX: usize = 4_000;

/// What may be said on a terminal: one line without anything that a terminal obeys, and without tickets. Other programs' words,
/// which some errors contain, may end in a newline or have several.
fn one_line(text: &str) -> String {
    let joined = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    peer_words::line(&without_tickets(&joined), MESSAGE_CHARS_MAX).into_owned()
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Runs the command that was typed and says how the process ends.
pub fn main() -> ExitCode {
    if let Err(error) = argv::hide_ticket() {
        eprintln!("wormhole: {error}");
        return ExitCode::from(error.exit_code);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage_or_help(&error),
    };
    let outcome =
        logging::start(cli.verbose, cli.command.log_file()).and_then(|()| run(cli.command, cli.verbose));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wormhole: {error}");
            ExitCode::from(error.exit_code)
        }
    }
}

fn run(command: Command, verbose: u8) -> Result<(), CliError> {
    match command {
        Command::Host(arguments) => host::run(arguments),
        Command::Mount(arguments) => mount::run(&arguments, verbose),
        Command::Umount(arguments) => umount::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
        Command::Cache(arguments) => cache::run(&arguments),
        Command::Sum(arguments) => sum::run(&arguments),
        Command::Sync(arguments) => sync::run(&arguments),
        Command::Key(arguments) => key::run(arguments),
        Command::Pair(arguments) => pair::run(arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
        Command::MountDaemon(arguments) => mount_daemon::run(&arguments),
        Command::MountProbe(arguments) => mountpoint::run_probe(&arguments),
    }
}

/// clap's own exit code for a wrong command line is 2, which mount(8) keeps for the system; and its words are many lines.
fn usage_or_help(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // The stream being closed already leaves nobody to tell.
        let _ = error.print();
        return if error.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
    }
    let text = error.to_string();
    let words: Vec<_> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    // The arguments are in disorder: any of them may be a piece of a ticket.
    let words = one_line(&without_pieces_of_tickets(&words.join(" ")));
    eprintln!("wormhole: {}; --help shows what there is", words.trim_start_matches("error: "));
    ExitCode::from(1)
}

/// Where control sockets may be: this user's, and for root everybody's.
fn control_directories() -> Vec<PathBuf> {
    let environment = Environment::of_process();
    let mut directories = vec![environment.control_dir()];
    if environment.is_root() {
        let entries = std::fs::read_dir("/run/user").into_iter().flatten();
        directories.extend(entries.flatten().map(|entry| entry.path().join("wormhole")));
    }
    directories
}

/// Whether a program can be found as the shell would.
fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}
