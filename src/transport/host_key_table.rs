//! Keys of known hosts, the names of each, and the key that is right for a name. Pure: takes the text of a
//! known-hosts file, returns decisions and the new text.
//!
//! ```text
//! nas:4433 KEY                  a name; only this key is right for it
//! 192.0.2.7:4433/media KEY      an address that was mounted; only this key serves export `media` there
//! 192.0.2.7:4433 KEY            the last address of the host; any known key may be there next
//! - KEY                         a known host without any of these
//! ```
//!
//! A key in the file is trusted at any address. A name belongs to the first known key that answers to it, and
//! to no other afterwards. Addresses are lent (DHCP). So an address identifies a host only for the exports
//! that were mounted by that address. Loopback, link-local and bridge addresses identify no host.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use super::identity::PublicKey;
use super::mount_source::{AddressKind, HostAddress};

/// Subject of a line about a host without a name.
const NAMELESS: &str = "-";

/// Target of a mount: a host by name or address, and one of its exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostQuery {
    /// The name or address as typed.
    pub address: HostAddress,
    /// Scope in which the address identifies a host.
    pub kind: AddressKind,
    /// The export.
    pub export: String,
}

impl HostQuery {
    /// Returns the subject of the line that holds the right key.
    fn subject(&self) -> Option<Subject> {
        match self.kind {
            AddressKind::Name => Some(Subject::Host(self.address.clone())),
            AddressKind::Address => Some(Subject::Export(self.address.clone(), escaped(&self.export))),
            AddressKind::Local => None,
        }
    }
}

/// Keys that may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Only this one.
    Only(PublicKey),
    /// Any of these. The name belongs to none of them yet.
    AnyKnown(BTreeSet<PublicKey>),
}

/// Number, from 1, of a line that names the target and holds no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadLine(pub usize);

/// Result of comparing the key of a host with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyVerdict {
    /// The expected key, or a known one under a new name.
    Trusted,
    /// Neither the key nor the name is in the file.
    Unknown,
    /// Another key than the one of the name.
    Mismatch {
        /// The key of the name.
        known: PublicKey,
        /// Its line, from 1.
        line: usize,
    },
}

/// A host that answered and was authenticated by its key.
#[derive(Clone, Debug)]
pub struct HostContact {
    /// The key it proved.
    pub key: PublicKey,
    /// Target as typed, `None` with a ticket.
    pub query: Option<HostQuery>,
    /// True if a ticket vouches for the key under the typed name.
    pub vouched: bool,
    /// Names and addresses of the ticket at which the host answered.
    pub answered_at: Vec<(HostAddress, AddressKind)>,
}

/// Notice to the user after a contact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A known host has one more name.
    NewName {
        /// The name.
        name: String,
        /// Its other names.
        known_as: String,
    },
    /// A host answers to a name that belongs to another one.
    NameTaken {
        /// The name.
        name: String,
        /// The key that keeps the name.
        known: PublicKey,
        /// Its line, from 1.
        line: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Nameless,
    Host(HostAddress),
    /// Export as in the file: one word.
    Export(HostAddress, String),
}

impl Subject {
    fn parse(word: &str) -> Option<Self> {
        if word == NAMELESS {
            return Some(Self::Nameless);
        }
        match word.split_once('/') {
            Some((host, export)) => Some(Self::Export(host.parse().ok()?, export.to_owned())),
            None => Some(Self::Host(word.parse().ok()?)),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nameless => formatter.write_str(NAMELESS),
            Self::Host(address) => address.fmt(formatter),
            Self::Export(address, export) => write!(formatter, "{address}/{export}"),
        }
    }
}

/// Returns the name of an export as one word.
fn escaped(export: &str) -> String {
    let mut word = String::new();
    for letter in export.chars() {
        if letter.is_whitespace() || letter.is_control() || letter == '%' {
            for byte in letter.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(word, "%{byte:02X}");
            }
        } else {
            word.push(letter);
        }
    }
    word
}

#[derive(Clone, Debug)]
struct Line {
    text: String,
    subject: Option<Subject>,
    key: Option<PublicKey>,
}

impl Line {
    fn parse(text: &str) -> Self {
        let mut words = text.split_ascii_whitespace();
        let subject = words.next().filter(|word| !word.starts_with('#')).and_then(Subject::parse);
        let key = subject.as_ref().and_then(|_| words.next()).and_then(|word| word.parse().ok());
        Self { text: text.to_owned(), subject, key }
    }

    fn new(subject: Subject, key: PublicKey) -> Self {
        Self { text: format!("{subject} {key}"), subject: Some(subject), key: Some(key) }
    }

