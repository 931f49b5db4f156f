//! Tests of records against rustls itself, and of connections whose ends misbehave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, WriteTraffic};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::frame::Frame;
use super::handshake::{self, Established, Handshake, HandshakeBuffers, Step};
use super::mux::{Batch, Part};
use super::record::{Opened, RECORD_CONTENT_BYTES_MAX, RecordError, Records, Schedule};
use super::record_buffer::RecordBuffer;
use crate::transport::tls::{self, CertifiedIdentity};
use crate::transport::{
    CloseReason, Connection, Endpoint, ExpectedHost, Identity, Lane, StreamError, TransportChoice,
    TransportError, TransportKind, TransportTuning,
};

const DEADLINE: Duration = Duration::from_secs(30);

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let identity = || CertifiedIdentity::new(&Identity::generate().unwrap()).unwrap();
    let mut client = tls::client(&identity(), ExpectedHost::Any, tls::ALPN).unwrap().config;
    let mut server = tls::server(&identity(), tls::ALPN).unwrap();
    (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
    (Arc::new(client), Arc::new(server))
}

/// Returns both ends of rustls after their handshake, in memory.
pub(super) fn ends() -> (UnbufferedClientConnection, UnbufferedServerConnection) {
    let (client, server) = configs();
    let mut client = UnbufferedClientConnection::new(client, "wormhole".try_into().unwrap()).unwrap();
    let mut server = UnbufferedServerConnection::new(server).unwrap();
    let (mut at_client, mut at_server) = (HandshakeBuffers::default(), HandshakeBuffers::default());
    let until_it_waits = |tls: &mut dyn FnMut() -> Step| loop {
        match tls() {
            Step::Again => {}
            step => return step,
        }
    };
    for _ in 0..9 {
        let client = until_it_waits(&mut || handshake::step(&mut client, &mut at_client).unwrap());
        at_server.incoming.append(&mut at_client.outgoing);
        let server = until_it_waits(&mut || handshake::step(&mut server, &mut at_server).unwrap());
        at_client.incoming.append(&mut at_server.outgoing);
        if (client, server) == (Step::Done, Step::Done) {
            break;
        }
    }
    assert!(client.is_over() && server.is_over());
    (client, server)
}

pub(super) fn client_records(client: UnbufferedClientConnection) -> Records {
    let (secrets, schedule) = client.dangerous_into_kernel_connection().unwrap();
    Records::new(secrets, Schedule::Client(schedule)).unwrap()
}

pub(super) fn host_records(server: UnbufferedServerConnection) -> Records {
    let (secrets, schedule) = server.dangerous_into_kernel_connection().unwrap();
    Records::new(secrets, Schedule::Host(schedule)).unwrap()
}

pub(super) fn batch(parts: &[&[u8]]) -> Batch {
    let parts: Vec<Part> = parts.iter().map(|part| Part::Content(Bytes::copy_from_slice(part))).collect();
    Batch { bytes: parts.iter().map(|part| part.bytes().len()).sum(), parts }
}

/// Returns the content of all records, joined.
pub(super) fn open_all(records: &mut Records, sealed: &[u8]) -> Result<Vec<u8>, RecordError> {
    let (mut content, mut start) = (Vec::new(), 0);
    while let Some(len) = Records::complete_len(&sealed[start..])? {
        let record = &sealed[start..start + len];
        let mut opened = vec![0; Records::sealed_bytes(record)];
        if let Opened::Content(len) = records.open(record, &mut opened)? {
            content.extend_from_slice(&opened[..len]);
        }
        start += len;
    }
    assert_eq!(start, sealed.len());
    Ok(content)
}

pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + index / 251) as u8).collect()
}

#[test]
fn rustls_reads_our_records_also_over_key_changes() {
    let (client, mut server) = ends();
    let mut ours = client_records(client);
    ours.per_key_max = 3;
    let content = pattern(10 * RECORD_CONTENT_BYTES_MAX + 7);
    let mut sealed = RecordBuffer::default();
    ours.seal(&batch(&[&content[..5], &content[5..50_000], &content[50_000..]]), &mut sealed).unwrap();
    let mut sealed = sealed.to_vec();
    let mut read = Vec::new();
    loop {
        let status = server.process_tls_records(&mut sealed);
        let discard = status.discard;
        match status.state.unwrap() {
            ConnectionState::ReadTraffic(mut state) => {
                while let Some(record) = state.next_record() {
                    read.extend_from_slice(record.unwrap().payload);
                }
            }
            _ => break,
        }
        sealed.drain(..discard);
    }
    assert!(read == content, "{} of {} bytes", read.len(), content.len());
}

