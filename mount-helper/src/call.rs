//! Translates a call of mount(8) into arguments of `wormhole mount`.
//!
//! Pure.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Options that only mount(8), systemd or a desktop use.
const NOT_OURS: &[&[u8]] = &[
    b"_netdev",
    b"_rnetdev",
    b"auto",
    b"noauto",
    b"nofail",
    b"user",
    b"users",
    b"nouser",
    b"owner",
    b"noowner",
    b"group",
    b"nogroup",
    b"defaults",
    b"comment",
    b"helper",
    b"uhelper",
    b"rw",
];

/// A call of the helper.
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of mount(8)")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// Source, unchanged.
    pub(crate) source: OsString,
    /// Mountpoint.
    pub(crate) mountpoint: PathBuf,
    /// Options for `wormhole mount`, joined by commas.
    pub(crate) options: OsString,
    /// Do everything except the mount: `-f`.
    pub(crate) fake: bool,
    /// Tolerate unknown options: `-s`.
    pub(crate) sloppy: bool,
    /// Log more: `-v`.
    pub(crate) verbose: bool,
}

/// Error in a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallError {
    MissingPlaces,
    TooManyPlaces(OsString),
    UnknownFlag(char),
    MissingValue(char),
    Namespace,
    OtherType(OsString),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingPlaces => {
                f.write_str("usage: mount.wormhole SOURCE DIRECTORY [-sfnv] [-t TYPE] [-o OPTIONS]")
            }
            Self::TooManyPlaces(place) => {
                write!(f, "one source and one directory are enough, but there is also `{}`", place.display())
            }
            Self::UnknownFlag(flag) => {
                write!(f, "flag `-{flag}` is unknown: mount(8) passes -s -f -n -v -N -t -o")
            }
            Self::MissingValue(flag) => write!(f, "flag `-{flag}` needs a value"),
            Self::Namespace => {
                f.write_str("flag `-N` (another mount namespace) is not supported: use nsenter(1) there")
            }
            Self::OtherType(name) => {
                write!(f, "type `{}` is not mounted by this helper: only wormhole is", name.display())
            }
        }
    }
}

impl Call {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, CallError> {
        let mut places = Vec::new();
        let mut options = Options::default();
        let (mut fake, mut sloppy, mut verbose) = (false, false, false);
        let mut rest = arguments.into_iter();
        while let Some(argument) = rest.next() {
            // `-` alone is a source: the ticket is on standard input.
            let Some(flags) = argument.as_bytes().strip_prefix(b"-").filter(|flags| !flags.is_empty()) else {
                places.push(argument);
                continue;
            };
            for (at, flag) in flags.iter().enumerate() {
                let mut value = || value_of(&flags[at + 1..], &mut rest, char::from(*flag));
                match flag {
                    b'f' => fake = true,
                    b's' => sloppy = true,
                    b'v' => verbose = true,
                    // There is no mtab to write.
                    b'n' => {}
                    b'o' => options.add(value()?.as_bytes()),
                    b't' => check_type(value()?)?,
                    b'N' => return Err(CallError::Namespace),
                    other => return Err(CallError::UnknownFlag(char::from(*other))),
                }
                if matches!(flag, b'o' | b't') {
                    break;
                }
            }
        }
        let mut places = places.into_iter();
        let (Some(source), Some(mountpoint)) = (places.next(), places.next()) else {
            return Err(CallError::MissingPlaces);
        };
        if let Some(place) = places.next() {
            return Err(CallError::TooManyPlaces(place));
        }
        let options = OsString::from_vec(options.kept);
        Ok(Self { source, mountpoint: mountpoint.into(), options, fake, sloppy, verbose })
    }

    /// Returns the arguments of `wormhole`.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![OsString::from("mount")];
        if self.verbose {
            arguments.push("-v".into());
        }
        if self.sloppy {
            arguments.push("--sloppy".into());
        }
        if !self.options.is_empty() {
            arguments.push("-o".into());
            arguments.push(self.options.clone());
        }
        arguments.push("--".into());
        arguments.push(self.source.clone());
        arguments.push(self.mountpoint.clone().into());
        arguments
    }
}

/// Returns the value of a flag: the rest of its argument, else the next argument.
fn value_of(
    joined: &[u8],
    rest: &mut impl Iterator<Item = OsString>,
    flag: char,
) -> Result<OsString, CallError> {
    if !joined.is_empty() {
        return Ok(OsStr::from_bytes(joined).to_owned());
    }
    rest.next().ok_or(CallError::MissingValue(flag))
}

fn check_type(name: OsString) -> Result<(), CallError> {
    match name.as_bytes() {
        b"wormhole" | b"fuse.wormhole" => Ok(()),
        _ => Err(CallError::OtherType(name)),
    }
}

/// Remaining options, with their commas.
#[derive(Default)]
struct Options {
    kept: Vec<u8>,
}

