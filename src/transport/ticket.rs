//! Join ticket: everything that a client needs for its first contact with an export, in one word to copy.
//!
//! Pure: the secret is made elsewhere. A ticket is `whm1` and the lower-case base32 (no `0`, `1`, `8`, `9` to
//! misread) of:
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 1 | version, 1 |
//! | 32 | the host's public key |
//! | 16 | the secret that lets one client in |
//! | 1 + n | export name, UTF-8, at most 255 bytes |
//! | 1 | number of addresses, at most 16 |
//! | each | 4 and 4 bytes (IPv4), 6 and 16 bytes (IPv6), or 0, length and name; then the port, 2 bytes |
//! | 4 | the first bytes of the BLAKE3 of all the above, to detect typing errors |

use core::net::{Ipv4Addr, Ipv6Addr};
use std::borrow::Cow;
use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use thiserror::Error;

use super::{identity::PublicKey, mount_source::HostAddress};
use crate::proto::TicketSecret;

/// Prefix of every ticket.
pub const TICKET_PREFIX: &str = "whm1";
/// Bytes of the secret: 128 bits cannot be guessed over a network.
pub const SECRET_BYTES: usize = 16;
/// Largest number of addresses. A machine has a handful.
pub const TICKET_ADDRESSES_MAX: usize = 16;
/// Longest word read, longer than the largest ticket.
const WORD_BYTES_MAX: usize = 16 * 1024;
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
const NAME_BYTES_MAX: usize = u8::MAX as usize;

/// A join ticket. `Display` writes the word, secret included; `Debug` hides the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    addresses: Vec<HostAddress>,
    host_key: PublicKey,
    export: String,
    secret: TicketSecret,
}

impl Ticket {
    /// Makes a ticket. It needs 1 to 16 addresses, and an export name of at most 255 bytes.
    pub fn new(
        addresses: Vec<HostAddress>,
        host_key: PublicKey,
        export: String,
        secret: TicketSecret,
    ) -> Result<Self, TicketError> {
        if addresses.is_empty() || addresses.len() > TICKET_ADDRESSES_MAX {
            return Err(TicketError::AddressCount { count: addresses.len() });
        }
        if export.len() > NAME_BYTES_MAX {
            return Err(TicketError::ExportTooLong { bytes: export.len() });
        }
        Ok(Self { addresses, host_key, export, secret })
    }

    /// Returns the addresses of the host, best first.
    pub fn addresses(&self) -> &[HostAddress] {
        &self.addresses
    }

    /// Returns the key that the host must prove.
    pub fn host_key(&self) -> PublicKey {
        self.host_key
    }

    /// Returns the export of the ticket.
    pub fn export(&self) -> &str {
        &self.export
    }

    /// Returns the secret that admits the client.
    pub fn secret(&self) -> TicketSecret {
        self.secret
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.host_key.as_bytes());
        bytes.extend(self.secret.0);
        put_text(&mut bytes, &self.export);
        bytes.push(self.addresses.len() as u8);
        for address in &self.addresses {
            if let Ok(v4) = address.host().parse::<Ipv4Addr>() {
                bytes.push(4);
                bytes.extend(v4.octets());
            } else if let Ok(v6) = address.host().parse::<Ipv6Addr>() {
                bytes.push(6);
                bytes.extend(v6.octets());
            } else {
                bytes.push(0);
                put_text(&mut bytes, address.host());
            }
            bytes.extend(address.port().to_be_bytes());
        }
        bytes.extend(checksum(&bytes));
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, TicketError> {
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TicketError::Incomplete)?;
        if checksum(body) != *sum {
            return Err(TicketError::Mistyped);
        }
        let mut rest = Reader(body);
        let version = rest.byte()?;
        if version != VERSION {
            return Err(TicketError::UnknownVersion { version });
        }
        let host_key = PublicKey(rest.array()?);
        let secret = TicketSecret(rest.array()?);
        let export = rest.text()?;
        let count = usize::from(rest.byte()?);
        if count > TICKET_ADDRESSES_MAX {
            return Err(TicketError::AddressCount { count });
        }
        let addresses = (0..count).map(|_| rest.address()).collect::<Result<_, _>>()?;
        if !rest.0.is_empty() {
            return Err(TicketError::Malformed);
        }
        Self::new(addresses, host_key, export, secret)
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() <= NAME_BYTES_MAX, "checked when the ticket was made");
    bytes.push(text.len() as u8);
    bytes.extend(text.as_bytes());
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut first = [0; CHECKSUM_BYTES];
    first.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM_BYTES]);
    first
}

