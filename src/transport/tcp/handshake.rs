//! TLS handshake over a TCP stream. rustls makes the messages and verifies the key of the peer. This file
//! moves them.

use std::io;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::record::{Records, Schedule};
use crate::transport::identity::PublicKey;
use crate::transport::tls;

/// Server name in the TLS handshake. It is not sent and not checked, because the key is the identity.
const TLS_NAME: &str = "wormhole";
/// Largest handshake. One with raw keys takes less than a kilobyte each way.
const HANDSHAKE_BYTES_MAX: usize = 16 << 10;

/// Reason why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Other(String),
}

/// Result of a handshake.
pub(super) struct Established {
    pub(super) records: Records,
    pub(super) peer_key: PublicKey,
    /// Bytes that arrived after the handshake: decrypted content, and records that are still encrypted.
    pub(super) content: Vec<u8>,
    pub(super) sealed: Vec<u8>,
}

/// Does the handshake as client.
pub(super) async fn client(
    stream: &mut TcpStream,
    config: Arc<ClientConfig>,
) -> Result<Established, HandshakeError> {
    let name = ServerName::try_from(TLS_NAME).map_err(|error| HandshakeError::Other(error.to_string()))?;
    let mut tls = UnbufferedClientConnection::new(config, name)?;
    let buffers = exchange(stream, &mut tls).await?;
    let peer_key = key_of(tls.peer_certificates())?;
    let (secrets, schedule) = tls.dangerous_into_kernel_connection()?;
    established(buffers, peer_key, Records::new(secrets, Schedule::Client(schedule)))
}

/// Does the handshake as host.
pub(super) async fn host(
    stream: &mut TcpStream,
    config: Arc<ServerConfig>,
) -> Result<Established, HandshakeError> {
    let mut tls = UnbufferedServerConnection::new(config)?;
    let buffers = exchange(stream, &mut tls).await?;
    let peer_key = key_of(tls.peer_certificates())?;
    let (secrets, schedule) = tls.dangerous_into_kernel_connection()?;
    established(buffers, peer_key, Records::new(secrets, Schedule::Host(schedule)))
}

fn key_of(proven: Option<&[CertificateDer<'_>]>) -> Result<PublicKey, HandshakeError> {
    let key = proven.and_then(tls::key_of_chain);
    key.ok_or_else(|| HandshakeError::Other("the other side proved no key".to_owned()))
}

fn established(
    buffers: HandshakeBuffers,
    peer_key: PublicKey,
    records: Result<Records, super::record::RecordError>,
) -> Result<Established, HandshakeError> {
    let records = records.map_err(|error| HandshakeError::Other(error.to_string()))?;
    Ok(Established { records, peer_key, content: buffers.content, sealed: buffers.incoming })
}

/// Operations common to both kinds of rustls connections.
pub(super) trait Handshake {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn is_over(&self) -> bool;
    /// Returns true if a message waits to be encoded.
    fn has_to_send(&self) -> bool;
}

impl Handshake for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn is_over(&self) -> bool {
        !self.is_handshaking()
    }
    fn has_to_send(&self) -> bool {
        self.wants_write()
    }
}

impl Handshake for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn is_over(&self) -> bool {
        !self.is_handshaking()
    }
    fn has_to_send(&self) -> bool {
        self.wants_write()
    }
}

/// Bytes on their way during a handshake.
#[derive(Default)]
pub(super) struct HandshakeBuffers {
    pub(super) incoming: Vec<u8>,
    pub(super) outgoing: Vec<u8>,
    /// Content that arrived after the handshake.
    pub(super) content: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Again,
    Receive,
    Done,
}

/// Exchanges messages until both ends have verified each other.
async fn exchange(
    stream: &mut TcpStream,
    tls: &mut impl Handshake,
) -> Result<HandshakeBuffers, HandshakeError> {
    let mut buffers = HandshakeBuffers::default();
    loop {
        match step(tls, &mut buffers) {
            Ok(Step::Again) => {}
            Ok(Step::Done) => {
                stream.write_all(&std::mem::take(&mut buffers.outgoing)).await?;
                return Ok(buffers);
            }
            Ok(Step::Receive) => {
                stream.write_all(&std::mem::take(&mut buffers.outgoing)).await?;
                if buffers.incoming.len() >= HANDSHAKE_BYTES_MAX {
                    return Err(HandshakeError::Other("the other side's handshake has no end".to_owned()));
                }
                if stream.read_buf(&mut buffers.incoming).await? == 0 {
                    return Err(HandshakeError::Other("the other side ended the connection".to_owned()));
                }
            }
            Err(error) => {
                // Tell the peer its error, if it still reads. rustls must not be asked for more than that.
                while tls.has_to_send() && step(tls, &mut buffers).is_ok() {}
                let _ = stream.write_all(&buffers.outgoing).await;
                let _ = stream.shutdown().await;
                return Err(error.into());
            }
        }
    }
}

pub(super) fn step(tls: &mut impl Handshake, buffers: &mut HandshakeBuffers) -> Result<Step, rustls::Error> {
    let is_over = tls.is_over();
    let UnbufferedStatus { discard, state } = tls.process(&mut buffers.incoming);
    let next = match state {
        Err(error) => Err(error),
        Ok(ConnectionState::EncodeTlsData(mut state)) => {
            let start = buffers.outgoing.len();
            let needed = match state.encode(&mut []) {
                Err(EncodeError::InsufficientSize(size)) => size.required_size,
                _ => 0,
            };
            buffers.outgoing.resize(start + needed, 0);
            let encoded = state.encode(&mut buffers.outgoing[start..]);
            encoded.map(|_| Step::Again).map_err(|error| rustls::Error::General(error.to_string()))
        }
        Ok(ConnectionState::TransmitTlsData(state)) => {
            state.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::ReadTraffic(mut state)) => {
            while let Some(record) = state.next_record() {
                buffers.content.extend_from_slice(record?.payload);
            }
            Ok(Step::Again)
        }
        // A host that may already write still waits for the client's proof.
        Ok(ConnectionState::WriteTraffic(_)) if is_over => Ok(Step::Done),
        Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => Ok(Step::Receive),
        Ok(_) => Err(rustls::Error::General("the other side ended the handshake".to_owned())),
    };
    buffers.incoming.drain(..discard);
    next
}
