//! `wormhole cache`: what is cached, whether it is sound, and what shall be or stay there.

mod directory;
mod mounted;

use std::path::{Path, PathBuf};

pub(super) use mounted::place_of;

use super::CliError;
use crate::config::{Environment, Size};

/// What was typed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show what is cached and what is pinned
    Stat(In),
    /// Read everything that is cached and check it against its hashes
    Verify(In),
    /// Bring a file or a folder of a mount into the cache, without disturbing who reads
    Warm {
        /// File or folder on a mount
        path: PathBuf,
    },
    /// Bring a file or a folder of a mount into the cache and keep it there
    ///
    /// What is there now is kept, whatever else is read, until it is unpinned; a file that changes later is not. Pinning
    /// the same path again takes in what has changed.
    Pin {
        /// File or folder on a mount
        path: PathBuf,
    },
    /// Take a pin back; its content stays until room is needed
    Unpin {
        /// File or folder on a mount, or a name that `stat` lists
        path: PathBuf,

        #[command(flatten)]
        directory: In,
    },
    /// Remove everything that is cached, but what is pinned
    Clear {
        /// Remove what is pinned, too
        #[arg(long)]
        pins: bool,

        #[command(flatten)]
        directory: In,
    },
    /// Remove what a crash left and what is of no use
    Gc {
        /// Make the cache as small as this, too: in bytes, with K, M, G or T, or in percent of the disk
        #[arg(long, value_name = "SIZE", value_parser = size)]
        cache_size: Option<Size>,

        #[command(flatten)]
        directory: In,
    },
}

/// Which cache.
#[derive(Debug, clap::Args)]
struct In {
    /// The cache's directory, if mounts were given one
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

impl In {
    fn directory(&self) -> Result<PathBuf, CliError> {
        match &self.cache_dir {
            Some(directory) => Ok(directory.clone()),
            None => Environment::of_process().cache_dir().map_err(CliError::usage),
        }
    }
}

fn size(text: &str) -> Result<Size, String> {
    Size::parse(text).ok_or_else(|| "a number with K, M, G or T behind it, or with %".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let json = arguments.json;
    match &arguments.action {
        Action::Stat(from) => directory::stat(&from.directory()?, json),
        Action::Verify(from) => directory::verify(&from.directory()?, json),
        Action::Warm { path } => mounted::warm(path, false, json),
        Action::Pin { path } => mounted::warm(path, true, json),
        Action::Unpin { path, directory } => unpin(path, directory, json),
        Action::Clear { pins, directory } => directory::clear(&directory.directory()?, *pins, json),
        Action::Gc { cache_size, directory } => directory::gc(&directory.directory()?, *cache_size, json),
    }
}

/// By its name where that is known, else by a path on a mount, whose own cache it then is.
fn unpin(typed: &Path, from: &In, json: bool) -> Result<(), CliError> {
    let name = typed.to_string_lossy();
    let root = from.directory()?;
    if directory::is_pinned(&root, &name) {
        return directory::unpin(&root, &name, json);
    }
    match place_of(typed) {
        Ok(place) => {
            let own = place.cache_dir().filter(|_| from.cache_dir.is_none());
            directory::unpin(&own.unwrap_or(root), &place.name(), json)
        }
        // Not on a mount: then it was meant as a name.
        Err(_) => directory::unpin(&root, &name, json),
    }
}
