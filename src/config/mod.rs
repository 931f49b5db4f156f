//! Options and their meaning. Bad values are refused here.
//!
//! [`MountOptions::parse`] reads `-o` lists, with option names known from mount(8), NFS, sshfs and libfuse.
//! [`Environment`] knows the default places of files.

mod environment;
mod error;
mod id_files;
mod option_list;
mod options;
mod resolve;
mod units;

pub use environment::{Environment, NoHome, Side};
pub use error::OptionError;
pub use id_files::{IdMapError, LineError};
pub use options::{
    Accounts, AttributeTimes, CacheMode, CacheOptions, HostOptions, IdMapKind, KernelOptions, LocalAccounts,
    LocalLocks, MountOptions, OPTION_FAMILIES, OPTIONS_FOR_OTHERS, OptionEntry, OptionFamily, Ownership,
    Parsed, Start, Timeouts, TransferOptions, Visibility, options_not_yet, options_without_effect,
};
pub use resolve::{ConfigError, MountTarget, mount_config};
pub use units::Size;
