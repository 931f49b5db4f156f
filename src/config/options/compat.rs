//! Options that are accepted without effect, each with the reason, and options that are planned for later.

use crate::config::OptionError;
use crate::config::option_list::RawOption;

/// Value that an option takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ValueKind {
    Nothing,
    Number,
}

/// Options for mount(8), systemd or a desktop. They are ignored without a remark, and so are names that begin
/// with `x-`.
pub const OPTIONS_FOR_OTHERS: &[&str] = &[
    "_netdev", "_rnetdev", "nofail", "noauto", "auto", "user", "users", "nouser", "owner", "noowner",
    "group", "nogroup", "defaults", "comment", "helper", "uhelper", "silent", "loud",
];

/// Options that are common elsewhere and have no effect here, each with the reason.
const WITHOUT_EFFECT: &[(&str, ValueKind, &str)] = &[
    ("atime", ValueKind::Nothing, ACCESS_TIMES),
    ("noatime", ValueKind::Nothing, ACCESS_TIMES),
    ("diratime", ValueKind::Nothing, ACCESS_TIMES),
    ("nodiratime", ValueKind::Nothing, ACCESS_TIMES),
    ("relatime", ValueKind::Nothing, ACCESS_TIMES),
    ("norelatime", ValueKind::Nothing, ACCESS_TIMES),
    ("strictatime", ValueKind::Nothing, ACCESS_TIMES),
    ("nostrictatime", ValueKind::Nothing, ACCESS_TIMES),
    ("lazytime", ValueKind::Nothing, ACCESS_TIMES),
    ("nolazytime", ValueKind::Nothing, ACCESS_TIMES),
    ("async", ValueKind::Nothing, "programs that need to wait for the disk call fsync"),
    ("mand", ValueKind::Nothing, LOCKS),
    ("nomand", ValueKind::Nothing, LOCKS),
    ("intr", ValueKind::Nothing, INTERRUPTIBLE),
    ("nointr", ValueKind::Nothing, INTERRUPTIBLE),
    ("reconnect", ValueKind::Nothing, "a lost connection is always made again"),
    ("rsize", ValueKind::Number, REQUEST_SIZES),
    ("wsize", ValueKind::Number, REQUEST_SIZES),
];

const ACCESS_TIMES: &str = "reading never changes access times";
const REQUEST_SIZES: &str = "the size of requests follows the program and the link";
const LOCKS: &str = "the kernel has no mandatory locks any more";
const INTERRUPTIBLE: &str = "every operation can be interrupted";

/// Options planned for later, with the value that is refused (any if empty), and an alternative.
const NOT_YET: &[(&str, &str, &str)] = &[
    ("remount", "", "unmount and mount again"),
    ("bwlimit", "", "limit the host's sending instead"),
    ("sync", "", SYNCHRONOUS),
    ("dirsync", "", SYNCHRONOUS),
];

const SYNCHRONOUS: &str = "open files with O_SYNC, or call fsync";

/// Refuses options that are planned for later.
pub(super) fn refuse_not_yet(option: &RawOption) -> Result<(), OptionError> {
    let is_meant = |&&(name, value, _): &&(&str, &str, &str)| {
        option.name == name && (value.is_empty() || option.value.as_deref() == Some(value))
    };
    NOT_YET.iter().find(is_meant).map_or(Ok(()), |(.., instead)| Err(option.not_available(instead)))
}

/// Returns the reason why an option without effect is accepted, `Some("")` if none is needed, `None` if the
/// option is unknown.
pub(super) fn ignored(option: &RawOption) -> Result<Option<&'static str>, OptionError> {
    if option.typed.starts_with("x-") || option.typed.starts_with("X-") {
        return Ok(Some(""));
    }
    if OPTIONS_FOR_OTHERS.contains(&option.name.as_str()) {
        return Ok(Some(""));
    }
    let Some((_, takes, reason)) = WITHOUT_EFFECT.iter().find(|(name, ..)| *name == option.name) else {
        return Ok(None);
    };
    match takes {
        ValueKind::Nothing => option.flag()?,
        ValueKind::Number => option.value("a number of bytes", crate::config::units::bytes).map(|_| ())?,
    }
    Ok(Some(reason))
}

/// Returns the options without effect, as they are typed, grouped by reason.
pub fn options_without_effect() -> Vec<(&'static str, Vec<String>)> {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for (name, takes, reason) in WITHOUT_EFFECT {
        let typed = match takes {
            ValueKind::Nothing => (*name).to_owned(),
            ValueKind::Number => format!("{name}=BYTES"),
        };
        let reason = if reason.is_empty() { "this is always the case" } else { reason };
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(typed),
            None => reasons.push((reason, vec![typed])),
        }
    }
    reasons
}

/// Returns the options that are refused in this version, as they are typed, with alternatives.
pub fn options_not_yet() -> impl Iterator<Item = (String, &'static str)> {
    NOT_YET.iter().map(|(name, value, instead)| {
        (if value.is_empty() { (*name).to_owned() } else { format!("{name}={value}") }, *instead)
    })
}