/// Unread part of a ticket.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], TicketError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(TicketError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const COUNT: usize>(&mut self) -> Result<[u8; COUNT], TicketError> {
        self.take(COUNT)?.try_into().map_err(|_| TicketError::Malformed)
    }

    fn byte(&mut self) -> Result<u8, TicketError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn text(&mut self) -> Result<String, TicketError> {
        let length = usize::from(self.byte()?);
        String::from_utf8(self.take(length)?.to_vec()).map_err(|_| TicketError::Malformed)
    }

    fn address(&mut self) -> Result<HostAddress, TicketError> {
        let host = match self.byte()? {
            4 => Ipv4Addr::from(self.array::<4>()?).to_string(),
            6 => Ipv6Addr::from(self.array::<16>()?).to_string(),
            0 => self.text()?,
            _ => return Err(TicketError::Malformed),
        };
        let port = u16::from_be_bytes(self.array()?);
        HostAddress::new(&host, port).map_err(|_| TicketError::Malformed)
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{TICKET_PREFIX}{}", BASE32_NOPAD.encode(&self.to_bytes()).to_ascii_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    /// Reads the output of `Display`, in any case, with white space around it.
    fn from_str(text: &str) -> Result<Self, TicketError> {
        let word = text.trim();
        if word.len() > WORD_BYTES_MAX {
            return Err(TicketError::TooLong { bytes: word.len() });
        }
        let word = word.to_ascii_uppercase();
        let encoded =
            word.strip_prefix(&TICKET_PREFIX.to_ascii_uppercase()).ok_or(TicketError::NotATicket)?;
        let bytes = BASE32_NOPAD.decode(encoded.as_bytes()).map_err(|_| TicketError::Mistyped)?;
        Self::from_bytes(&bytes)
    }
}

/// Letters of base32 in a row that no key has (keys have 52). So many are a ticket that lost its beginning.
const LETTERS_OF_NO_KEY: usize = 53;
/// Letters after the prefix that make a word a ticket, or the rest of one.
const LETTERS_OF_A_TICKET: usize = 8;

/// Replaces every ticket in a text by `whm1…`, also if it may be cut or mistyped. Keys stay.
pub fn without_tickets(text: &str) -> Cow<'_, str> {
    hidden(text, LETTERS_OF_NO_KEY)
}

/// Does the same for text typed in place of a ticket. It can contain no key, so shorter parts of a ticket are
/// hidden, too.
pub fn without_pieces_of_tickets(text: &str) -> Cow<'_, str> {
    const LETTERS: usize = 20;
    hidden(text, LETTERS)
}

fn hidden(text: &str, letters_max: usize) -> Cow<'_, str> {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || matches!(byte, b'2'..=b'7');
    let (bytes, prefix) = (text.as_bytes(), TICKET_PREFIX.as_bytes());
    let mut shown = String::new();
    let (mut at, mut kept_to) = (0, 0);
    while at < bytes.len() {
        let has_prefix =
            bytes[at..].get(..prefix.len()).is_some_and(|word| word.eq_ignore_ascii_case(prefix));
        let from = if has_prefix { at + prefix.len() } else { at };
        let letters = bytes[from..].iter().take_while(|byte| is_letter(**byte)).count();
        let end = from + letters;
        if has_prefix && letters >= LETTERS_OF_A_TICKET || letters >= letters_max {
            shown.push_str(&text[kept_to..at]);
            shown.push_str(TICKET_PREFIX);
            shown.push('…');
            kept_to = end;
            at = end;
        } else if has_prefix {
            at = end.max(at + 1);
        } else {
            // A prefix may begin among the letters.
            let next = bytes[at + 1..]
                .windows(prefix.len())
                .take(letters)
                .position(|word| word.eq_ignore_ascii_case(prefix));
            at = next.map_or(end, |steps| at + 1 + steps).max(at + 1);
        }
    }
    if kept_to == 0 {
        return Cow::Borrowed(text);
    }
    shown.push_str(&text[kept_to..]);
    Cow::Owned(shown)
}

