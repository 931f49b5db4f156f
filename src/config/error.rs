//! Errors of options. They name the option and the allowed values.

/// Error of a mount option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The option does not exist.
    #[error(
        "mount option `{0}` is unknown: see `wormhole mount --help`, or have unknown options ignored with `--sloppy`"
    )]
    Unknown(String),
    /// The value is not allowed.
    #[error("mount option `{name}={value}`: allowed is {allowed}")]
    BadValue {
        /// The option, as it was typed.
        name: String,
        /// The value, as it was typed.
        value: String,
        /// Allowed values.
        allowed: &'static str,
    },
    /// The option needs a value and has none.
    #[error("mount option `{name}` needs a value: {allowed}")]
    MissingValue {
        /// The option, as it was typed.
        name: String,
        /// Allowed values.
        allowed: &'static str,
    },
    /// The option takes no value and has one.
    #[error("mount option `{name}` takes no value, but has `{value}`")]
    UnexpectedValue {
        /// The option, as it was typed.
        name: String,
        /// The value, as it was typed.
        value: String,
    },
    /// The option is planned for a later version.
    #[error("mount option `{option}` is not available in this version: {instead}")]
    NotAvailable {
        /// The option, with its value if that matters.
        option: String,
        /// Alternative.
        instead: &'static str,
    },
    /// The option would give others power over this machine.
    #[error("mount option `{0}` is for root: without it the mount is safe to use")]
    OnlyRoot(String),
    /// A quote is not closed.
    #[error("mount options `{0}`: a double quote is not closed")]
    OpenQuote(String),
    /// No user or group of that name exists on this machine.
    #[error("mount option `{name}={value}`: there is no such {kind} on this machine, and it is not a number")]
    NoSuchName {
        /// The option, as it was typed.
        name: String,
        /// The name.
        value: String,
        /// `user` or `group`.
        kind: &'static str,
    },
}
