//! Who may come in: the file of authorised keys.
//!
//! Pure: text in, text out. A line is `KEY [ro] [owners] [user=NAME] [exports=NAME,NAME…] [# comment]`; what a person wrote is kept as it is.
//!
//! A line that cannot be understood lets nobody in, and is told to whoever reads the file.

use std::fmt::Write as _;

use crate::transport::PublicKey;

/// What a key may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizedKey {
    /// Whose.
    pub key: PublicKey,
    /// Whether it may only read.
    pub read_only: bool,
    /// Whether it may choose owners on a host that runs as root: what it makes belongs to the asking user, by the client's
    /// numbers, and it may change owners, set set-user-id bits and make devices. That is as much as being root there.
    pub owners: bool,
    /// As whom it acts on a host that runs as root: a user of the host by name, by number, or as `UID:GID`. `None`: as the user who
    /// runs the host.
    pub user: Option<String>,
    /// The exports it may mount; `None` for all.
    pub exports: Option<Vec<String>>,
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
        let mut parsed = Self {
            key,
            read_only: false,
            owners: false,
            user: None,
            exports: None,
            comment: comment.trim().to_owned(),
        };
        for word in words {
            match word.split_once('=') {
                None if word == "ro" => parsed.read_only = true,
                None if word == "owners" => parsed.owners = true,
                Some(("exports", names)) => {
                    let names = names.split(',').map(unescape).collect::<Option<Vec<_>>>();
                    let names = names.ok_or_else(|| format!("{word:?} holds a bad %XX"))?;
                    parsed.exports.get_or_insert_default().extend(names);
                }
                Some(("user", name)) => {
                    let name = unescape(name).filter(|name| !name.is_empty());
                    let name = name.ok_or_else(|| format!("{word:?} names nobody"))?;
                    if parsed.user.replace(name).is_some() {
                        return Err("two users are named".to_owned());
                    }
                }
                _ => return Err(format!("the option {word:?} is unknown")),
            }
        }
        if parsed.owners && parsed.user.is_some() {
            return Err("`owners` is for root alone, and `user=` makes it somebody else".to_owned());
        }
        Ok(parsed)
    }

    fn to_line(&self) -> String {
        let mut line = self.key.to_string();
        if self.read_only {
            line.push_str(" ro");
        }
        if self.owners {
            line.push_str(" owners");
        }
        if let Some(user) = &self.user {
            line.push_str(" user=");
            line.push_str(&escape(user));
        }
        if let Some(exports) = &self.exports {
            let names: Vec<String> = exports.iter().map(|name| escape(name)).collect();
            line.push_str(" exports=");
            line.push_str(&names.join(","));
        }
        if !self.comment.is_empty() {
            line.push_str(" # ");
            line.extend(self.comment.chars().map(|c| if c.is_control() { ' ' } else { c }));
        }
        line
    }
}

/// The authorised keys, with the lines they stand in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthorizedKeys {
    lines: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    text: String,
    key: Option<AuthorizedKey>,
}

impl AuthorizedKeys {
    /// Reads the file's text; also tells what is wrong with which line, counted from 1.
    pub fn parse(text: &str) -> (Self, Vec<(usize, String)>) {
        let (mut lines, mut problems) = (Vec::new(), Vec::new());
        for (i, text) in text.lines().enumerate() {
            let is_silent = text.trim().is_empty() || text.trim_start().starts_with('#');
            let key = match AuthorizedKey::parse(text) {
                _ if is_silent => None,
                Ok(key) => Some(key),
                Err(problem) => {
                    problems.push((i + 1, problem));
                    None
                }
            };
            lines.push(Line { text: text.to_owned(), key });
        }
        (Self { lines }, problems)
    }

    /// The file's text, with what was changed.
    pub fn to_text(&self) -> String {
        self.lines.iter().flat_map(|line| [&line.text, "\n"]).collect()
    }

    /// All keys that are let in.
    pub fn iter(&self) -> impl Iterator<Item = &AuthorizedKey> {
        self.lines.iter().filter_map(|line| line.key.as_ref())
    }

    /// What `key` may do, if it may come in. Of several lines for it the last counts.
    pub fn find(&self, key: PublicKey) -> Option<&AuthorizedKey> {
        self.iter().filter(|known| known.key == key).last()
    }

