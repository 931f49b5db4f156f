//! Join tickets: which were given out, for what, until when, and to whom they opened the door.
//!
//! Pure: `now` comes in as an argument. Of the secret only the hash is kept, so that whoever reads the file cannot use it.
//!
//! The file fails closed: an entry that cannot be understood lets nobody in and stays where it is; the others hold.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::keys::Rights;
use crate::chunk::ChunkHash;
use crate::proto::TicketSecret;
use crate::transport::PublicKey;

/// How long a ticket is good when nobody says otherwise, in seconds: a day.
pub const EXPIRES_SECONDS_DEFAULT: u64 = 24 * 3600;

/// How long a ticket that is no longer good is listed, in seconds: a week, so that a late guest is told why.
const REMEMBERED_SECONDS: u64 = 7 * 24 * 3600;

/// Most tickets kept; the oldest give way. A daemon that is restarted every minute makes 1,440 a day.
const TICKETS_MAX: usize = 4096;

/// Characters of a ticket's name: 32 bits of its hash.
const ID_CHARACTERS: usize = 8;

/// One ticket that was given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketRecord {
    /// Its name, for lists and to revoke it; tells nothing of the secret.
    pub id: String,
    /// BLAKE3 of the secret, 64 hexadecimal digits.
    pub secret_hash: String,
    /// Which export it opens.
    pub export: String,
    /// When it was made, in seconds since the epoch.
    pub created: u64,
    /// When it stops letting keys in, in seconds since the epoch; `None` for never, which the file must say.
    #[serde(deserialize_with = "Option::deserialize")]
    pub expires: Option<u64>,
    /// How many keys it lets in, in all.
    pub keys_max: u32,
    /// As whom the keys act that it lets in; `None`: as the user who runs the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether the keys may only read that it lets in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// What people call the keys that it lets in; empty for nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The keys it let in.
    pub used_by: Vec<String>,
    /// Whether it was taken back.
    pub revoked: bool,
}

/// What a ticket is good for at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TicketState {
    /// It lets a key in.
    Good,
    /// It let in as many keys as it was made for.
    Used,
    /// Its time is over.
    Expired,
    /// It was taken back.
    Revoked,
}

impl TicketRecord {
    /// The rights of the keys that it lets in.
    pub fn rights(&self) -> Rights {
        Rights { read_only: self.read_only, user: self.user.clone(), ..Rights::default() }
    }

    /// Whether it lets `key` in to `export` at `now`.
    fn opens(&self, key: PublicKey, export: &str, now: u64) -> Result<(), TicketRefusal> {
        let id = self.id.clone();
        // Whoever asks here is not among the authorised keys, or no longer.
        let was_let_in = self.used_by.contains(&key.to_string());
        match self.state(now) {
            TicketState::Revoked => Err(TicketRefusal::Revoked { id }),
            TicketState::Expired => Err(TicketRefusal::Expired { id }),
            TicketState::Good | TicketState::Used if was_let_in => Err(TicketRefusal::KeyRevoked { id }),
            TicketState::Used => Err(TicketRefusal::Used { id }),
            TicketState::Good if self.export != export => {
                Err(TicketRefusal::OtherExport { id, export: self.export.clone() })
            }
            TicketState::Good => Ok(()),
        }
    }

    /// What it is good for at `now`, in seconds since the epoch.
    pub fn state(&self, now: u64) -> TicketState {
        if self.revoked {
            TicketState::Revoked
        } else if self.expires.is_some_and(|expires| now >= expires) {
            TicketState::Expired
        } else if self.used_by.len() >= self.keys_max as usize {
            TicketState::Used
        } else {
            TicketState::Good
        }
    }
}

/// Why a ticket does not open the door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TicketRefusal {
    #[error("this host knows no such ticket; ask for a new one")]
    Unknown,
    #[error("the ticket {id} has expired; ask for a new one (`wormhole pair new` on the host)")]
    Expired { id: String },
    #[error("the ticket {id} was revoked; ask for a new one")]
    Revoked { id: String },
    #[error(
        "the ticket {id} has let in as many keys as it was made for; ask for a new one (`wormhole pair new` on the host)"
    )]
    Used { id: String },
    #[error("the ticket {id} is for the export {export:?}; mount that, or ask for another ticket")]
    OtherExport { id: String, export: String },
    #[error("this key was let in by the ticket {id} before, and revoked since; ask for a new ticket")]
    KeyRevoked { id: String },
}

