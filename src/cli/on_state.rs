//! What all commands about a host's state take, and how they print.

use std::path::PathBuf;

use serde::Serialize;

use super::CliError;
use super::host::state_dir;
use crate::host::StateDir;

/// What was typed.
#[derive(Debug, clap::Args)]
pub(super) struct OnState {
    /// The host's state, if it was started with --state-dir
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

impl OnState {
    pub(super) fn open(self) -> Result<StateDir, CliError> {
        StateDir::open(&state_dir(self.state_dir)?).map_err(CliError::system)
    }
}

/// Says on standard error what in the files of keys and tickets lets nobody in although it stands there.
pub(super) fn warn_of(state: &StateDir) {
    for problem in state.problems() {
        eprintln!("wormhole: {problem}");
    }
}

pub(super) fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    println!("{}", serde_json::to_string(value).map_err(CliError::system)?);
    Ok(())
}
