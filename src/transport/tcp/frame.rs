//! (P) Frames, by which streams share one TLS connection over TCP.
//!
//! A frame is a header of 12 bytes with numbers in network order, and for some kinds a payload:
//!
//! ```text
//! kind u8 | a u24 | b u32 | c u32
//! ```
//!
//! | kind | a | b | c | payload |
//! | --- | --- | --- | --- | --- |
//! | 0 hello | streams the peer may open | bytes it may send on one of them | bytes it may send on all | |
//! | 1 data | length; top bit: opens the stream; next: ends it | stream | later bytes of the piece | yes |
//! | 2 window | | stream, or 0 for all | more bytes the peer may send | |
//! | 3 reset | | stream | code: the sender abandons the stream | |
//! | 4 stop | | stream | code: the receiver wants no more data | |
//! | 5 ping, 6 pong | | | a number that is sent back | |
//! | 7 close | length | code | | text |
//!
//! A side relies on the `EARLY` limits until the hello of its peer arrives. A host sends its hello when it
//! admits the client, so before that a client can send no more than these limits. Streams of a client have
//! odd numbers, those of a host even ones. A piece that was written at once announces its length, so that the
//! receiver can place it where it will be used.

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 12;
/// Longest payload of one frame, in bytes.
pub(super) const PAYLOAD_BYTES_MAX: usize = (1 << 22) - 1;
/// Longest text of a close, in bytes.
pub(super) const CLOSE_BYTES_MAX: usize = 1_024;

/// Streams that may be opened before the hello of the peer.
pub(super) const EARLY_STREAMS_MAX: u32 = 4;
/// Bytes that may be sent on one of them.
pub(super) const EARLY_STREAM_BYTES: u32 = 64 << 10;
/// Bytes that may be sent on all of them.
pub(super) const EARLY_CONNECTION_BYTES: u32 = 64 << 10;

const OPENS: u32 = 1 << 23;
const ENDS: u32 = 1 << 22;
const A_MAX: u32 = (1 << 24) - 1;

/// Header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Hello { streams_max: u32, stream_bytes: u32, connection_bytes: u32 },
    Data { stream: u32, len: u32, more: u32, opens: bool, ends: bool },
    Window { stream: u32, bytes: u32 },
    Reset { stream: u32, code: u32 },
    Stop { stream: u32, code: u32 },
    Ping { token: u32 },
    Pong { token: u32 },
    Close { code: u32, len: u32 },
}

impl Frame {
    /// Returns the bytes of the header.
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let (kind, a, b, c) = match self {
            Self::Hello { streams_max, stream_bytes, connection_bytes } => {
                (0, streams_max.min(A_MAX), stream_bytes, connection_bytes)
            }
            Self::Data { stream, len, more, opens, ends } => {
                debug_assert!(len as usize <= PAYLOAD_BYTES_MAX);
                let flags = if opens { OPENS } else { 0 } | if ends { ENDS } else { 0 };
                (1, len | flags, stream, more)
            }
            Self::Window { stream, bytes } => (2, 0, stream, bytes),
            Self::Reset { stream, code } => (3, 0, stream, code),
            Self::Stop { stream, code } => (4, 0, stream, code),
            Self::Ping { token } => (5, 0, 0, token),
            Self::Pong { token } => (6, 0, 0, token),
            Self::Close { code, len } => (7, len.min(CLOSE_BYTES_MAX as u32), code, 0),
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&(kind << 24 | a).to_be_bytes());
        bytes[4..8].copy_from_slice(&b.to_be_bytes());
        bytes[8..].copy_from_slice(&c.to_be_bytes());
        bytes
    }

    /// Returns the header in `bytes`, if it is valid.
    pub(super) fn decode(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let [first, b, c] =
            [0, 4, 8].map(|at| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        let (kind, a) = (first >> 24, first & A_MAX);
        Some(match kind {
            0 => Self::Hello { streams_max: a, stream_bytes: b, connection_bytes: c },
            1 => {
                let (opens, ends) = (a & OPENS != 0, a & ENDS != 0);
                Self::Data { stream: b, len: a & (ENDS - 1), more: c, opens, ends }
            }
            2 => Self::Window { stream: b, bytes: c },
            3 => Self::Reset { stream: b, code: c },
            4 => Self::Stop { stream: b, code: c },
            5 => Self::Ping { token: c },
            6 => Self::Pong { token: c },
            7 if a as usize <= CLOSE_BYTES_MAX => Self::Close { code: b, len: a },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame() -> impl Strategy<Value = Frame> {
        let (number, bits) = (any::<u32>(), any::<bool>());
        prop_oneof![
            (0..=A_MAX, number, any::<u32>()).prop_map(|(streams_max, stream_bytes, connection_bytes)| {
                Frame::Hello { streams_max, stream_bytes, connection_bytes }
            }),
            (number, 0..=PAYLOAD_BYTES_MAX as u32, any::<u32>(), bits, any::<bool>())
                .prop_map(|(stream, len, more, opens, ends)| Frame::Data { stream, len, more, opens, ends }),
            (number, any::<u32>()).prop_map(|(stream, bytes)| Frame::Window { stream, bytes }),
            (number, any::<u32>()).prop_map(|(stream, code)| Frame::Reset { stream, code }),
            (number, any::<u32>()).prop_map(|(stream, code)| Frame::Stop { stream, code }),
            number.prop_map(|token| Frame::Ping { token }),
            number.prop_map(|token| Frame::Pong { token }),
            (number, 0..=CLOSE_BYTES_MAX as u32).prop_map(|(code, len)| Frame::Close { code, len }),
        ]
    }

    proptest! {
        #[test]
        fn a_frame_comes_back(frame in frame()) {
            prop_assert_eq!(Frame::decode(frame.encode()), Some(frame));
        }

        #[test]
        fn any_header_is_a_frame_or_refused(bytes: [u8; HEADER_BYTES]) {
            if let Some(Frame::Close { len, .. }) = Frame::decode(bytes) {
                prop_assert!(len as usize <= CLOSE_BYTES_MAX);
            }
        }
    }
}
