//! Options that conventions pass and that set nothing, each with the reason; and those that are promised but not built yet.

use crate::config::OptionError;
use crate::config::words::Word;

/// What takes a value, or may.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Number,
}

/// Meant for mount(8), systemd or a desktop: nobody needs to hear that wormhole does nothing with them.
const FOR_OTHERS: &[&str] = &[
    "_netdev", "_rnetdev", "nofail", "noauto", "auto", "user", "users", "nouser", "owner", "noowner",
    "group", "nogroup", "defaults", "comment", "helper", "uhelper", "silent", "loud",
];

/// Accepted because people bring them, with the reason why they change nothing.
const WITHOUT_EFFECT: &[(&str, Takes, &str)] = &[
    ("ro", Takes::Nothing, ""),
    ("atime", Takes::Nothing, READ_ONLY),
    ("noatime", Takes::Nothing, READ_ONLY),
    ("diratime", Takes::Nothing, READ_ONLY),
    ("nodiratime", Takes::Nothing, READ_ONLY),
    ("relatime", Takes::Nothing, READ_ONLY),
    ("norelatime", Takes::Nothing, READ_ONLY),
    ("strictatime", Takes::Nothing, READ_ONLY),
    ("nostrictatime", Takes::Nothing, READ_ONLY),
    ("lazytime", Takes::Nothing, READ_ONLY),
    ("nolazytime", Takes::Nothing, READ_ONLY),
    ("sync", Takes::Nothing, READ_ONLY),
    ("async", Takes::Nothing, READ_ONLY),
    ("dirsync", Takes::Nothing, READ_ONLY),
    ("mand", Takes::Nothing, LOCKS),
    ("nomand", Takes::Nothing, LOCKS),
    ("nolock", Takes::Nothing, LOCKS),
    ("nobrl", Takes::Nothing, LOCKS),
    ("locallocks", Takes::Nothing, LOCKS),
    ("intr", Takes::Nothing, "every operation can be interrupted"),
    ("nointr", Takes::Nothing, "every operation can be interrupted"),
    ("reconnect", Takes::Nothing, "a lost connection is always made again"),
    ("rsize", Takes::Number, "the size of requests follows the reader and the link"),
    ("wsize", Takes::Number, READ_ONLY),
];

const READ_ONLY: &str = "the mount is read-only";
const LOCKS: &str = "locks are kept on this machine in this version";

/// Why an option that sets nothing is accepted: `Some("")` if that needs no words, `None` if it is unknown.
pub(super) fn ignored(word: &Word) -> Result<Option<&'static str>, OptionError> {
    if word.typed.starts_with("x-") || word.typed.starts_with("X-") {
        return Ok(Some(""));
    }
    if FOR_OTHERS.contains(&word.name.as_str()) {
        return Ok(Some(""));
    }
    if let Some((_, takes, reason)) = WITHOUT_EFFECT.iter().find(|(name, ..)| *name == word.name) {
        check(word, *takes)?;
        return Ok(Some(reason));
    }
    promised(word)
}

fn check(word: &Word, takes: Takes) -> Result<(), OptionError> {
    match takes {
        Takes::Nothing => word.flag(),
        Takes::Number => word.value("a number of bytes", crate::config::units::bytes).map(|_| ()),
    }
}

/// What the contract promises for later: refused by name, or accepted where the value asks for what happens anyway.
fn promised(word: &Word) -> Result<Option<&'static str>, OptionError> {
    match (word.name.as_str(), word.value.as_deref()) {
        ("rw", _) => Err(word.not_available("mounts are read-only for now, use `ro`")),
        ("remount", _) => Err(word.not_available("unmount and mount again")),
        ("idmap", Some("none")) => Ok(Some("")),
        ("idmap", Some("user" | "file")) => {
            Err(word.not_available("use idmap=none, with uid= and gid= to show another owner"))
        }
        ("idmap", _) => word.value("none", |_| None),
        ("uidfile" | "gidfile", _) => Err(word.not_available("use uid= and gid=")),
        ("compress", Some("auto" | "off")) => Ok(Some("content travels uncompressed in this version")),
        ("compress", Some("on")) => Err(word.not_available("content travels uncompressed for now")),
        ("compress", _) => word.value("auto, off", |_| None),
        ("bwlimit", _) => Err(word.not_available("limit the host's sending instead")),
        ("lock" | "brl", _) => Err(word.not_available("locks are kept on this machine, see `nolock`")),
        ("local_lock", Some("all" | "flock" | "posix")) => Ok(Some(LOCKS)),
        ("local_lock", Some("none")) => Err(word.not_available("use local_lock=all")),
        ("local_lock", _) => word.value("all, flock, posix", |_| None),
        _ => Ok(None),
    }
}
