//! Who may come in: the file of authorised keys.
//!
//! Pure: bytes in, bytes out. A line is `KEY [ro] [owners] [user=NAME] [max_open=N] [exports=NAME,NAME…] [name=NAME] [# comment]`; what a person
//! wrote is kept as it is.
//!
//! The file fails closed. A line that cannot be understood lets nobody in, and neither does any other line of the key that it names;
//! the lines of other keys hold. Of several lines for one key the narrowest holds: a key has the rights that all its lines give.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

use super::limits::KeyLimits;
use crate::transport::PublicKey;

/// What a key may do in the exports that it may mount. Compared as one value: whatever is changed ends what was begun before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// Whether it may only read.
    pub read_only: bool,
    /// Whether it may choose owners on a host that runs as root: what it makes belongs to the asking user, by the client's
    /// numbers, and it may change owners, set set-user-id bits and make devices. That is as much as being root there.
    pub owners: bool,
    /// As whom it acts on a host that runs as root: a user of the host by name, by number, or as `UID:GID`. `None`: as the user who
    /// runs the host.
    pub user: Option<String>,
    /// How much it may use.
    pub limits: KeyLimits,
}

impl Rights {
    /// Returns what both give; `None` where they name two users.
    fn narrowed(&self, other: &Self) -> Option<Self> {
        let user = match (&self.user, &other.user) {
            (Some(one), Some(another)) if one != another => return None,
            (one, another) => one.clone().or_else(|| another.clone()),
        };
        // A key that acts as a user of the host is not root, whatever another line says.
        let owners = self.owners && other.owners && user.is_none();
        let limits = self.limits.narrowed(&other.limits);
        Some(Self { read_only: self.read_only || other.read_only, owners, user, limits })
    }

    /// Whether they give nothing that `other` does not.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        let writes_less = self.read_only || !other.read_only;
        let same_user = other.user.is_none() || self.user == other.user;
        writes_less && same_user && (other.owners || !self.owners)
    }
}

impl fmt::Display for Rights {
    /// As words of the file, `rw` where it may write.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.read_only { "ro" } else { "rw" })?;
        if self.owners {
            f.write_str(" owners")?;
        }
        self.user.iter().try_for_each(|user| write!(f, " user={}", escape(user)))
    }
}

/// A key that is let in, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizedKey {
    /// Whose.
    pub key: PublicKey,
    /// What it may do.
    pub rights: Rights,
    /// The exports it may mount; `None` for all.
    pub exports: Option<Vec<String>>,
    /// What people call it, for lists; empty where it has no name.
    pub name: String,
    /// What stands behind the `#`; empty where there is none.
    pub comment: String,
}

impl AuthorizedKey {
    /// Whether it may mount `export`.
    pub fn may_mount(&self, export: &str) -> bool {
        self.exports.as_ref().is_none_or(|exports| exports.iter().any(|name| name == export))
    }

    fn parse(line: &str) -> Result<Self, String> {
        let (front, comment) = line.split_once('#').unwrap_or((line, ""));
        let mut words = front.split_ascii_whitespace();
        let key = words.next().ok_or("there is no key")?;
        let key = key.parse().map_err(|error| format!("{error}"))?;
        let (rights, exports, name) = (Rights::default(), None, String::new());
        let mut parsed = Self { key, rights, exports, name, comment: comment.trim().to_owned() };
        for word in words {
            parsed.take(word)?;
        }
        if parsed.rights.owners && parsed.rights.user.is_some() {
            return Err("`owners` is for root alone, and `user=` makes it somebody else".to_owned());
        }
        Ok(parsed)
    }

