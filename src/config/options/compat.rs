//! Options that conventions pass and that set nothing, each with the reason; and those that are promised but not built yet.

use crate::config::OptionError;
use crate::config::option_list::RawOption;

/// What takes a value, or may.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Number,
}

/// Meant for mount(8), systemd or a desktop: nobody needs to hear that wormhole does nothing with them. So is what begins with
/// `x-`.
pub const OPTIONS_FOR_OTHERS: &[&str] = &[
    "_netdev", "_rnetdev", "nofail", "noauto", "auto", "user", "users", "nouser", "owner", "noowner",
    "group", "nogroup", "defaults", "comment", "helper", "uhelper", "silent", "loud",
];

/// Accepted because people bring them, with the reason why they change nothing.
const WITHOUT_EFFECT: &[(&str, Takes, &str)] = &[
    ("atime", Takes::Nothing, ACCESS_TIMES),
    ("noatime", Takes::Nothing, ACCESS_TIMES),
    ("diratime", Takes::Nothing, ACCESS_TIMES),
    ("nodiratime", Takes::Nothing, ACCESS_TIMES),
    ("relatime", Takes::Nothing, ACCESS_TIMES),
    ("norelatime", Takes::Nothing, ACCESS_TIMES),
    ("strictatime", Takes::Nothing, ACCESS_TIMES),
    ("nostrictatime", Takes::Nothing, ACCESS_TIMES),
    ("lazytime", Takes::Nothing, ACCESS_TIMES),
    ("nolazytime", Takes::Nothing, ACCESS_TIMES),
    ("async", Takes::Nothing, "programs that want to wait for the disk say so"),
    ("mand", Takes::Nothing, LOCKS),
    ("nomand", Takes::Nothing, LOCKS),
    ("intr", Takes::Nothing, INTERRUPTIBLE),
    ("nointr", Takes::Nothing, INTERRUPTIBLE),
    ("reconnect", Takes::Nothing, "a lost connection is always made again"),
    ("rsize", Takes::Number, REQUEST_SIZES),
    ("wsize", Takes::Number, REQUEST_SIZES),
];

const ACCESS_TIMES: &str = "reading moves no time of access";
const REQUEST_SIZES: &str = "the size of requests follows the program and the link";
const LOCKS: &str = "the kernel has no mandatory locks any more";
const INTERRUPTIBLE: &str = "every operation can be interrupted";

/// What the contract promises for later, with the one value that is refused (any if empty) and what to do instead.
const NOT_YET: &[(&str, &str, &str)] = &[
    ("remount", "", "unmount and mount again"),
    ("bwlimit", "", "limit the host's sending instead"),
    ("sync", "", SYNCHRONOUS),
    ("dirsync", "", SYNCHRONOUS),
];

const SYNCHRONOUS: &str = "open files with O_SYNC, or call fsync";

/// Refuses what is promised for later.
pub(super) fn refuse_not_yet(option: &RawOption) -> Result<(), OptionError> {
    let is_meant = |&&(name, value, _): &&(&str, &str, &str)| {
        option.name == name && (value.is_empty() || option.value.as_deref() == Some(value))
    };
    NOT_YET.iter().find(is_meant).map_or(Ok(()), |(.., instead)| Err(option.not_available(instead)))
}

/// Why an option that sets nothing is accepted: `Some("")` if that needs no words, `None` if it is unknown.
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
        Takes::Nothing => option.flag()?,
        Takes::Number => option.value("a number of bytes", crate::config::units::bytes).map(|_| ())?,
    }
    Ok(Some(reason))
}

/// Options that are accepted and change nothing, as they are typed, under the reason why.
pub fn options_without_effect() -> Vec<(&'static str, Vec<String>)> {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for (name, takes, reason) in WITHOUT_EFFECT {
        let typed = match takes {
            Takes::Nothing => (*name).to_owned(),
            Takes::Number => format!("{name}=BYTES"),
        };
        let reason = if reason.is_empty() { "this is what happens anyway" } else { reason };
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(typed),
            None => reasons.push((reason, vec![typed])),
        }
    }
    reasons
}

/// Options that are refused in this version, as they are typed, with what to do instead.
pub fn options_not_yet() -> impl Iterator<Item = (String, &'static str)> {
    NOT_YET.iter().map(|(name, value, instead)| {
        (if value.is_empty() { (*name).to_owned() } else { format!("{name}={value}") }, *instead)
    })
}
