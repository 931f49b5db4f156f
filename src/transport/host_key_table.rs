//! Keys of hosts met before, under which names, and which key is right under a name.
//! Pure: the text of a known-hosts file in, decisions and the new text out.
//!
//! ```text
//! nas:4433 KEY                  a name. Only this key is right under it
//! 192.0.2.7:4433/media KEY      an address somebody mounted from: under it only this key has the export `media`
//! 192.0.2.7:4433 KEY            where the host was met last. Any known key may be there next
//! - KEY                         a known host without any of these
//! ```
//!
//! A key that stands in the file is trusted to be that host, wherever it answers. A name is given to the first known key that
//! answers to it, and to no other afterwards. Addresses are lent (DHCP), so one identifies a host only for what was mounted
//! from it by that address; loopback, link-local and bridge addresses identify nobody.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use super::identity::PublicKey;
use super::mount_source::{AddressKind, HostAddress};

/// Stands where a known host has no name.
const NAMELESS: &str = "-";

/// What somebody asked to mount: a host by name or address, and one of its exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostQuery {
    /// The name or address as typed.
    pub address: HostAddress,
    /// Whether that identifies a host.
    pub kind: AddressKind,
    /// The export.
    pub export: String,
}

impl HostQuery {
    /// The subject of the line that says which key is right.
    fn subject(&self) -> Option<Subject> {
        match self.kind {
            AddressKind::Name => Some(Subject::Host(self.address.clone())),
            AddressKind::Address => Some(Subject::Export(self.address.clone(), escaped(&self.export))),
            AddressKind::Local => None,
        }
    }
}

/// Which keys may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This one alone.
    Only(PublicKey),
    /// Any of these: the name was given to none of them yet.
    AnyKnown(BTreeSet<PublicKey>),
}

/// A line that names what was asked for and holds no key, numbered from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadLine(pub usize);

/// What a host that answered is to the one who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyVerdict {
    /// The key that was expected, or a known one under a new name.
    Trusted,
    /// A key that is in no line, under a name that is in none either.
    Unknown,
    /// Another key than the one of the name.
    Mismatch {
        /// The key of the name.
        known: PublicKey,
        /// The line that says so, from 1.
        line: usize,
    },
}

/// A host that answered with its key, and was let in by it.
#[derive(Clone, Debug)]
pub struct HostContact {
    /// The key it proved.
    pub key: PublicKey,
    /// What was typed; `None` where a ticket was.
    pub query: Option<HostQuery>,
    /// Whether a ticket vouched for the key under the name that was typed.
    pub vouched: bool,
    /// Names and addresses of its ticket at which it answered.
    pub answered_at: Vec<(HostAddress, AddressKind)>,
}