    /// Takes in one option of its line.
    fn take(&mut self, word: &str) -> Result<(), String> {
        match word.split_once('=') {
            None if word == "ro" => self.rights.read_only = true,
            None if word == "owners" => self.rights.owners = true,
            Some(("exports", names)) => {
                let names = names.split(',').map(unescape).collect::<Option<Vec<_>>>();
                let names = names.ok_or_else(|| format!("{word:?} holds a bad %XX"))?;
                self.exports.get_or_insert_default().extend(names);
            }
            Some(("user", name)) => {
                let name = unescape(name).filter(|name| !name.is_empty());
                let name = name.ok_or_else(|| format!("{word:?} names nobody"))?;
                if self.rights.user.replace(name).is_some() {
                    return Err("two users are named".to_owned());
                }
            }
            Some(("name", name)) => {
                let name = unescape(name).filter(|name| !name.chars().any(char::is_control));
                self.name = name.ok_or_else(|| format!("{word:?} is no name"))?;
            }
            Some((name, value)) => {
                let taken = self.rights.limits.take(name, value);
                return taken.unwrap_or_else(|| Err(format!("the option {word:?} is unknown")));
            }
            None => return Err(format!("the option {word:?} is unknown")),
        }
        Ok(())
    }

    /// Returns what two lines of the same key give together; `None` where they name two users.
    fn narrowed(&self, other: &Self) -> Option<Self> {
        let exports = match (&self.exports, &other.exports) {
            (Some(some), Some(others)) => {
                Some(some.iter().filter(|name| others.contains(name)).cloned().collect())
            }
            (some, others) => some.clone().or_else(|| others.clone()),
        };
        let first = |one: &String, another: &String| if one.is_empty() { another } else { one }.clone();
        Some(Self {
            key: self.key,
            rights: self.rights.narrowed(&other.rights)?,
            exports,
            name: first(&self.name, &other.name),
            comment: first(&self.comment, &other.comment),
        })
    }

    fn to_line(&self) -> String {
        let mut line = self.key.to_string();
        if self.rights.read_only {
            line.push_str(" ro");
        }
        if self.rights.owners {
            line.push_str(" owners");
        }
        if let Some(user) = &self.rights.user {
            line.push_str(" user=");
            line.push_str(&escape(user));
        }
        line.push_str(&self.rights.limits.to_words(" "));
        if let Some(exports) = &self.exports {
            let names: Vec<String> = exports.iter().map(|name| escape(name)).collect();
            line.push_str(" exports=");
            line.push_str(&names.join(","));
        }
        if !self.name.is_empty() {
            line.push_str(" name=");
            line.push_str(&escape(&self.name));
        }
        if !self.comment.is_empty() {
            line.push_str(" # ");
            line.extend(self.comment.chars().map(|c| if c.is_control() { ' ' } else { c }));
        }
        line
    }
}

/// What the lines of each key give together.
type Combined = HashMap<PublicKey, Option<AuthorizedKey>>;

/// The authorised keys, with the lines they stand in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthorizedKeys {
    lines: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    text: Vec<u8>,
    meaning: Meaning,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    /// Nothing: a comment, or no text.
    Silent,
    /// A key that is let in.
    Key(AuthorizedKey),
    /// It cannot be understood, and why; with the key that it names, if it names one.
    Bad(Option<PublicKey>, String),
}

impl Line {
    fn parse(bytes: &[u8]) -> Self {
        let meaning = match std::str::from_utf8(bytes).map(str::trim) {
            Ok("") => Meaning::Silent,
            Ok(text) if text.starts_with('#') => Meaning::Silent,
            Ok(text) => match AuthorizedKey::parse(text) {
                Ok(key) => Meaning::Key(key),
                Err(problem) => Meaning::Bad(first_key(bytes), problem),
            },
            Err(_) if bytes.trim_ascii_start().starts_with(b"#") => Meaning::Silent,
            Err(_) => Meaning::Bad(first_key(bytes), "it is not valid UTF-8".to_owned()),
        };
        Self { text: bytes.to_owned(), meaning }
    }

    /// The key that it is about.
    fn key(&self) -> Option<PublicKey> {
        match &self.meaning {
            Meaning::Silent => None,
            Meaning::Key(known) => Some(known.key),
            Meaning::Bad(key, _) => *key,
        }
    }
}

/// The key that a line begins with, however the line goes on.
fn first_key(line: &[u8]) -> Option<PublicKey> {
    let line = line.trim_ascii_start();
    let end = line.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'#').unwrap_or(line.len());
    std::str::from_utf8(&line[..end]).ok()?.parse().ok()
}