    /// Lets a key in to `export`, besides what it may mount already. A key that is new acts as `user`.
    pub fn add(&mut self, key: PublicKey, export: &str, user: Option<&str>, comment: &str) {
        let mut entry = match self.find(key) {
            Some(known) if known.may_mount(export) => return,
            Some(known) => known.clone(),
            None => AuthorizedKey {
                key,
                read_only: false,
                owners: false,
                user: user.map(str::to_owned),
                exports: Some(Vec::new()),
                comment: comment.to_owned(),
            },
        };
        entry.exports.get_or_insert_default().push(export.to_owned());
        self.revoke(key);
        self.lines.push(Line { text: entry.to_line(), key: Some(entry) });
    }

    /// Takes all lines of `key` out; `false` where there was none.
    pub fn revoke(&mut self, key: PublicKey) -> bool {
        let before = self.lines.len();
        self.lines.retain(|line| line.key.as_ref().is_none_or(|known| known.key != key));
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
        assert!(laptop.read_only && laptop.may_mount("b") && !laptop.may_mount("c"));
        assert_eq!(laptop.comment, "laptop");
        assert!(keys.find(key(2)).unwrap().may_mount("anything"));
        assert!(keys.find(key(3)).is_none());
        assert_eq!(keys.to_text(), text);
    }

    #[test]
    fn a_line_that_is_not_understood_lets_nobody_in_and_stays() {
        let text = format!("{} exprots=a\nnot-a-key\n{} exports=%zz\n", key(1), key(2));
        let (keys, problems) = AuthorizedKeys::parse(&text);
        assert_eq!(problems.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(keys.find(key(1)).is_none() && keys.find(key(2)).is_none());
        assert_eq!(keys.to_text(), text);
    }

    #[test]
    fn a_key_acts_as_one_user_who_does_not_choose_owners() {
        let text = format!("{} ro user=ann\n{} user=1000:100\n", key(1), key(2));
        let (keys, problems) = AuthorizedKeys::parse(&text);
        assert!(problems.is_empty());
        assert_eq!(keys.find(key(1)).unwrap().user.as_deref(), Some("ann"));
        assert_eq!(keys.find(key(2)).unwrap().user.as_deref(), Some("1000:100"));
        for options in ["user=", "user=a user=b", "owners user=a", "user=a owners", "user"] {
            let (keys, problems) = AuthorizedKeys::parse(&format!("{} {options}\n", key(1)));
            assert!(keys.find(key(1)).is_none() && problems.len() == 1, "{options}");
        }
    }

    #[test]
    fn a_key_is_added_once_and_gains_exports() {
        let (mut keys, _) = AuthorizedKeys::parse(&format!("# top\n{} ro exports=a # old\n", key(1)));
        keys.add(key(1), "b", Some("ann"), "new");
        keys.add(key(1), "b", None, "new");
        keys.add(key(2), "a", Some("ann"), "second\nline");
        assert_eq!(
            keys.to_text(),
            format!("# top\n{} ro exports=a,b # old\n{} user=ann exports=a # second line\n", key(1), key(2))
        );
    }

    #[test]
    fn a_revoked_key_is_gone_from_all_its_lines() {
        let (mut keys, _) = AuthorizedKeys::parse(&format!("{0}\n# note\n{0} ro\n{1}\n", key(1), key(2)));
        assert!(keys.revoke(key(1)));
        assert!(!keys.revoke(key(1)));
        assert_eq!(keys.to_text(), format!("# note\n{}\n", key(2)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            byte in any::<u8>(),
            read_only in any::<bool>(),
            owners in any::<bool>(),
            user in proptest::option::of("[^\\p{Cc}]{1,12}"),
            exports in proptest::option::of(proptest::collection::vec("[^/\\p{Cc}]{1,12}", 1..4)),
            comment in "[ -~]{0,20}",
        ) {
            let comment = comment.trim().to_owned();
            let owners = owners && user.is_none();
            let entry = AuthorizedKey { key: key(byte), read_only, owners, user, exports, comment };
            prop_assert_eq!(AuthorizedKey::parse(&entry.to_line()), Ok(entry));
        }

        #[test]
        fn no_text_makes_reading_panic(text in "\\PC{0,200}") {
            let (keys, _) = AuthorizedKeys::parse(&text);
            prop_assert_eq!(keys.iter().count(), 0);
        }
    }
}