/// Something to tell after a meeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A known host has one more name.
    NewName {
        /// The name.
        name: String,
        /// What it is called elsewhere.
        known_as: String,
    },
    /// A host answers to the name of another.
    NameTaken {
        /// The name.
        name: String,
        /// The key that keeps the name.
        known: PublicKey,
        /// The line that says so, from 1.
        line: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Nameless,
    Host(HostAddress),
    /// The export as the file has it: one word.
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

/// An export's name as one word.
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

/// The lines of a known-hosts file.
#[derive(Clone, Debug, Default)]
pub struct HostKeyTable {
    lines: Vec<Line>,
}

impl HostKeyTable {
    /// Reads a file. Lines that cannot be read stay as they are.
    pub fn parse(text: &str) -> Self {
        Self { lines: text.lines().map(Line::parse).collect() }
    }

    /// The file.
    pub fn text(&self) -> String {
        self.lines.iter().fold(String::new(), |text, line| text + &line.text + "\n")
    }

    /// All keys of known hosts.
    pub fn keys(&self) -> BTreeSet<PublicKey> {
        self.lines.iter().filter_map(|line| line.key).collect()
    }

    /// Which keys may answer to what was asked for. A line about it without a key is an error: skipping it would leave the
    /// name to whoever comes first.
    pub fn expected(&self, query: &HostQuery) -> Result<Expected, BadLine> {
        match self.right_key(query)? {
            Some((key, _)) => Ok(Expected::Only(key)),
            None => Ok(Expected::AnyKnown(self.keys())),
        }
    }

    /// What a host with the key `presented` is to the one who asked.
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
        // An unknown key where a known host was met before is worth more words than "unknown".
        let met = (query.kind == AddressKind::Address).then(|| Subject::Host(query.address.clone()));
        let met = met.and_then(|subject| self.find(&subject));
        Ok(match met.and_then(|line| self.lines[line].key.map(|known| (known, line + 1))) {
            Some((known, line)) => KeyVerdict::Mismatch { known, line },
            None => KeyVerdict::Unknown,
        })
    }

    /// What a key is called: its names and addresses, or itself.
    pub fn known_as(&self, key: PublicKey) -> String {
        let names = self.lines.iter().filter(|line| line.key == Some(key)).filter_map(|line| {
            line.subject.as_ref().filter(|subject| **subject != Subject::Nameless).map(ToString::to_string)
        });
        let names: Vec<_> = names.take(3).collect();
        if names.is_empty() { key.to_string() } else { names.join(", ") }
    }

    /// Takes note of a host that answered, under every name at which it did.
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

    /// Gives a name to a key, unless it is another's. `again`: also then.
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
                // A host that was set up anew has its name back; one that lost an address is still known.
                if let (Some(known), true) = (known, is_lent) {
                    self.keep(known);
                }
            }
            Some(known) => {
                notices.push(Notice::NameTaken { name: subject.to_string(), known, line: at + 1 });
            }
            // A damaged line is for its owner to mend.
            None => {}
        }
    }

    /// An address is where this key is now.
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

    /// A key that has no line gets one.
    fn keep(&mut self, key: PublicKey) {
        if !self.keys().contains(&key) {
            self.lines.push(Line::new(Subject::Nameless, key));
        }
    }

    /// The key that alone is right, and its line from 1.
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
    fn a_known_key_is_right_under_every_new_name_and_the_name_is_its_own_from_then_on() {
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
            assert_eq!(verdict, Ok(KeyVerdict::Mismatch { known: A, line: 3 }), "a name is one host's");
        }
        assert_eq!(table.record(&typed(A, "nas", "m")), []);
    }

    #[test]
    fn addresses_move_between_known_hosts_but_not_what_was_mounted_by_them() {
        let mut table = table(&[by_ticket(A, &["192.0.2.1"]), by_ticket(B, &["192.0.2.2"])]);
        // Met there: any known host may be there next, and a stranger is told from one.
        assert_eq!(table.verdict(&query("192.0.2.1", "m"), B), Ok(KeyVerdict::Trusted));
        let verdict = table.verdict(&query("192.0.2.1", "m"), STRANGER);
        assert_eq!(verdict, Ok(KeyVerdict::Mismatch { known: A, line: 1 }));
        // Mounted from there: B cannot stand in for what was A's, and has its own exports there.
        table.record(&typed(A, "192.0.2.1", "m"));
        assert_eq!(
            table.verdict(&query("192.0.2.1", "m"), B),
            Ok(KeyVerdict::Mismatch { known: A, line: 3 })
        );
        assert_eq!(table.verdict(&query("192.0.2.1", "films"), B), Ok(KeyVerdict::Trusted));
        // A ticket of the next host at the address takes nothing away, and says nothing.
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
    fn what_identifies_nobody_is_never_written_down() {
        let nobody =
            ["127.0.0.1", "127.3.2.1:9", "[::1]:9", "[fe80::1]:9", "169.254.3.4", "localhost", "x.localhost"];
        let mut all = vec![by_ticket(A, &nobody)];
        all.extend(nobody.map(|host| typed(A, host, "m")));
        assert_eq!(table(&all).text(), format!("- {A}\n"));
    }

    #[test]
    fn a_ticket_does_not_take_a_name_away_but_one_given_for_the_name_does() {
        let mut table = table(&[typed(A, "nas", "m"), typed(A, "192.0.2.1", "m")]);
        let notices = table.record(&by_ticket(B, &["nas", "192.0.2.1"]));
        let name = "nas:4433".to_owned();
        assert_eq!(notices, [Notice::NameTaken { name, known: A, line: 1 }]);
        assert_eq!(table.expected(&query("nas", "m")), Ok(Expected::Only(A)));
        for host in ["nas", "192.0.2.1"] {
            table.record(&HostContact { vouched: true, ..typed(B, host, "m") });
            assert_eq!(table.expected(&query(host, "m")), Ok(Expected::Only(B)));
        }
        assert!(table.keys().contains(&A), "it has lost an address, not our trust");
    }

    #[test]
    fn edited_files_keep_their_comments_and_a_damaged_line_lets_nobody_in() {
        let text = format!("# mine\n\nnas:4433  {A}  laptop\nother:1 rubbish\n{B} x\n192.0.2.1:4433/m\n");
        let mut table = HostKeyTable::parse(&text);
        assert_eq!(table.expected(&query("nas", "m")), Ok(Expected::Only(A)));
        assert_eq!(table.expected(&query("other:1", "m")), Err(BadLine(4)));
        assert_eq!(table.verdict(&query("other:1", "m"), A), Err(BadLine(4)));
        assert_eq!(table.expected(&query("192.0.2.1", "m")), Err(BadLine(6)));
        assert_eq!(table.keys(), BTreeSet::from([A]));
        table.record(&typed(A, "other:1", "m"));
        assert_eq!(table.text(), text, "nothing is mended by itself");
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
        /// Whatever happens, a name stays with its first key, no key is forgotten, and no stranger comes in.
        #[test]
        fn histories(contacts in prop::collection::vec(any_contact(), 0..20)) {
            let mut table = HostKeyTable::default();
            let mut owners: Vec<(Subject, PublicKey)> = Vec::new();
            for contact in &contacts {
                if let Some(query) = &contact.query {
                    // Nobody records what was not let in.
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
