//! Why an option cannot be taken, in words that name it and say what is allowed.

/// What is wrong with an option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error(
        "mount option `{0}` is unknown: see `wormhole mount --help`, or have unknown options ignored with `--sloppy`"
    )]
    Unknown(String),
    /// The option exists, its value does not.
    #[error("mount option `{name}={value}`: allowed is {allowed}")]
    BadValue {
        /// The option, as it was typed.
        name: String,
        /// The value, as it was typed.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The option needs a value and has none.
    #[error("mount option `{name}` needs a value: {allowed}")]
    MissingValue {
        /// The option, as it was typed.
        name: String,
        /// What it may be.
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
    /// Promised for a later version.
    #[error("mount option `{option}` is not available in this version: {instead}")]
    NotAvailable {
        /// The option, with its value if that is the point.
        option: String,
        /// What to do instead.
        instead: &'static str,
    },
    /// Would give others power over this machine.
    #[error("mount option `{0}` is for root: without it the mount is safe to use")]
    OnlyRoot(String),
    /// A quote was opened and not closed.
    #[error("mount options `{0}`: a double quote is not closed")]
    OpenQuote(String),
    /// Nobody of that name on this machine.
    #[error("mount option `{name}={value}`: there is no such {kind} on this machine, and it is not a number")]
    NoSuchName {
        /// The option, as it was typed.
        name: String,
        /// The name that was looked for.
        value: String,
        /// `user` or `group`.
        kind: &'static str,
    },
}