impl AuthorizedKeys {
    /// Reads the file's text; also tells what is wrong with which line, counted from 1.
    pub fn parse(text: &(impl AsRef<[u8]> + ?Sized)) -> (Self, Vec<(usize, String)>) {
        let text = text.as_ref();
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let lines = if text.is_empty() {
            Vec::new()
        } else {
            text.split(|byte| *byte == b'\n').map(Line::parse).collect()
        };
        let keys = Self { lines };
        let (_, problems) = keys.combined();
        (keys, problems)
    }

    /// What each key's lines give together, nothing where they contradict each other; and what is wrong with which line.
    fn combined(&self) -> (Combined, Vec<(usize, String)>) {
        let (mut keys, mut problems) = (HashMap::new(), Vec::new());
        for (i, line) in self.lines.iter().enumerate() {
            match &line.meaning {
                Meaning::Silent => {}
                Meaning::Bad(key, why) => {
                    problems.push((i + 1, why.clone()));
                    keys.extend(key.map(|key| (key, None)));
                }
                Meaning::Key(known) => {
                    let entry = keys.entry(known.key).or_insert_with(|| Some(known.clone()));
                    let Some(wider) = entry.take() else { continue };
                    *entry = wider.narrowed(known);
                    if entry.is_none() {
                        let why = "another line has the key act as another user, so it is not let in";
                        problems.push((i + 1, why.to_owned()));
                    }
                }
            }
        }
        (keys, problems)
    }

    /// The file's text, with what was changed.
    pub fn to_text(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|line| [line.text.as_slice(), b"\n"]).flatten().copied().collect()
    }

    /// All keys that are let in, in the order of their first lines.
    pub fn iter(&self) -> impl Iterator<Item = AuthorizedKey> {
        let (mut keys, _) = self.combined();
        self.lines.iter().filter_map(Line::key).filter_map(move |key| keys.remove(&key).flatten())
    }

    /// What `key` may do, if it may come in: what all its lines give.
    pub fn find(&self, key: PublicKey) -> Option<AuthorizedKey> {
        let mut found: Option<AuthorizedKey> = None;
        for line in self.lines.iter().filter(|line| line.key() == Some(key)) {
            let Meaning::Key(known) = &line.meaning else { return None };
            found = Some(match found {
                Some(wider) => wider.narrowed(known)?,
                None => known.clone(),
            });
        }
        found
    }

    /// Whether lines name `key` that let it in nowhere, because one is not understood or two contradict each other.
    pub fn bars(&self, key: PublicKey) -> bool {
        self.lines.iter().any(|line| line.key() == Some(key)) && self.find(key).is_none()
    }

    /// Lets a key in to `export`, besides what it may mount already. A key that is new gets `rights` and a `name`.
    pub fn add(&mut self, key: PublicKey, export: &str, rights: &Rights, (name, comment): (&str, &str)) {
        let mut entry = match self.find(key) {
            Some(known) if known.may_mount(export) => return,
            Some(known) => known,
            None if self.bars(key) => return,
            None => AuthorizedKey {
                key,
                rights: rights.clone(),
                exports: Some(Vec::new()),
                name: name.to_owned(),
                comment: comment.to_owned(),
            },
        };
        entry.exports.get_or_insert_default().push(export.to_owned());
        self.revoke(key);
        self.lines.push(Line { text: entry.to_line().into_bytes(), meaning: Meaning::Key(entry) });
    }

    /// Takes all lines of `key` out; `false` where there was none.
    pub fn revoke(&mut self, key: PublicKey) -> bool {
        let before = self.lines.len();
        self.lines.retain(|line| line.key() != Some(key));
        self.lines.len() < before
    }
}