/// All tickets that are remembered, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TicketBook {
    tickets: Vec<TicketRecord>,
    /// Entries that cannot be understood, as they stand in the file.
    unread: Vec<Value>,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    tickets: Vec<Value>,
}

/// What a new ticket is good for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms<'a> {
    /// When it stops letting keys in, in seconds since the epoch; `None` for never.
    pub expires: Option<u64>,
    /// How many keys it lets in.
    pub keys_max: u32,
    /// As whom they act.
    pub user: Option<&'a str>,
    /// Whether they may only read.
    pub read_only: bool,
    /// What people call them.
    pub name: &'a str,
}

/// What a ticket is to be for that is shown at the start of a host.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) export: &'a str,
    pub(super) rights: &'a Rights,
    /// For how long, in seconds; `None` for ever.
    pub(super) expires_seconds: Option<u64>,
}

impl TicketBook {
    /// Reads the file; also tells what is wrong with which entry, counted from 1. An error where the file has no entries at all.
    pub fn parse(text: &[u8]) -> Result<(Self, Vec<(usize, String)>), serde_json::Error> {
        let (mut book, mut problems) = (Self::default(), Vec::new());
        for (i, entry) in serde_json::from_slice::<File>(text)?.tickets.into_iter().enumerate() {
            match TicketRecord::deserialize(&entry) {
                Ok(ticket) => book.tickets.push(ticket),
                Err(problem) => {
                    problems.push((i + 1, problem.to_string()));
                    book.unread.push(entry);
                }
            }
        }
        Ok((book, problems))
    }

    /// The file.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        let read = self.tickets.iter().map(serde_json::to_value);
        let tickets = self.unread.iter().cloned().map(Ok).chain(read).collect::<Result<_, _>>()?;
        serde_json::to_string_pretty(&File { tickets })
    }

    /// Notes a new ticket and returns its name.
    pub fn issue(&mut self, secret: TicketSecret, export: &str, terms: Terms<'_>, now: u64) -> String {
        let Terms { expires, keys_max, user, read_only, name } = terms;
        self.forget_old(now);
        let (id, secret_hash) = (ticket_id(secret), hash(secret));
        self.tickets.push(TicketRecord {
            id: id.clone(),
            secret_hash,
            export: export.to_owned(),
            created: now,
            expires,
            keys_max,
            user: user.map(str::to_owned),
            read_only,
            name: name.to_owned(),
            used_by: Vec::new(),
            revoked: false,
        });
        id
    }

    /// Whether the secret lets `key` in to `export` at `now`, and by which ticket. Changes nothing.
    pub(super) fn check(
        &self,
        secret: TicketSecret,
        key: PublicKey,
        export: &str,
        now: u64,
    ) -> Result<&TicketRecord, TicketRefusal> {
        let secret_hash = hash(secret);
        let mut found = Err(TicketRefusal::Unknown);
        // A file that has it twice gives what both entries give.
        for ticket in self.tickets.iter().filter(|ticket| ticket.secret_hash == secret_hash) {
            found = Ok(ticket.opens(key, export, now).map(|()| ticket)?);
        }
        found
    }

    /// Whether a ticket that was shown before is as good as a new one: nobody has come by it, and half of the time is left that a new one
    /// would have.
    pub(super) fn serves_again(&self, secret: TicketSecret, wanted: &Wanted<'_>, now: u64) -> bool {
        let secret_hash = hash(secret);
        let Some(ticket) = self.tickets.iter().find(|ticket| ticket.secret_hash == secret_hash) else {
            return false;
        };
        let has_time = match (ticket.expires, wanted.expires_seconds) {
            (None, None) => true,
            (Some(expires), Some(seconds)) => (seconds / 2..=seconds).contains(&expires.saturating_sub(now)),
            _ => false,
        };
        let is_alike = ticket.export == wanted.export && ticket.rights() == *wanted.rights;
        let is_single = ticket.keys_max == 1 && ticket.name.is_empty();
        ticket.state(now) == TicketState::Good
            && ticket.used_by.is_empty()
            && has_time
            && is_alike
            && is_single
    }

    /// Notes that the ticket named `id` let `key` in, and returns what people call such keys.
    pub(super) fn redeem(&mut self, id: &str, key: PublicKey) -> String {
        let mut name = String::new();
        for ticket in self.tickets.iter_mut().filter(|ticket| ticket.id == id) {
            ticket.used_by.push(key.to_string());
            name.clone_from(&ticket.name);
        }
        name
    }

    /// Takes a ticket back; `false` where there is none of that name.
    pub fn revoke(&mut self, id: &str) -> bool {
        let found = self.tickets.iter_mut().find(|ticket| ticket.id == id);
        found.map(|ticket| ticket.revoked = true).is_some()
    }

    /// All tickets, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &TicketRecord> {
        self.tickets.iter()
    }

    fn forget_old(&mut self, now: u64) {
        self.tickets.retain(|ticket| {
            let over_since = match ticket.state(now) {
                TicketState::Good => return true,
                TicketState::Expired => ticket.expires.unwrap_or(ticket.created),
                TicketState::Used | TicketState::Revoked => ticket.created,
            };
            now.saturating_sub(over_since) < REMEMBERED_SECONDS
        });
        let excess = (self.tickets.len() + 1).saturating_sub(TICKETS_MAX);
        self.tickets.drain(..excess);
    }
}

