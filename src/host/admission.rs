//! Whether a client may come in, and with which rights.
//!
//! Pure: the hello, the keys and the tickets go in, with `now`; a decision comes out.

use std::fmt;

use super::keys::{AuthorizedKey, AuthorizedKeys, Rights};
use super::tickets::{TicketBook, TicketRefusal};
use crate::proto::{Hello, PROTOCOL_VERSION};
use crate::transport::PublicKey;

/// The client may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Admission {
    /// What it may do.
    pub(super) rights: Rights,
    /// What people call it; empty where it has no name.
    pub(super) name: String,
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
        "on this host the key {}, and the ticket is for keys that {}; ask for a ticket that gives as much, or mount with \
         another key (`-o identity=FILE`)",
        describe(known),
        describe(ticket)
    )]
    OtherRights {
        /// What the key may do.
        known: Rights,
        /// What keys may do that come by the ticket.
        ticket: Rights,
    },
    #[error(
        "the key {0} is named in the host's authorized_keys, and lets nobody in: `wormhole key list` on the host says which line \
         is wrong"
    )]
    BarredKey(PublicKey),
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
    if let Some(known) = known.as_ref().filter(|known| exists && known.may_mount(&hello.export)) {
        return Ok(Admission { rights: known.rights.clone(), name: known.name.clone(), enrol_by: None });
    }
    if keys.bars(key) {
        return Err(Refusal::BarredKey(key));
    }
    match (hello.ticket, known.as_ref()) {
        (Some(secret), _) => {
            let ticket = tickets.check(secret, key, &hello.export, now)?;
            if !exists {
                return Err(Refusal::UnknownExport { export: hello.export.clone(), allowed: Vec::new() });
            }
            let enrol_by = Some(ticket.id.clone());
            let given = ticket.rights();
            let Some(known) = known else {
                return Ok(Admission { rights: given, name: ticket.name.clone(), enrol_by });
            };
            // A key has the same rights in all its exports, so it must not have more than the ticket gives in this one.
            let rights = known.rights.clone();
            if !rights.is_within(&given) {
                return Err(Refusal::OtherRights { known: rights, ticket: given });
            }
            Ok(Admission { rights, name: known.name.clone(), enrol_by })
        }
        (None, Some(known)) => {
            let allowed = exports.iter().filter(|name| known.may_mount(name)).map(ToString::to_string);
            Err(Refusal::UnknownExport { export: hello.export.clone(), allowed: allowed.collect() })
        }
        (None, None) => Err(Refusal::UnknownKey(key)),
    }
}

/// How a key stands that came in earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may do what it might then.
    AsBefore,
    /// It may do something else now, and has to come in anew.
    Changed {
        /// What, for the client.
        words: &'static str,
        /// Whether what it has open was opened as another user than it is now.
        is_other_user: bool,
    },
    /// It may no longer come in.
    Revoked,
}

impl Standing {
    /// By what is `known` of the key now, if it came in to `export` with the rights `given`.
    pub(super) fn of(known: Option<&AuthorizedKey>, export: &str, given: &Rights) -> Self {
        let Some(known) = known.filter(|known| known.may_mount(export)) else { return Self::Revoked };
        if known.rights == *given {
            return Self::AsBefore;
        }
        let is_other_user = known.rights.user != given.user || known.rights.owners != given.owners;
        let words = if known.rights.user != given.user {
            "this key acts as another user from now on"
        } else if known.rights.read_only && !given.read_only {
            "this key may only read from now on"
        } else {
            "the rights of this key were changed"
        };
        Self::Changed { words, is_other_user }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AsBefore => "nothing was changed",
            Self::Changed { words, .. } => words,
            Self::Revoked => "its key was revoked",
        })
    }
}

