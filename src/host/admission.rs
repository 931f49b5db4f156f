//! Whether a client may come in, and with which rights.
//!
//! Pure: the hello, the keys and the tickets go in, with `now`; a decision comes out.

use super::keys::AuthorizedKeys;
use super::tickets::{TicketBook, TicketRefusal};
use crate::proto::{Hello, PROTOCOL_VERSION};
use crate::transport::PublicKey;

/// The client may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Admission {
    /// Whether it may only read.
    pub(super) read_only: bool,
    /// Whether it may choose owners.
    pub(super) owners: bool,
    /// As whom it acts; `None`: as the user who runs the host.
    pub(super) user: Option<String>,
    /// The ticket by which it comes in for the first time: the key is to be written down.
    pub(super) enrol_by: Option<String>,
}

/// Why a client may not come in, in words for the person who mounts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "this host speaks version {PROTOCOL_VERSION} of the protocol, the client version {0}; update the older of the two"
    )]
    Version(u16),
    #[error(
        "the key {0} is not known to this host; mount with a ticket (`wormhole pair new` on the host), \
         or add the key to the host's authorized_keys"
    )]
    UnknownKey(PublicKey),
    #[error(transparent)]
    Ticket(#[from] TicketRefusal),
    #[error(
        "on this host the key acts as {}, and the ticket is for keys that act as {ticket}; ask for a ticket for the same \
         user, or mount with another key (`-o identity=FILE`)",
        .known.as_deref().unwrap_or("the user who runs it")
    )]
    OtherUser {
        /// As whom the key acts.
        known: Option<String>,
        /// As whom keys act that come by the ticket.
        ticket: String,
    },
    #[error("this host has no export {export:?}; this key may mount: {}", list(.allowed))]
    UnknownExport {
        /// What was asked for.
        export: String,
        /// What there is for this key.
        allowed: Vec<String>,
    },
}

