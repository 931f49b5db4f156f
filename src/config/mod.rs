//! What was typed, turned into what it means; bad values die here.
//!
//! [`MountOptions::parse`] reads `-o` lists, with the names people bring from mount(8), NFS, sshfs and libfuse.
//! [`Environment`] knows where files belong when nobody says.

mod environment;
mod error;
mod options;
mod resolve;
mod units;
mod words;

pub use environment::{Environment, NoHome, Side};
pub use error::OptionError;
pub use options::{
    Accounts, AttributeTimes, CacheMode, CacheOptions, HostOptions, KernelOptions, LocalAccounts,
    MountOptions, Ownership, Parsed, Patience, Start, TransferOptions, Visibility,
};
pub use resolve::{ConfigError, Places, mount_config};
pub use units::Size;