/// Rights in words, as they stand behind "the key".
fn describe(rights: &Rights) -> String {
    let Rights { read_only, owners, user, .. } = rights;
    let what = if *read_only { "may only read" } else { "may write" };
    let whose = if *owners { " and choose owners" } else { "" };
    let user = user.as_deref().map(|user| format!(" as the user {user:?}")).unwrap_or_default();
    format!("{what}{whose}{user}")
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tickets::Terms;
    use crate::proto::{CompressionWish, Features, SessionId, TicketSecret};

    const EXPORTS: [&str; 2] = ["media", "home"];
    const SECRET: TicketSecret = TicketSecret([3; 16]);
    const NOW: u64 = 1_000;

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    fn terms(user: Option<&str>) -> Terms<'_> {
        Terms { keys_max: 9, user, ..Terms::default() }
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
        tickets.issue(SECRET, "home", terms(None), NOW);
        tickets.issue(TicketSecret([4; 16]), "gone", terms(None), NOW);
        admit(hello, key(byte), &EXPORTS, &keys, &tickets, NOW)
    }

    #[test]
    fn a_known_key_needs_no_ticket_and_an_old_one_does_not_harm_it() {
        let rights = Rights { read_only: true, ..Rights::default() };
        let admission = Admission { rights, name: String::new(), enrol_by: None };
        assert_eq!(decide(&hello("media", None), 1).unwrap(), admission);
        assert_eq!(decide(&hello("media", Some(TicketSecret([9; 16]))), 1).unwrap(), admission);
    }

    #[test]
    fn a_ticket_lets_a_stranger_in_and_widens_a_known_key() {
        assert!(decide(&hello("home", Some(SECRET)), 2).unwrap().enrol_by.is_some());
        let widened = decide(&hello("home", Some(SECRET)), 1).unwrap();
        assert!(widened.rights.read_only && widened.enrol_by.is_some());
    }

    #[test]
    fn a_key_acts_as_one_user_wherever_it_comes_in() {
        let keys = format!("{} exports=media\n{} user=ann exports=media\n", key(1), key(2));
        let (keys, _) = AuthorizedKeys::parse(&keys);
        let mut tickets = TicketBook::default();
        tickets.issue(SECRET, "home", terms(Some("ann")), NOW);
        tickets.issue(TicketSecret([4; 16]), "home", terms(None), NOW);
        let user_of = |byte, secret| {
            let hello = hello("home", Some(TicketSecret([secret; 16])));
            admit(&hello, key(byte), &EXPORTS, &keys, &tickets, NOW).map(|admission| admission.rights.user)
        };
        let ann = Ok(Some("ann".to_owned()));
        assert_eq!(user_of(3, 3), ann, "who is new acts as the ticket says");
        assert_eq!(user_of(2, 3), ann);
        assert_eq!(user_of(2, 4), ann, "a ticket for the host's own user gives nobody more rights");
        let refused = user_of(1, 3).unwrap_err();
        assert!(
            matches!(refused, Refusal::OtherRights { .. }),
            "nor does a key bring more than the ticket is for"
        );
        assert!(refused.to_string().contains("\"ann\""), "{refused}");
        assert_eq!(user_of(3, 4), Ok(None));
    }

    #[test]
    fn a_ticket_gives_a_known_key_no_more_than_it_is_for() {
        let keys = format!("{} exports=media\n{} owners exports=media\n{} ro\n", key(1), key(2), key(3));
        let keys = format!("{keys}{} ro exports=media\n{} exprots=media\n", key(4), key(5));
        let (keys, _) = AuthorizedKeys::parse(&keys);
        let mut tickets = TicketBook::default();
        tickets.issue(SECRET, "home", Terms { read_only: true, ..terms(None) }, NOW);
        tickets.issue(TicketSecret([4; 16]), "home", terms(None), NOW);
        let comes_in = |byte, secret| {
            let hello = hello("home", Some(TicketSecret([secret; 16])));
            admit(&hello, key(byte), &EXPORTS, &keys, &tickets, NOW)
        };
        assert!(
            matches!(comes_in(1, 3), Err(Refusal::OtherRights { .. })),
            "it could write by a ticket to read"
        );
        assert!(matches!(comes_in(2, 4), Err(Refusal::OtherRights { .. })), "it would be root there, too");
        for (byte, secret) in [(1, 4), (3, 4), (3, 3), (4, 3), (4, 4)] {
            let admission = comes_in(byte, secret).unwrap();
            assert_eq!(admission.rights.read_only, byte > 2, "{byte} by {secret}");
        }
        assert!(comes_in(9, 3).unwrap().rights.read_only, "who is new may do what the ticket says");
        assert_eq!(comes_in(5, 4), Err(Refusal::BarredKey(key(5))), "and the ticket is not used up");
    }

    #[test]
    fn whatever_is_changed_of_a_key_ends_what_it_began() {
        let options = ["", "ro", "owners", "ro owners", "user=ann", "user=bob", "ro user=ann"];
        let known = |options: &str| {
            let (keys, _) = AuthorizedKeys::parse(&format!("{} exports=media {options}\n", key(1)));
            keys.find(key(1)).unwrap()
        };
        for before in options {
            for after in options {
                let standing = Standing::of(Some(&known(after)), "media", &known(before).rights);
                assert_eq!(standing == Standing::AsBefore, before == after, "from {before:?} to {after:?}");
                assert_ne!(standing, Standing::Revoked);
            }
            assert_eq!(Standing::of(Some(&known(before)), "home", &known(before).rights), Standing::Revoked);
            assert_eq!(Standing::of(None, "media", &known(before).rights), Standing::Revoked);
        }
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