/// Decides over a client that proved `key` and said `hello` at `now`, in seconds since the epoch.
///
/// A stranger learns nothing of which exports there are.
pub(super) fn admit(
    hello: &Hello,
    key: PublicKey,
    exports: &[&str],
    keys: &AuthorizedKeys,
    tickets: &TicketBook,
    now: u64,
) -> Result<Admission, Refusal> {
    if hello.protocol_version != PROTOCOL_VERSION {
        return Err(Refusal::Version(hello.protocol_version));
    }
    let known = keys.find(key);
    let exists = exports.contains(&hello.export.as_str());
    if let Some(known) = known.filter(|known| exists && known.may_mount(&hello.export)) {
        return Ok(Admission {
            read_only: known.read_only,
            owners: known.owners,
            user: known.user.clone(),
            enrol_by: None,
        });
    }
    match (hello.ticket, known) {
        (Some(secret), _) => {
            let ticket = tickets.check(secret, key, &hello.export, now)?;
            if !exists {
                return Err(Refusal::UnknownExport { export: hello.export.clone(), allowed: Vec::new() });
            }
            let enrol_by = Some(ticket.id.clone());
            let Some(known) = known else {
                return Ok(Admission {
                    read_only: false,
                    owners: false,
                    user: ticket.user.clone(),
                    enrol_by,
                });
            };
            let user = known.user.clone();
            if let Some(meant) = ticket.user.clone().filter(|meant| Some(meant) != user.as_ref()) {
                return Err(Refusal::OtherUser { known: user, ticket: meant });
            }
            Ok(Admission { read_only: known.read_only, owners: known.owners, user, enrol_by })
        }
        (None, Some(known)) => {
            let allowed = exports.iter().filter(|name| known.may_mount(name)).map(ToString::to_string);
            Err(Refusal::UnknownExport { export: hello.export.clone(), allowed: allowed.collect() })
        }
        (None, None) => Err(Refusal::UnknownKey(key)),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{CompressionWish, Features, SessionId, TicketSecret};

    const EXPORTS: [&str; 2] = ["media", "home"];
    const SECRET: TicketSecret = TicketSecret([3; 16]);
    const NOW: u64 = 1_000;

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    fn hello(export: &str, ticket: Option<TicketSecret>) -> Hello {
        Hello {
            protocol_version: PROTOCOL_VERSION,
            features: Features(u64::MAX),
            session: SessionId([0; 16]),
            export: export.to_owned(),
            sub_path: Vec::new(),
            ticket,
            compression: CompressionWish::Never,
        }
    }

    /// Key 1 may read `media`; there is a ticket for `home`.
    fn decide(hello: &Hello, byte: u8) -> Result<Admission, Refusal> {
        let (keys, _) = AuthorizedKeys::parse(&format!("{} ro exports=media,gone\n", key(1)));
        let mut tickets = TicketBook::default();
        tickets.issue(SECRET, "home", (None, 1, None), NOW);
        tickets.issue(TicketSecret([4; 16]), "gone", (None, 1, None), NOW);
        admit(hello, key(byte), &EXPORTS, &keys, &tickets, NOW)
    }

    #[test]
    fn a_known_key_needs_no_ticket_and_an_old_one_does_not_harm_it() {
        let admission = Admission { read_only: true, owners: false, user: None, enrol_by: None };
        assert_eq!(decide(&hello("media", None), 1).unwrap(), admission);
        assert_eq!(decide(&hello("media", Some(TicketSecret([9; 16]))), 1).unwrap(), admission);
    }

    #[test]
    fn a_ticket_lets_a_stranger_in_and_widens_a_known_key() {
        assert!(decide(&hello("home", Some(SECRET)), 2).unwrap().enrol_by.is_some());
        let widened = decide(&hello("home", Some(SECRET)), 1).unwrap();
        assert!(widened.read_only && widened.enrol_by.is_some());
    }

    #[test]
    fn a_key_acts_as_one_user_wherever_it_comes_in() {
        let keys = format!("{} exports=media\n{} user=ann exports=media\n", key(1), key(2));
        let (keys, _) = AuthorizedKeys::parse(&keys);
        let mut tickets = TicketBook::default();
        tickets.issue(SECRET, "home", (None, 9, Some("ann")), NOW);
        tickets.issue(TicketSecret([4; 16]), "home", (None, 9, None), NOW);
        let user_of = |byte, secret| {
            let hello = hello("home", Some(TicketSecret([secret; 16])));
            admit(&hello, key(byte), &EXPORTS, &keys, &tickets, NOW).map(|admission| admission.user)
        };
        let ann = Ok(Some("ann".to_owned()));
        assert_eq!(user_of(3, 3), ann, "who is new acts as the ticket says");
        assert_eq!(user_of(2, 3), ann);
        assert_eq!(user_of(2, 4), ann, "a ticket for the host's own user gives nobody more rights");
        let other = Refusal::OtherUser { known: None, ticket: "ann".to_owned() };
        assert_eq!(user_of(1, 3), Err(other), "nor does a key bring more than the ticket is for");
        assert_eq!(user_of(3, 4), Ok(None));
    }

    #[test]
    fn a_stranger_learns_nothing_of_the_exports() {
        let there = decide(&hello("media", None), 2).unwrap_err();
        assert_eq!(there, decide(&hello("nonsense", None), 2).unwrap_err());
        assert_eq!(there, Refusal::UnknownKey(key(2)));
        let with_ticket = decide(&hello("media", Some(SECRET)), 2).unwrap_err().to_string();
        assert!(with_ticket.contains("home"), "{with_ticket}");
    }

    #[test]
    fn an_export_that_is_not_there_is_named_with_those_that_are() {
        for export in ["nonsense", "home", "gone"] {
            let refusal = decide(&hello(export, None), 1).unwrap_err().to_string();
            assert!(refusal.contains(export) && refusal.ends_with("media"), "{refusal}");
        }
        assert!(decide(&hello("gone", Some(TicketSecret([4; 16]))), 2).is_err());
    }

    #[test]
    fn another_version_is_refused_before_all_else() {
        let newer = Hello { protocol_version: 2, ..hello("media", None) };
        assert_eq!(decide(&newer, 1), Err(Refusal::Version(2)));
    }
}