#[test]
fn we_read_records_of_rustls_also_over_key_changes() {
    let (client, mut server) = ends();
    let mut ours = client_records(client);
    let content = pattern(100_000);
    let mut sealed = Vec::new();
    for part in content.chunks(30_000) {
        let write =
            |server: &mut UnbufferedServerConnection, act: &mut dyn FnMut(WriteTraffic<'_, _>)| match server
                .process_tls_records(&mut [])
                .state
                .unwrap()
            {
                ConnectionState::WriteTraffic(state) => act(state),
                state => panic!("{state:?}"),
            };
        write(&mut server, &mut |mut state| {
            let start = sealed.len();
            sealed.resize(start + part.len() + 1_000, 0);
            let len = state.encrypt(part, &mut sealed[start..]).unwrap();
            sealed.truncate(start + len);
        });
        write(&mut server, &mut |state| state.refresh_traffic_keys().unwrap());
        let mut buffers = HandshakeBuffers::default();
        while handshake::step(&mut server, &mut buffers).unwrap() == Step::Again {}
        sealed.append(&mut buffers.outgoing);
    }
    assert!(open_all(&mut ours, &sealed).unwrap() == content, "the bytes differ");
}

#[test]
fn changed_and_malformed_records_are_refused() {
    let (client, server) = ends();
    let (mut ours, mut theirs) = (client_records(client), host_records(server));
    let mut sealed = RecordBuffer::default();
    ours.seal(&batch(&[b"content"]), &mut sealed).unwrap();
    let mut sealed = sealed.to_vec();
    assert_eq!(Records::complete_len(&sealed[..sealed.len() - 1]), Ok(None));
    *sealed.last_mut().unwrap() ^= 1;
    assert_eq!(open_all(&mut theirs, &sealed), Err(RecordError::Forged));
    for none in [[22, 3, 3, 0, 20], [23, 3, 1, 0, 20], [23, 3, 3, 0xff, 0xff]] {
        assert_eq!(Records::complete_len(&none), Err(RecordError::Malformed));
    }
}

#[test]
fn the_end_is_reported() {
    let (client, server) = ends();
    let (mut ours, mut theirs) = (client_records(client), host_records(server));
    let mut sealed = RecordBuffer::default();
    ours.seal_end(&mut sealed).unwrap();
    let mut opened = vec![0; Records::sealed_bytes(&sealed)];
    assert_eq!(theirs.open(&sealed, &mut opened), Ok(Opened::End));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn batches_of_any_shape_come_back(
        batches in proptest::collection::vec(proptest::collection::vec(0usize..40_000, 0..5), 1..6),
        per_key_max in 1u64..9,
    ) {
        let (client, server) = ends();
        let (mut ours, mut theirs) = (client_records(client), host_records(server));
        ours.per_key_max = per_key_max;
        let content = pattern(40_000);
        let (mut sealed, mut wanted) = (RecordBuffer::default(), Vec::new());
        for lens in &batches {
            let parts: Vec<&[u8]> = lens.iter().map(|len| &content[..*len]).collect();
            ours.seal(&batch(&parts), &mut sealed).unwrap();
            wanted.extend(parts.concat());
        }
        prop_assert!(open_all(&mut theirs, &sealed).unwrap() == wanted);
    }
}

fn over_tcp() -> TransportTuning {
    let transport = TransportChoice::Only(TransportKind::Tcp);
    TransportTuning { transport, ..TransportTuning::default() }
}

async fn pair(tuning: &TransportTuning) -> (Connection, Connection) {
    let (host, client) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let host_end = Endpoint::host("127.0.0.1:0".parse().unwrap(), &host, tuning).unwrap();
    let address = host_end.local_address();
    let client_end = Endpoint::client(&client, tuning, address).unwrap();
    let accept = async { host_end.accept().await.unwrap().handshake().await };
    let (at_host, at_client) = tokio::join!(accept, client_end.connect(address, ExpectedHost::Any));
    let at_host = at_host.unwrap();
    at_host.admit();
    (at_host, at_client.unwrap())
}

/// A host end whose records are written by the test.
struct Raw {
    stream: TcpStream,
    records: Records,
}

impl Raw {
    async fn send(&mut self, parts: &[&[u8]]) {
        let mut sealed = RecordBuffer::default();
        self.records.seal(&batch(parts), &mut sealed).unwrap();
        self.stream.write_all(&sealed).await.unwrap();
    }
}

/// Connects a client to a host that the test plays.
async fn raw_pair(tuning: &TransportTuning) -> (Raw, Connection) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client_end = Endpoint::client(&Identity::generate().unwrap(), tuning, address).unwrap();
    let play = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let established = Box::pin(handshake::host(&mut stream, configs().1)).await;
        let Established { records, .. } = established.unwrap();
        Raw { stream, records }
    };
    let (raw, connection) = tokio::join!(play, client_end.connect(address, ExpectedHost::Any));
    (raw, connection.unwrap())
}

