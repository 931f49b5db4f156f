//! `wormhole completions`: what a shell needs to complete command lines.

use std::io::{self, Write};

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::{Cli, CliError};

/// What was typed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which shell's language to print
    #[arg(value_enum)]
    shell: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let shell = match arguments.shell {
        Kind::Bash => Shell::Bash,
        Kind::Zsh => Shell::Zsh,
        Kind::Fish => Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut without_hidden(&Cli::command()), "wormhole", &mut text);
    match io::stdout().write_all(&text) {
        // Who reads no further has what he wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::system(error)),
        _ => Ok(()),
    }
}

/// The same command line without the commands that are not for people, which the generators would show.
fn without_hidden(full: &clap::Command) -> clap::Command {
    let shown = full.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("wormhole")
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .args(full.get_arguments().cloned())
        .subcommands(shown)
}