impl Options {
    fn add(&mut self, list: &[u8]) {
        let mut quoted = false;
        let options = list.split(|byte| {
            quoted ^= *byte == b'"';
            *byte == b',' && !quoted
        });
        for option in options.filter(|option| !option.is_empty() && is_ours(option)) {
            if !self.kept.is_empty() {
                self.kept.push(b',');
            }
            self.kept.extend_from_slice(option);
        }
    }
}

fn is_ours(option: &[u8]) -> bool {
    let name = option.split(|byte| *byte == b'=').next().unwrap_or_default();
    !NOT_OURS.contains(&name) && !name.starts_with(b"x-") && !name.starts_with(b"X-")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Call, CallError> {
        Call::parse(arguments.iter().map(OsString::from))
    }

    fn arguments_of(arguments: &[&str]) -> Vec<String> {
        let call = parse(arguments).unwrap();
        call.arguments().into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn a_call_of_mount_becomes_a_call_of_wormhole() {
        for (said, expected) in [
            (vec!["nas:/m", "/mnt", "-o", "rw"], vec!["mount", "--", "nas:/m", "/mnt"]),
            (
                vec!["nas:/m", "/mnt", "-s", "-v", "-n", "-o", "ro,port=4"],
                vec!["mount", "-v", "--sloppy", "-o", "ro,port=4", "--", "nas:/m", "/mnt"],
            ),
            (
                vec!["nas:/m", "/mnt", "-svoro", "-t", "fuse.wormhole"],
                vec!["mount", "-v", "--sloppy", "-o", "ro", "--", "nas:/m", "/mnt"],
            ),
            (
                vec!["-o", "ro", "@/t", "/mnt", "-o", "port=4"],
                vec!["mount", "-o", "ro,port=4", "--", "@/t", "/mnt"],
            ),
            (vec!["-", "/mnt"], vec!["mount", "--", "-", "/mnt"]),
        ] {
            assert_eq!(arguments_of(&said), expected, "{said:?}");
        }
    }

    #[test]
    fn options_for_other_programs_are_dropped() {
        let line = "ro,_netdev,nofail,noauto,user=ann,x-systemd.automount,comment=a,allow_other,cache_size=50G,x-gvfs-hide";
        assert_eq!(parse(&["s", "d", "-o", line]).unwrap().options, "ro,allow_other,cache_size=50G");
    }

    #[test]
    fn a_quoted_comma_does_not_split() {
        let call = parse(&["s", "d", "-o", r#"cache_dir="/a,rw,b",rw"#]).unwrap();
        assert_eq!(call.options, r#"cache_dir="/a,rw,b""#);
    }

    #[test]
    fn ro_is_passed_on_and_rw_which_is_the_default_is_not() {
        assert_eq!(parse(&["s", "d", "-o", "rw"]).unwrap().options, "");
        assert_eq!(parse(&["s", "d", "-o", "ro,port=1"]).unwrap().options, "ro,port=1");
    }

    #[test]
    fn wrong_calls_are_refused() {
        for (said, error) in [
            (vec![], CallError::MissingPlaces),
            (vec!["s"], CallError::MissingPlaces),
            (vec!["s", "d", "e"], CallError::TooManyPlaces("e".into())),
            (vec!["s", "d", "-x"], CallError::UnknownFlag('x')),
            (vec!["s", "d", "-o"], CallError::MissingValue('o')),
            (vec!["s", "d", "-N", "/proc/1/ns/mnt"], CallError::Namespace),
            (vec!["s", "d", "-t", "nfs"], CallError::OtherType("nfs".into())),
        ] {
            assert_eq!(parse(&said), Err(error), "{said:?}");
        }
    }

    #[test]
    fn names_need_not_be_text() {
        let place = OsString::from_vec(vec![b'/', 0xff]);
        let call = Call::parse(["s".into(), place.clone()]).unwrap();
        assert_eq!(call.mountpoint, PathBuf::from(place));
    }

    proptest! {
        #[test]
        fn no_call_makes_it_panic(arguments in proptest::collection::vec("[-sfnvNot,=\"xrw/ ]{0,6}", 0..6)) {
            let _ = Call::parse(arguments.into_iter().map(OsString::from));
        }

        /// Compares the parser with a slow model without quotes: split, filter, join.
        #[test]
        fn options_are_those_that_a_plain_filter_leaves(
            list in proptest::collection::vec("(ro|rw|x-a|_netdev|user|port=1|hard|comment=b|cache-dir=/x)?", 0..8)
        ) {
            let dropped = ["", "rw", "x-a", "_netdev", "user", "comment=b"];
            let expected: Vec<_> = list.iter().map(String::as_str).filter(|o| !dropped.contains(o)).collect();
            let call = parse(&["s", "d", "-o", &list.join(",")]).unwrap();
            prop_assert_eq!(call.options.into_string().unwrap(), expected.join(","));
        }
    }
}