/// Error: a word that is no ticket, or parts that make none. It never shows the word, which may hold a
/// secret.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TicketError {
    /// Another prefix.
    #[error("this is not a ticket: a ticket begins with `{TICKET_PREFIX}`")]
    NotATicket,
    /// Far longer than any ticket.
    #[error("this is not a ticket: {bytes} bytes are too many")]
    TooLong {
        /// Length of the word.
        bytes: usize,
    },
    /// Too short even for the checksum.
    #[error("the ticket is cut short: copy the whole word that `wormhole host` printed after `ticket:`")]
    Incomplete,
    /// The checksum differs.
    #[error(
        "the ticket was mistyped or cut: copy the whole word that `wormhole host` printed after `ticket:`"
    )]
    Mistyped,
    /// A newer version.
    #[error("the ticket is of version {version}, this program reads version {VERSION}: update it")]
    UnknownVersion {
        /// The version found.
        version: u8,
    },
    /// The checksum is right, but the content is not valid.
    #[error("the ticket is not valid although its checksum is right: it was not made by `wormhole host`")]
    Malformed,
    /// No address, or too many.
    #[error("a ticket carries 1 to {TICKET_ADDRESSES_MAX} addresses, not {count}")]
    AddressCount {
        /// Number of addresses.
        count: usize,
    },
    /// The name of the export is too long.
    #[error(
        "the export's name has {bytes} bytes, a ticket has room for {NAME_BYTES_MAX}: give it a shorter one"
    )]
    ExportTooLong {
        /// Length of the name.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_address() -> impl Strategy<Value = HostAddress> {
        let host = prop_oneof![
            any::<[u8; 4]>().prop_map(|octets| Ipv4Addr::from(octets).to_string()),
            any::<[u8; 16]>().prop_map(|octets| Ipv6Addr::from(octets).to_string()),
            "[a-z][a-z0-9.-]{0,60}",
        ];
        (host, any::<u16>()).prop_map(|(host, port)| HostAddress::new(&host, port).unwrap())
    }

    fn any_ticket() -> impl Strategy<Value = Ticket> {
        let addresses = prop::collection::vec(any_address(), 1..=TICKET_ADDRESSES_MAX);
        (addresses, any::<[u8; 32]>(), "\\PC{0,60}", any::<[u8; 16]>()).prop_map(
            |(addresses, key, export, secret)| {
                Ticket::new(addresses, PublicKey(key), export, TicketSecret(secret)).unwrap()
            },
        )
    }

    fn sample() -> Ticket {
        let addresses = vec!["192.168.1.7:4433".parse().unwrap()];
        Ticket::new(addresses, PublicKey([1; 32]), "media".to_owned(), TicketSecret([0xab; 16])).unwrap()
    }

    proptest! {
        #[test]
        fn word_round_trips(ticket in any_ticket()) {
            let word = ticket.to_string();
            prop_assert!(word.len() <= WORD_BYTES_MAX);
            prop_assert!(word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
            prop_assert_eq!(word.parse::<Ticket>().unwrap(), ticket.clone());
            prop_assert_eq!(format!(" {}\n", word.to_uppercase()).parse::<Ticket>().unwrap(), ticket);
        }

        #[test]
        fn one_wrong_letter_is_detected(ticket in any_ticket(), place: prop::sample::Index, letter in "[a-z2-7]") {
            let word = ticket.to_string();
            let place = TICKET_PREFIX.len() + place.index(word.len() - TICKET_PREFIX.len());
            let mut mistyped = word.clone();
            mistyped.replace_range(place..=place, &letter);
            prop_assume!(mistyped != word);
            prop_assert_eq!(mistyped.parse::<Ticket>().unwrap_err(), TicketError::Mistyped);
        }

        #[test]
        fn cut_words_are_detected(ticket in any_ticket(), keep: prop::sample::Index) {
            let word = ticket.to_string();
            let cut = &word[..TICKET_PREFIX.len() + keep.index(word.len() - TICKET_PREFIX.len())];
            let error = cut.parse::<Ticket>().unwrap_err();
            prop_assert!(matches!(error, TicketError::Mistyped | TicketError::Incomplete));
        }

        #[test]
        fn any_bytes_behind_a_right_checksum_are_safe(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            bytes.extend(checksum(&bytes));
            let _ = Ticket::from_bytes(&bytes);
        }
    }

    proptest! {
        /// A ticket that is cut, wrapped, changed or quoted shows at most a few of its letters.
        #[test]
        fn no_ticket_is_shown(
            ticket in any_ticket(),
            before in "[ -~]{0,8}",
            after in "[ -~]{0,8}",
            cut: prop::sample::Index,
            upper: bool,
        ) {
            let word = ticket.to_string();
            let word = if upper { word.to_uppercase() } else { word };
            let rest = &word[cut.index(word.len() - 70)..];
            for text in [format!("{before}{word}{after}"), format!("{before}{rest}"), format!("{word}:/x")] {
                let shown = without_tickets(&text).into_owned();
                let typed = without_pieces_of_tickets(&text).into_owned();
                for shown in [shown, typed] {
                    for piece in word.as_bytes().windows(20) {
                        prop_assert!(!shown.contains(std::str::from_utf8(piece).unwrap()), "{}", shown);
                    }
                }
            }
            let key = ticket.host_key().to_string();
            prop_assert_eq!(without_tickets(&key), key.as_str());
        }

        #[test]
        fn any_text_can_be_searched(text in any::<String>()) {
            let _ = without_tickets(&text);
            let _ = without_pieces_of_tickets(&text);
        }
    }

    #[test]
    fn other_text_is_left_unchanged() {
        for text in ["nas:/media", "whm1:/x", "/srv/films", "the key is not known here", ""] {
            assert_eq!(without_tickets(text), text);
            assert_eq!(without_pieces_of_tickets(text), text);
        }
        let word = sample().to_string();
        assert_eq!(without_tickets(&format!("{word}: no such file")), "whm1…: no such file");
    }

    #[test]
    fn a_usual_ticket_is_short_enough_to_paste() {
        assert!(sample().to_string().len() <= 120, "{}", sample());
    }

    #[test]
    fn debug_hides_the_secret() {
        let text = format!("{:?}", sample());
        assert!(text.contains('…') && !text.contains("171"), "{text}");
    }

    #[test]
    fn limits_are_kept_when_making_one() {
        let address: HostAddress = "a:1".parse().unwrap();
        let make = |count, export: String| {
            Ticket::new(vec![address.clone(); count], PublicKey([0; 32]), export, TicketSecret([0; 16]))
                .map(|_| ())
        };
        assert_eq!(make(0, String::new()), Err(TicketError::AddressCount { count: 0 }));
        assert_eq!(make(17, String::new()), Err(TicketError::AddressCount { count: 17 }));
        assert_eq!(make(1, "x".repeat(256)), Err(TicketError::ExportTooLong { bytes: 256 }));
        assert_eq!(make(16, "x".repeat(255)), Ok(()));
    }

    #[test]
    fn secrets_differ_in_any_byte() {
        let secret = TicketSecret([5; 16]);
        for place in 0..16 {
            let mut other = secret;
            other.0[place] ^= 0x80;
            assert_ne!(secret, other);
        }
        assert_eq!(secret, TicketSecret([5; 16]));
    }
}