/// The name of a ticket, by which it can be listed and revoked without its secret.
pub fn ticket_id(secret: TicketSecret) -> String {
    hash(secret)[..ID_CHARACTERS].to_owned()
}

/// A secret has 128 bits of chance, so its plain hash cannot be searched for.
fn hash(secret: TicketSecret) -> String {
    ChunkHash::of(&secret.0).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: TicketSecret = TicketSecret([7; 16]);
    const NOW: u64 = 1_000_000;

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    fn terms(expires: Option<u64>, keys_max: u32) -> Terms<'static> {
        Terms { expires, keys_max, ..Terms::default() }
    }

    fn book(keys_max: u32) -> (TicketBook, String) {
        let mut book = TicketBook::default();
        let id = book.issue(SECRET, "media", terms(Some(NOW + 10), keys_max), NOW);
        (book, id)
    }

    #[test]
    fn a_ticket_is_good_until_it_expires() {
        let (book, id) = book(1);
        assert_eq!(book.check(SECRET, key(1), "media", NOW + 9).unwrap().id, id);
        let refusal = book.check(SECRET, key(1), "media", NOW + 10).unwrap_err();
        assert_eq!(refusal, TicketRefusal::Expired { id });
    }

    #[test]
    fn a_ticket_without_end_stays_good() {
        let mut book = TicketBook::default();
        book.issue(SECRET, "media", terms(None, 1), NOW);
        assert!(book.check(SECRET, key(1), "media", u64::MAX).is_ok());
    }

    #[test]
    fn a_ticket_lets_in_as_many_keys_as_it_was_made_for() {
        let (mut book, id) = book(2);
        for byte in 1..=2 {
            assert!(book.check(SECRET, key(byte), "media", NOW).is_ok());
            book.redeem(&id, key(byte));
        }
        assert_eq!(book.check(SECRET, key(3), "media", NOW), Err(TicketRefusal::Used { id }));
    }

    #[test]
    fn a_revoked_key_does_not_come_back_by_its_old_ticket() {
        let (mut book, id) = book(5);
        book.redeem(&id, key(1));
        assert_eq!(book.check(SECRET, key(1), "media", NOW), Err(TicketRefusal::KeyRevoked { id }));
    }

    #[test]
    fn other_secrets_exports_and_revoked_tickets_are_refused() {
        let (mut book, id) = book(1);
        let other = TicketSecret([8; 16]);
        assert_eq!(book.check(other, key(1), "media", NOW), Err(TicketRefusal::Unknown));
        let refusal = book.check(SECRET, key(1), "home", NOW).unwrap_err();
        assert_eq!(refusal, TicketRefusal::OtherExport { id: id.clone(), export: "media".into() });
        assert!(book.revoke(&id) && !book.revoke("none"));
        assert_eq!(book.check(SECRET, key(1), "media", NOW), Err(TicketRefusal::Revoked { id }));
    }

    #[test]
    fn a_ticket_is_shown_again_while_it_is_as_good_as_a_new_one() {
        let rights = Rights::default();
        let wanted = |seconds| Wanted { export: "media", rights: &rights, expires_seconds: seconds };
        let (mut book, id) = book(1);
        assert!(book.serves_again(SECRET, &wanted(Some(10)), NOW));
        assert!(book.serves_again(SECRET, &wanted(Some(10)), NOW + 5));
        assert!(!book.serves_again(SECRET, &wanted(Some(10)), NOW + 6), "too little time is left");
        assert!(!book.serves_again(SECRET, &wanted(Some(9)), NOW), "it would be good for longer than asked");
        assert!(!book.serves_again(SECRET, &wanted(None), NOW));
        assert!(!book.serves_again(TicketSecret([8; 16]), &wanted(Some(10)), NOW));
        assert!(!book.serves_again(SECRET, &Wanted { export: "home", ..wanted(Some(10)) }, NOW));
        let reading = Rights { read_only: true, ..Rights::default() };
        assert!(!book.serves_again(SECRET, &Wanted { rights: &reading, ..wanted(Some(10)) }, NOW));
        let mut revoked = book.clone();
        revoked.revoke(&id);
        assert!(!revoked.serves_again(SECRET, &wanted(Some(10)), NOW));
        book.redeem(&id, key(1));
        assert!(!book.serves_again(SECRET, &wanted(Some(10)), NOW));
    }

    #[test]
    fn tickets_that_are_over_are_forgotten_after_a_week() {
        let (mut book, _) = book(1);
        book.issue(TicketSecret([1; 16]), "media", terms(None, 1), NOW + REMEMBERED_SECONDS);
        assert_eq!(book.iter().count(), 2);
        book.issue(TicketSecret([2; 16]), "media", terms(None, 1), NOW + 10 + REMEMBERED_SECONDS);
        assert_eq!(book.iter().count(), 2);
    }

    #[test]
    fn the_book_is_bounded_and_the_oldest_go() {
        let mut book = TicketBook::default();
        for i in 0..TICKETS_MAX as u64 + 5 {
            book.issue(TicketSecret(u128::from(i).to_le_bytes()), "media", terms(None, 1), i);
        }
        assert_eq!(book.iter().count(), TICKETS_MAX);
        assert_eq!(book.iter().next().unwrap().created, 5);
    }

    #[test]
    fn the_secret_is_not_in_the_file() {
        let (book, _) = book(1);
        let text = book.to_text().unwrap();
        assert!(!text.contains("07070707") && !text.contains("7,7,7"));
        assert_eq!(TicketBook::parse(text.as_bytes()).unwrap(), (book, Vec::new()));
    }

    #[test]
    fn an_entry_that_is_not_understood_lets_nobody_in_and_stays() {
        let (mut book, id) = book(1);
        book.issue(TicketSecret([8; 16]), "media", terms(None, 1), NOW);
        let text = book.to_text().unwrap();
        let one = format!("\"id\": \"{id}\",");
        for (whole, broken) in [
            (one.as_str(), "\"id\": 7,"),
            (&one, "\"id\": \"x\", \"reed_only\": true,"),
            (&one, ""),
            (&format!("\"expires\": {},", NOW + 10), ""),
            ("\"revoked\": false", "\"revoked\": null"),
            ("\"keys_max\": 1,", "\"keys_max\": -1,"),
        ] {
            let text = text.replacen(whole, broken, 1);
            let (mut read, problems) = TicketBook::parse(text.as_bytes()).unwrap();
            assert_eq!(problems.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(), [1], "{broken}");
            assert_eq!(read.check(SECRET, key(1), "media", NOW), Err(TicketRefusal::Unknown), "{broken}");
            assert!(read.check(TicketSecret([8; 16]), key(1), "media", NOW).is_ok(), "{broken}");
            read.issue(TicketSecret([9; 16]), "media", terms(None, 1), NOW);
            let (_, again) = TicketBook::parse(read.to_text().unwrap().as_bytes()).unwrap();
            assert_eq!(again, problems, "it can still be mended: {broken}");
        }
        for broken in ["", "{", "[]", "{}", "{\"tickets\": {}}"] {
            assert!(TicketBook::parse(broken.as_bytes()).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_ticket_that_stands_there_twice_gives_what_both_entries_give() {
        let (mut book, id) = book(1);
        book.issue(SECRET, "media", terms(None, 1), NOW);
        assert!(book.revoke(&id));
        assert!(matches!(book.check(SECRET, key(1), "media", NOW), Err(TicketRefusal::Revoked { .. })));
    }
}
