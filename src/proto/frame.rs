//! Frames: a length, then a value. Whatever the peer sends, decoding is bounded and cannot panic.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest body of a frame, in bytes.
///
/// 256 KiB holds a directory batch of a thousand long names, and is what a peer can make this side allocate a stream.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;

/// Bytes of the length in front of a frame's body.
pub const FRAME_HEADER_BYTES: usize = 4;

/// Bytes that are not a frame of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length in front is over the bound.
    #[error("the peer announces a message of {0} bytes; at most {FRAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// The body is no value of the expected type.
    #[error("the peer sent a message that cannot be understood: {0}")]
    Malformed(postcard::Error),
    /// The body goes on behind the value.
    #[error("the peer sent a message with {0} bytes too many")]
    TrailingBytes(usize),
}

/// The frame of `value`: length and body.
///
/// # Panics
/// Where the value is over [`FRAME_BYTES_MAX`]: whoever builds a message keeps it below.
pub fn encode_frame<T: Serialize>(value: &T) -> Vec<u8> {
    let mut frame = postcard::to_extend(value, vec![0; FRAME_HEADER_BYTES]).expect("a Vec takes every value");
    let len = frame.len() - FRAME_HEADER_BYTES;
    assert!(len <= FRAME_BYTES_MAX, "message of {len} bytes is over the bound");
    frame[..FRAME_HEADER_BYTES].copy_from_slice(&(len as u32).to_le_bytes());
    frame
}

/// The length of the body that follows a frame's header.
pub fn frame_len(header: [u8; FRAME_HEADER_BYTES]) -> Result<usize, FrameError> {
    let len = u32::from_le_bytes(header) as usize;
    if len <= FRAME_BYTES_MAX { Ok(len) } else { Err(FrameError::TooLong(len)) }
}

/// The value in a frame's body.
pub fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let (value, rest) = postcard::take_from_bytes(body).map_err(FrameError::Malformed)?;
    if rest.is_empty() { Ok(value) } else { Err(FrameError::TrailingBytes(rest.len())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{NodeId, Reply, Request, WireError};

    #[test]
    fn a_frame_comes_back() {
        let request = Request::Lookup {
            parent: NodeId { device: 1, inode: 2, birth_ns: -3 },
            name: b"not utf-8: \xff".to_vec(),
        };
        let frame = encode_frame(&request);
        let (header, body) = frame.split_first_chunk().unwrap();
        assert_eq!(frame_len(*header), Ok(body.len()));
        assert_eq!(decode_body::<Request>(body), Ok(request));
    }

    #[test]
    fn a_frame_over_the_bound_is_refused() {
        let header = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
        assert_eq!(frame_len(header), Err(FrameError::TooLong(FRAME_BYTES_MAX + 1)));
    }

    #[test]
    fn bytes_behind_the_value_are_refused() {
        let mut frame = encode_frame(&Request::Ping);
        frame.push(0);
        assert_eq!(decode_body::<Request>(&frame[FRAME_HEADER_BYTES..]), Err(FrameError::TrailingBytes(1)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_body::<Request>(&body);
            let _ = decode_body::<Result<Reply, WireError>>(&body);
        }
    }
}