/// A name as it stands in an option: what separates there is written `%XX`.
fn escape(name: &str) -> String {
    let separates = |c: char| c.is_whitespace() || matches!(c, ',' | '#' | '%');
    let mut escaped = String::new();
    for c in name.chars() {
        if separates(c) {
            let mut utf8 = [0; 4];
            for byte in c.encode_utf8(&mut utf8).bytes() {
                // Writing to a String never fails.
                let _ = write!(escaped, "%{byte:02X}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some((plain, after)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        bytes.push(u8::from_str_radix(after.get(..2)?, 16).ok()?);
        rest = &after[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    #[test]
    fn lines_say_who_may_do_what() {
        let text = format!("# keys\n\n{} ro exports=a,b # laptop\n{}\n", key(1), key(2));
        let (keys, problems) = AuthorizedKeys::parse(&text);
        assert!(problems.is_empty());
        let laptop = keys.find(key(1)).unwrap();
        assert!(laptop.rights.read_only && laptop.may_mount("b") && !laptop.may_mount("c"));
        assert_eq!(laptop.comment, "laptop");
        assert!(keys.find(key(2)).unwrap().may_mount("anything"));
        assert!(keys.find(key(3)).is_none());
        assert_eq!(keys.to_text(), text.as_bytes());
    }

    #[test]
    fn a_line_that_is_not_understood_lets_nobody_in_and_stays() {
        let text = format!("{} exprots=a\nnot-a-key\n{} exports=%zz\n{}\n", key(1), key(2), key(3));
        let (keys, problems) = AuthorizedKeys::parse(&text);
        assert_eq!(problems.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(keys.find(key(1)).is_none() && keys.find(key(2)).is_none());
        assert!(keys.find(key(3)).is_some(), "the other lines hold");
        assert_eq!(keys.to_text(), text.as_bytes());
    }

    #[test]
    fn bytes_that_are_no_text_bar_the_key_of_their_line_alone() {
        let text = [b"# \xff\n", key(1).to_string().as_bytes(), b" # \xff\n", key(2).to_string().as_bytes()]
            .concat();
        let (keys, problems) = AuthorizedKeys::parse(&text);
        assert_eq!(problems.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2]);
        assert!(keys.find(key(1)).is_none() && keys.bars(key(1)) && keys.find(key(2)).is_some());
        assert_eq!(keys.to_text(), [&text, &b"\n"[..]].concat());
    }

    #[test]
    fn of_several_lines_for_a_key_the_narrowest_holds() {
        let lines = |options: [&str; 2]| {
            let text = format!("{0} {1}\n{2}\n{0} {3}\n", key(1), options[0], key(2), options[1]);
            let (keys, problems) = AuthorizedKeys::parse(&text);
            assert!(keys.find(key(2)).is_some());
            assert_eq!(keys.iter().count(), 1 + usize::from(keys.find(key(1)).is_some()));
            assert_eq!(keys.bars(key(1)), !problems.is_empty());
            keys.find(key(1)).map(|known| known.to_line().split_once(' ').unwrap_or_default().1.to_owned())
        };
        for (one, another, both) in [
            ("ro", "", Some("ro")),
            ("owners", "", Some("")),
            ("owners", "owners", Some("owners")),
            ("user=ann", "", Some("user=ann")),
            ("user=ann", "owners", Some("user=ann")),
            ("user=ann", "user=ann ro", Some("ro user=ann")),
            ("user=ann", "user=bob", None),
            ("exports=a,b", "exports=b,c", Some("exports=b")),
            ("exports=a", "", Some("exports=a")),
            ("ro exports=a", "exports=a,b name=x", Some("ro exports=a name=x")),
            ("exports=a", "exprots=a", None),
        ] {
            assert_eq!(lines([one, another]).as_deref(), both, "{one} and {another}");
            assert_eq!(lines([another, one]).as_deref(), both, "{another} and {one}");
        }
    }

    #[test]
    fn a_key_whose_line_is_not_understood_is_not_added_beside_it() {
        let text = format!("{} exprots=a\n", key(1));
        let (mut keys, _) = AuthorizedKeys::parse(&text);
        keys.add(key(1), "a", &Rights::default(), ("", ""));
        assert_eq!(keys.to_text(), text.as_bytes());
        assert!(keys.revoke(key(1)) && keys.to_text().is_empty(), "whoever revokes it mends that");
    }

    #[test]
    fn rights_are_compared_as_one_value() {
        let all = |user: Option<&str>| {
            let with = move |read_only, owners| Rights {
                read_only,
                owners,
                user: user.map(str::to_owned),
                ..Rights::default()
            };
            [with(false, false), with(true, false), with(false, true), with(true, true)]
        };
        let all: Vec<Rights> = [None, Some("ann"), Some("bob")].into_iter().flat_map(all).collect();
        for one in &all {
            assert!(one.is_within(one));
            for another in &all {
                let within_both = one.is_within(another) && another.is_within(one);
                assert_eq!(within_both, one == another, "{one:?} and {another:?}");
                if let Some(both) = one.narrowed(another) {
                    assert!(both.is_within(one) && both.is_within(another), "{one:?} and {another:?}");
                }
            }
        }
    }

    #[test]
    fn a_key_acts_as_one_user_who_does_not_choose_owners() {
        let text = format!("{} ro user=ann\n{} user=1000:100\n", key(1), key(2));
        let (keys, problems) = AuthorizedKeys::parse(&text);
        assert!(problems.is_empty());
        assert_eq!(keys.find(key(1)).unwrap().rights.user.as_deref(), Some("ann"));
        assert_eq!(keys.find(key(2)).unwrap().rights.user.as_deref(), Some("1000:100"));
        for options in ["user=", "user=a user=b", "owners user=a", "user=a owners", "user"] {
            let (keys, problems) = AuthorizedKeys::parse(&format!("{} {options}\n", key(1)));
            assert!(keys.find(key(1)).is_none() && problems.len() == 1, "{options}");
        }
    }

    #[test]
    fn a_key_is_added_once_and_gains_exports() {
        let (mut keys, _) = AuthorizedKeys::parse(&format!("# top\n{} ro exports=a # old\n", key(1)));
        let ann = Rights { user: Some("ann".to_owned()), ..Rights::default() };
        keys.add(key(1), "b", &ann, ("laptop", "new"));
        keys.add(key(1), "b", &Rights::default(), ("", "new"));
        keys.add(key(2), "a", &ann, ("a laptop", "second\nline"));
        let (one, two) = (key(1), key(2));
        let expected = format!(
            "# top\n{one} ro exports=a,b # old\n{two} user=ann exports=a name=a%20laptop # second line\n"
        );
        assert_eq!(keys.to_text(), expected.as_bytes());
    }

    #[test]
    fn a_revoked_key_is_gone_from_all_its_lines() {
        let (mut keys, _) = AuthorizedKeys::parse(&format!("{0}\n# note\n{0} ro\n{1}\n", key(1), key(2)));
        assert!(keys.revoke(key(1)));
        assert!(!keys.revoke(key(1)));
        assert_eq!(keys.to_text(), format!("# note\n{}\n", key(2)).as_bytes());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            byte in any::<u8>(),
            read_only in any::<bool>(),
            owners in any::<bool>(),
            max_open in 1u32..,
            user in proptest::option::of("[^\\p{Cc}]{1,12}"),
            exports in proptest::option::of(proptest::collection::vec("[^/\\p{Cc}]{1,12}", 1..4)),
            name in "[^\\p{Cc}]{0,12}",
            comment in "[ -~]{0,20}",
        ) {
            let comment = comment.trim().to_owned();
            let owners = owners && user.is_none();
            let limits = KeyLimits { max_open, ..KeyLimits::default() };
            let rights = Rights { read_only, owners, user, limits };
            let entry = AuthorizedKey { key: key(byte), rights, exports, name, comment };
            prop_assert_eq!(AuthorizedKey::parse(&entry.to_line()), Ok(entry));
        }

        #[test]
        fn no_text_makes_reading_panic(text in "\\PC{0,200}") {
            let (keys, _) = AuthorizedKeys::parse(&text);
            prop_assert_eq!(keys.iter().count(), 0);
        }
    }
}