async fn within_deadline(test: impl Future<Output = ()>) {
    timeout(DEADLINE, test).await.expect("the test hangs");
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_disconnected() {
    within_deadline(async {
        let data = |stream, len, opens| Frame::Data { stream, len, more: 0, opens, ends: false }.encode();
        let floods: Vec<[u8; 12]> = (0..300).map(|number| data(2 + 2 * number, 0, true)).collect();
        let floods: Vec<&[u8]> = floods.iter().map(|frame| &frame[..]).collect();
        let hello = Frame::Hello { streams_max: 1, stream_bytes: 1, connection_bytes: 1 }.encode();
        for (parts, words) in [
            (vec![&[9; 12][..]], "unknown frame"),
            (vec![&hello[..]], "allows too little"),
            (vec![&data(1, 0, true)[..]], "number that is not its own"),
            (vec![&data(2, (1 << 22) - 1, true)[..]; 9], "more content"),
            (floods, "more streams than were allowed"),
        ] {
            let tuning =
                TransportTuning { transport: over_tcp().transport, ..TransportTuning::for_memory(2 << 20) };
            let (mut raw, connection) = raw_pair(&tuning).await;
            raw.send(&parts).await;
            let reason = connection.closed().await.to_string();
            assert!(reason.contains("breaks the protocol") && reason.contains(words), "{words}: {reason}");
        }
    })
    .await;
}

#[tokio::test]
async fn changed_records_end_the_connection() {
    within_deadline(async {
        let (mut raw, connection) = raw_pair(&over_tcp()).await;
        raw.stream.write_all(&[23, 3, 3, 0, 30]).await.unwrap();
        raw.stream.write_all(&[7; 30]).await.unwrap();
        assert!(connection.closed().await.to_string().contains("changed in transit"));
    })
    .await;
}

#[tokio::test]
async fn a_broken_connection_is_noticed_at_once_and_a_silent_one_in_time() {
    within_deadline(async {
        let (raw, connection) = raw_pair(&over_tcp()).await;
        drop(raw);
        assert!(matches!(connection.closed().await, CloseReason::Failed { .. } | CloseReason::Reset));
        let tuning = TransportTuning {
            keep_alive_interval: Duration::from_millis(100),
            idle_timeout: Duration::from_millis(400),
            ..over_tcp()
        };
        let (_mute, connection) = raw_pair(&tuning).await;
        let began = Instant::now();
        assert_eq!(connection.closed().await, CloseReason::TimedOut);
        // Counted from the last received byte, which was a little before.
        assert!(began.elapsed() >= Duration::from_millis(200));
    })
    .await;
}

#[tokio::test]
async fn a_silent_connection_is_kept_alive() {
    within_deadline(async {
        let keep_alive_interval = Duration::from_millis(50);
        let (at_host, at_client) = pair(&TransportTuning { keep_alive_interval, ..over_tcp() }).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = (at_host.datagrams_received(), at_client.datagrams_received());
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(at_host.datagrams_received() > before.0 + 1 && at_client.datagrams_received() > before.1 + 1);
    })
    .await;
}

#[tokio::test]
async fn cancelled_requests_end_at_both_sides_and_free_their_slots() {
    within_deadline(async {
        let tuning = TransportTuning { bidirectional_streams_max: 16, ..over_tcp() };
        let (at_host, at_client) = pair(&tuning).await;
        let host = at_host.clone();
        tokio::spawn(async move {
            while let Ok((mut send, mut receive)) = host.accept_stream().await {
                tokio::spawn(async move {
                    receive.read_exact(&mut [0; 3]).await.unwrap();
                    // Until the client has enough.
                    while send.write_chunk(vec![7; 100_000].into()).await.is_ok() {}
                    assert_eq!(send.stopped().await, Ok(Some(9)));
                    assert_eq!(receive.read_chunk(9).await, Err(StreamError::Reset(8)));
                });
            }
        });
        for _ in 0..100 {
            let (mut send, mut receive) = at_client.open_stream(Lane::Demand).await.unwrap();
            send.write_all(b"get").await.unwrap();
            let mut told = 0;
            let bytes = receive.read_bytes(150_000, |bytes| told += bytes).await.unwrap();
            assert!(bytes.iter().all(|byte| *byte == 7) && bytes.len() == 150_000);
            assert_eq!(told, 150_000);
            send.reset(8).unwrap();
            receive.stop(9).unwrap();
            assert_eq!(receive.read_chunk(9).await, Err(StreamError::Closed));
        }
        assert_eq!(at_client.close_reason(), None);
    })
    .await;
}

#[tokio::test]
async fn an_unread_stream_does_not_block_others() {
    within_deadline(async {
        let tuning =
            TransportTuning { transport: over_tcp().transport, ..TransportTuning::for_memory(2 << 20) };
        let (at_host, at_client) = pair(&tuning).await;
        let host = at_host.clone();
        tokio::spawn(async move {
            while let Ok((mut send, _receive)) = host.accept_stream().await {
                tokio::spawn(async move {
                    for _ in 0..16 {
                        if send.write_chunk(Bytes::from(vec![7; 256 << 10])).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let mut unread = Vec::new();
        for _ in 0..2 {
            let (mut send, receive) = at_client.open_stream(Lane::Demand).await.unwrap();
            send.finish().unwrap();
            unread.push(receive);
        }
        let (mut send, mut receive) = at_client.open_stream(Lane::Demand).await.unwrap();
        send.finish().unwrap();
        // Longer than all unread bytes that may be in flight.
        assert_eq!(receive.read_bytes(3 << 20, |_| {}).await.unwrap().len(), 3 << 20);
        assert_eq!(receive.read_to_end(1 << 30).await.unwrap().len(), 1 << 20);
        for mut receive in unread {
            assert_eq!(receive.read_to_end(1 << 30).await.unwrap().len(), 4 << 20);
        }
    })
    .await;
}

#[tokio::test]
async fn finished_streams_arrive_before_a_close() {
    within_deadline(async {
        let (at_host, at_client) = pair(&over_tcp()).await;
        let (mut send, mut receive) = at_client.open_stream(Lane::Demand).await.unwrap();
        send.finish().unwrap();
        let (mut answer, _) = at_host.accept_stream().await.unwrap();
        answer.write_all(&vec![7; 100_000]).await.unwrap();
        answer.finish().unwrap();
        assert_eq!(answer.stopped().await, Ok(None));
        at_host.close(7, "the end");
        assert_eq!(receive.read_to_end(1 << 20).await.unwrap().len(), 100_000);
        assert!(at_client.closed().await.to_string().contains("the end"));
        let opened = at_client.open_stream(Lane::Demand).await;
        assert!(matches!(opened, Err(TransportError::Closed(CloseReason::ByPeer { code: 7, .. }))));
    })
    .await;
}

#[tokio::test]
async fn connections_without_a_handshake_are_no_clients() {
    within_deadline(async {
        let identity = Identity::generate().unwrap();
        let host = Endpoint::host("127.0.0.1:0".parse().unwrap(), &identity, &over_tcp()).unwrap();
        let address: SocketAddr = host.local_address();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let error = host.accept().await.unwrap().handshake().await.unwrap_err().to_string();
        assert!(error.contains("handshake with 127.0.0.1"), "{error}");
        let mut heard = Vec::new();
        let _ = client.read_to_end(&mut heard).await;
        assert!(heard.len() < 100, "an alert at most");
        let quiet = TcpStream::connect(address).await.unwrap();
        drop(quiet);
        assert!(host.accept().await.unwrap().handshake().await.is_err());
        assert_eq!(host.open_connections(), 0);
    })
    .await;
}