    fn is_about(&self, subject: &Subject) -> bool {
        self.subject.as_ref() == Some(subject)
    }
}

/// Lines of a known-hosts file.
#[derive(Clone, Debug, Default)]
pub struct HostKeyTable {
    lines: Vec<Line>,
}

impl HostKeyTable {
    /// Reads a file. Lines that cannot be read are kept as they are.
    pub fn parse(text: &str) -> Self {
        Self { lines: text.lines().map(Line::parse).collect() }
    }

    /// Returns the text of the file.
    pub fn text(&self) -> String {
        self.lines.iter().fold(String::new(), |text, line| text + &line.text + "\n")
    }

    /// Returns all keys of known hosts.
    pub fn keys(&self) -> BTreeSet<PublicKey> {
        self.lines.iter().filter_map(|line| line.key).collect()
    }

    /// Returns the keys that may answer for the target. A line about it without a key is an error. If it were
    /// skipped, the name would go to the first host that answers.
    pub fn expected(&self, query: &HostQuery) -> Result<Expected, BadLine> {
        match self.right_key(query)? {
            Some((key, _)) => Ok(Expected::Only(key)),
            None => Ok(Expected::AnyKnown(self.keys())),
        }
    }

    /// Compares the key `presented` with the file.
    pub fn verdict(&self, query: &HostQuery, presented: PublicKey) -> Result<KeyVerdict, BadLine> {
        if let Some((known, line)) = self.right_key(query)? {
            return Ok(if known == presented {
                KeyVerdict::Trusted
            } else {
                KeyVerdict::Mismatch { known, line }
            });
        }
        if self.keys().contains(&presented) {
            return Ok(KeyVerdict::Trusted);
        }
        // An unknown key at the address of a known host deserves more than "unknown".
        let met = (query.kind == AddressKind::Address).then(|| Subject::Host(query.address.clone()));
        let met = met.and_then(|subject| self.find(&subject));
        Ok(match met.and_then(|line| self.lines[line].key.map(|known| (known, line + 1))) {
            Some((known, line)) => KeyVerdict::Mismatch { known, line },
            None => KeyVerdict::Unknown,
        })
    }

    /// Returns the names and addresses of a key, or the key itself.
    pub fn known_as(&self, key: PublicKey) -> String {
        let names = self.lines.iter().filter(|line| line.key == Some(key)).filter_map(|line| {
            line.subject.as_ref().filter(|subject| **subject != Subject::Nameless).map(ToString::to_string)
        });
        let names: Vec<_> = names.take(3).collect();
        if names.is_empty() { key.to_string() } else { names.join(", ") }
    }

    /// Records a host that answered, under every name at which it did.
    pub fn record(&mut self, contact: &HostContact) -> Vec<Notice> {
        let mut notices = Vec::new();
        if let Some(subject) = contact.query.as_ref().and_then(HostQuery::subject) {
            self.name(subject, contact.key, contact.vouched, &mut notices);
        }
        for (address, kind) in &contact.answered_at {
            let subject = Subject::Host(address.clone());
            match kind {
                AddressKind::Name => self.name(subject, contact.key, false, &mut notices),
                AddressKind::Address => self.move_to(&subject, contact.key),
                AddressKind::Local => {}
            }
        }
        self.keep(contact.key);
        notices
    }

    /// Gives a name to a key, unless the name belongs to another key. With `again` also then.
    fn name(&mut self, subject: Subject, key: PublicKey, again: bool, notices: &mut Vec<Notice>) {
        let Some(at) = self.find(&subject) else {
            if self.keys().contains(&key) {
                let known_as = self.known_as(key);
                notices.push(Notice::NewName { name: subject.to_string(), known_as });
            }
            self.lines.push(Line::new(subject, key));
            return;
        };
        match self.lines[at].key {
            Some(known) if known == key => {}
            known if again => {
                let is_lent = matches!(subject, Subject::Export(..));
                self.lines[at] = Line::new(subject, key);
                // A host that was set up anew gets its name back. A host that lost an address is still known.
                if let (Some(known), true) = (known, is_lent) {
                    self.keep(known);
                }
            }
            Some(known) => {
                notices.push(Notice::NameTaken { name: subject.to_string(), known, line: at + 1 });
            }
            // The user must repair a damaged line.
            None => {}
        }
    }

    /// Records that this key is now at an address.
    fn move_to(&mut self, subject: &Subject, key: PublicKey) {
        match self.find(subject) {
            None => self.lines.push(Line::new(subject.clone(), key)),
            Some(at) if self.lines[at].key != Some(key) => {
                let before = std::mem::replace(&mut self.lines[at], Line::new(subject.clone(), key));
                if let Some(before) = before.key {
                    self.keep(before);
                }
            }
            Some(_) => {}
        }
    }

