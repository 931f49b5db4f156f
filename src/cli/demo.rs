//! `wormhole demo`.

use super::CliError;

/// What was typed.
#[derive(Debug, clap::Args)]
pub struct Arguments {}

pub(super) fn run(_arguments: Arguments) -> Result<(), CliError> {
    Err(CliError::system("not there yet"))
}