    /// Adds a line for a key that has none.
    fn keep(&mut self, key: PublicKey) {
        if !self.keys().contains(&key) {
            self.lines.push(Line::new(Subject::Nameless, key));
        }
    }

    /// Returns the only right key and its line, from 1.
    fn right_key(&self, query: &HostQuery) -> Result<Option<(PublicKey, usize)>, BadLine> {
        let Some(at) = query.subject().and_then(|subject| self.find(&subject)) else { return Ok(None) };
        self.lines[at].key.map(|key| Some((key, at + 1))).ok_or(BadLine(at + 1))
    }

    fn find(&self, subject: &Subject) -> Option<usize> {
        self.lines.iter().position(|line| line.is_about(subject))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: PublicKey = PublicKey([1; 32]);
    const B: PublicKey = PublicKey([2; 32]);
    const STRANGER: PublicKey = PublicKey([9; 32]);

    fn query(host: &str, export: &str) -> HostQuery {
        let address: HostAddress = host.parse().unwrap();
        HostQuery { kind: address.kind(), address, export: export.to_owned() }
    }

    fn by_ticket(key: PublicKey, at: &[&str]) -> HostContact {
        let answered_at = at.iter().map(|host| host.parse::<HostAddress>().unwrap());
        let answered_at = answered_at.map(|address| (address.clone(), address.kind())).collect();
        HostContact { key, query: None, vouched: false, answered_at }
    }

    fn typed(key: PublicKey, host: &str, export: &str) -> HostContact {
        HostContact { key, query: Some(query(host, export)), vouched: false, answered_at: Vec::new() }
    }

    fn table(contacts: &[HostContact]) -> HostKeyTable {
        let mut table = HostKeyTable::default();
        for contact in contacts {
            table.record(contact);
        }
        HostKeyTable::parse(&table.text())
    }

    #[test]
    fn a_known_key_is_right_under_every_new_name_and_keeps_the_name() {
        let mut table = table(&[by_ticket(A, &["192.0.2.1", "127.0.0.1"]), by_ticket(B, &["192.0.2.2"])]);
        for host in ["nas", "nas:7000", "192.0.2.9", "127.0.0.1", "localhost"] {
            assert_eq!(table.verdict(&query(host, "m"), A), Ok(KeyVerdict::Trusted), "{host}");
            assert_eq!(table.verdict(&query(host, "m"), STRANGER), Ok(KeyVerdict::Unknown), "{host}");
        }
        let notices = table.record(&typed(A, "nas", "m"));
        let known_as = "192.0.2.1:4433".to_owned();
        assert_eq!(notices, [Notice::NewName { name: "nas:4433".to_owned(), known_as }]);
        assert_eq!(table.expected(&query("nas", "other")), Ok(Expected::Only(A)));
        for other in [B, STRANGER] {
            let verdict = table.verdict(&query("nas", "m"), other);
            assert_eq!(verdict, Ok(KeyVerdict::Mismatch { known: A, line: 3 }), "a name belongs to one host");
        }
        assert_eq!(table.record(&typed(A, "nas", "m")), []);
    }

    #[test]
    fn addresses_move_between_known_hosts_but_exports_mounted_by_them_do_not() {
        let mut table = table(&[by_ticket(A, &["192.0.2.1"]), by_ticket(B, &["192.0.2.2"])]);
        // Last seen there: any known host may be there next, and an unknown one is refused.
        assert_eq!(table.verdict(&query("192.0.2.1", "m"), B), Ok(KeyVerdict::Trusted));
        let verdict = table.verdict(&query("192.0.2.1", "m"), STRANGER);
        assert_eq!(verdict, Ok(KeyVerdict::Mismatch { known: A, line: 1 }));
        // Mounted from there: B cannot replace A for this export, and has its own exports there.
        table.record(&typed(A, "192.0.2.1", "m"));
        assert_eq!(
            table.verdict(&query("192.0.2.1", "m"), B),
            Ok(KeyVerdict::Mismatch { known: A, line: 3 })
        );
        assert_eq!(table.verdict(&query("192.0.2.1", "films"), B), Ok(KeyVerdict::Trusted));
        // A ticket of the next host at the address takes nothing away and gives no notice.
        assert_eq!(table.record(&by_ticket(B, &["192.0.2.1"])), []);
        assert_eq!(table.expected(&query("192.0.2.1", "m")), Ok(Expected::Only(A)));
        assert_eq!(table.known_as(B), "192.0.2.1:4433, 192.0.2.2:4433");
    }

    #[test]
    fn a_key_that_loses_its_address_is_still_known() {
        let table = table(&[by_ticket(A, &["192.0.2.1"]), by_ticket(B, &["192.0.2.1"])]);
        assert_eq!(table.keys(), BTreeSet::from([A, B]));
        assert_eq!(table.text(), format!("192.0.2.1:4433 {B}\n- {A}\n"));
    }

    #[test]
    fn local_addresses_are_never_written_down() {
        let nobody =
            ["127.0.0.1", "127.3.2.1:9", "[::1]:9", "[fe80::1]:9", "169.254.3.4", "localhost", "x.localhost"];
        let mut all = vec![by_ticket(A, &nobody)];
        all.extend(nobody.map(|host| typed(A, host, "m")));
        assert_eq!(table(&all).text(), format!("- {A}\n"));
    }

    #[test]
    fn a_ticket_takes_a_name_away_only_if_it_was_given_for_the_name() {
        let mut table = table(&[typed(A, "nas", "m"), typed(A, "192.0.2.1", "m")]);
        let notices = table.record(&by_ticket(B, &["nas", "192.0.2.1"]));
        let name = "nas:4433".to_owned();
        assert_eq!(notices, [Notice::NameTaken { name, known: A, line: 1 }]);
        assert_eq!(table.expected(&query("nas", "m")), Ok(Expected::Only(A)));
        for host in ["nas", "192.0.2.1"] {
            table.record(&HostContact { vouched: true, ..typed(B, host, "m") });
            assert_eq!(table.expected(&query(host, "m")), Ok(Expected::Only(B)));
        }
        assert!(table.keys().contains(&A), "it lost an address and is still trusted");
    }

    #[test]
    fn edited_files_keep_their_comments_and_a_damaged_line_admits_no_host() {
        let text = format!("# mine\n\nnas:4433  {A}  laptop\nother:1 rubbish\n{B} x\n192.0.2.1:4433/m\n");
        let mut table = HostKeyTable::parse(&text);
        assert_eq!(table.expected(&query("nas", "m")), Ok(Expected::Only(A)));
        assert_eq!(table.expected(&query("other:1", "m")), Err(BadLine(4)));
        assert_eq!(table.verdict(&query("other:1", "m"), A), Err(BadLine(4)));
        assert_eq!(table.expected(&query("192.0.2.1", "m")), Err(BadLine(6)));
        assert_eq!(table.keys(), BTreeSet::from([A]));
        table.record(&typed(A, "other:1", "m"));
        assert_eq!(table.text(), text, "damaged lines are not repaired");
    }

    #[test]
    fn any_export_name_is_one_word() {
        for export in ["", "my films", "a%20b", "zeile\nnas:4433 x", "ümläut"] {
            let mut table = HostKeyTable::default();
            table.record(&typed(A, "192.0.2.1", export));
            let read = HostKeyTable::parse(&table.text());
            assert_eq!(read.expected(&query("192.0.2.1", export)), Ok(Expected::Only(A)), "{export:?}");
            assert_eq!(read.lines.len(), 1);
        }
    }

    fn any_contact() -> impl Strategy<Value = HostContact> {
        let host = prop::sample::select(vec!["nas", "box", "192.0.2.1", "192.0.2.2", "127.0.0.1"]);
        let key = prop::sample::select(vec![A, B]);
        (key, host, any::<bool>(), prop::sample::select(vec!["m", "n"])).prop_map(
            |(key, host, ticket, export)| {
                if ticket { by_ticket(key, &[host]) } else { typed(key, host, export) }
            },
        )
    }

    proptest! {
        /// For any history a name stays with its first key, no key is forgotten, and no unknown key is
        /// accepted.
        #[test]
        fn histories(contacts in prop::collection::vec(any_contact(), 0..20)) {
            let mut table = HostKeyTable::default();
            let mut owners: Vec<(Subject, PublicKey)> = Vec::new();
            for contact in &contacts {
                if let Some(query) = &contact.query {
                    // Only authenticated hosts are recorded.
                    if table.verdict(query, contact.key).unwrap() != KeyVerdict::Trusted {
                        continue;
                    }
                    owners.extend(query.subject().map(|subject| (subject, contact.key)));
                }
                let before = table.keys();
                table.record(contact);
                prop_assert!(table.keys().is_superset(&before) && table.keys().contains(&contact.key));
                table = HostKeyTable::parse(&table.text());
                for (subject, key) in &owners {
                    prop_assert_eq!(table.lines[table.find(subject).unwrap()].key, Some(*key));
                }
                for host in ["nas", "box", "new", "192.0.2.1", "127.0.0.1"] {
                    prop_assert_ne!(table.verdict(&query(host, "m"), STRANGER).unwrap(), KeyVerdict::Trusted);
                }
            }
        }
    }
}
