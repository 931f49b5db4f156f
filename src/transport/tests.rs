//! Two endpoints in one process, over loopback: the guarantees that the rest of wormhole relies on.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{
    CloseReason, CongestionKind, Connection, Endpoint, ExpectedHost, Identity, Lane, PublicKey,
    QUIC_HEAD_START, TransportChoice, TransportError, TransportKind, TransportTuning, connect_any,
};

/// Deadline of every test. Nothing on loopback takes this long, so a hang becomes a failure.
const DEADLINE: Duration = Duration::from_secs(60);
const ANY_PORT: &str = "127.0.0.1:0";

struct Pair {
    host_end: Endpoint,
    client_end: Endpoint,
    at_host: Connection,
    at_client: Connection,
}

/// Tunings for both protocols.
fn both() -> [TransportTuning; 2] {
    [TransportKind::Quic, TransportKind::Tcp]
        .map(|kind| TransportTuning { transport: TransportChoice::Only(kind), ..TransportTuning::default() })
}

async fn pair(listen: &str, tuning: &TransportTuning) -> (Pair, Identity, Identity) {
    let (host, client) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let host_end = Endpoint::host(listen.parse().unwrap(), &host, tuning).unwrap();
    let address = reachable(host_end.local_address());
    let client_end = Endpoint::client(&client, tuning, address).unwrap();
    let expected = ExpectedHost::Key(host.public_key());
    let (at_host, at_client) = tokio::join!(accept_one(&host_end), client_end.connect(address, expected));
    let pair = Pair { host_end, client_end, at_host: at_host.unwrap(), at_client: at_client.unwrap() };
    (pair, host, client)
}

/// Returns the loopback address for a wildcard address.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], address.port())) } else { address }
}

async fn accept_one(host: &Endpoint) -> Result<Connection, TransportError> {
    let connection = unadmitted(host).await?;
    connection.admit();
    Ok(connection)
}

/// Returns a client that was not admitted yet.
async fn unadmitted(host: &Endpoint) -> Result<Connection, TransportError> {
    host.accept().await.unwrap().handshake().await
}

async fn within_deadline(test: impl Future<Output = ()>) {
    tokio::time::timeout(DEADLINE, test).await.expect("the test hangs");
}

#[tokio::test]
async fn under_a_new_name_any_known_host_is_accepted_and_no_other() {
    within_deadline(async {
        for tuning in both() {
            let (host, client) = (Identity::generate().unwrap(), Identity::generate().unwrap());
            let host_end = Endpoint::host(ANY_PORT.parse().unwrap(), &host, &tuning).unwrap();
            let client_end = Endpoint::client(&client, &tuning, host_end.local_address()).unwrap();
            for (known, is_let_in) in [(host.public_key(), true), (client.public_key(), false)] {
                let known = [known, PublicKey([7; 32])].into();
                let expected = ExpectedHost::OneOf(Arc::new(known));
                let (_, connected) = tokio::join!(
                    accept_one(&host_end),
                    client_end.connect(host_end.local_address(), expected)
                );
                match connected {
                    Ok(connection) => assert!(is_let_in && connection.peer_key() == host.public_key()),
                    Err(error) => {
                        assert!(!is_let_in && error.wrong_key() == Some(host.public_key()), "{error}");
                    }
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn reasons_of_either_peer_for_closing_are_one_line_of_bounded_length() {
    within_deadline(async {
        let words = format!("\u{1b}[2J\nwormhole: all is well {}", "x".repeat(700));
        for tuning in both() {
            for by_host in [true, false] {
                let (pair, ..) = pair(ANY_PORT, &tuning).await;
                let (closing, hearing) =
                    if by_host { (&pair.at_host, &pair.at_client) } else { (&pair.at_client, &pair.at_host) };
                closing.close(7, &words);
                let heard = hearing.closed().await.to_string();
                assert!(heard.contains("\\u{1b}[2J\\nwormhole"), "{heard}");
                assert!(!heard.contains(char::is_control) && heard.len() < 1_100, "{heard}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn both_ends_learn_the_key_of_the_other() {
    within_deadline(async {
        for tuning in both() {
            let (pair, host, client) = pair("[::]:0", &tuning).await;
            assert_eq!(pair.at_client.peer_key(), host.public_key());
            assert_eq!(pair.at_host.peer_key(), client.public_key());
            assert!(pair.at_host.remote_address().is_ipv4(), "an IPv4 peer is shown as one");
            assert_eq!(TransportChoice::Only(pair.at_client.kind()), tuning.transport);
            assert_eq!(TransportChoice::Only(pair.at_host.kind()), tuning.transport);
        }
    })
    .await;
}

#[tokio::test]
async fn wrong_host_key_is_refused_and_both_keys_are_reported() {
    within_deadline(async {
        let (host, client, other) =
            (Identity::generate().unwrap(), Identity::generate().unwrap(), Identity::generate().unwrap());
        for tuning in both() {
            let host_end = Endpoint::host(ANY_PORT.parse().unwrap(), &host, &tuning).unwrap();
            let address = host_end.local_address();
            let client_end = Endpoint::client(&client, &tuning, address).unwrap();
            let expected = ExpectedHost::Key(other.public_key());
            let (at_host, at_client) =
                tokio::join!(accept_one(&host_end), client_end.connect(address, expected));
            assert!(at_host.is_err());
            let words = at_client.unwrap_err().to_string();
            assert!(words.contains(&host.public_key().to_string()), "{words}");
            assert!(words.contains(&other.public_key().to_string()), "{words}");
        }
    })
    .await;
}

#[tokio::test]
async fn first_contact_accepts_any_key_and_reports_it() {
    within_deadline(async {
        let (host, client) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        for tuning in both() {
            let host_end = Endpoint::host(ANY_PORT.parse().unwrap(), &host, &tuning).unwrap();
            let address = host_end.local_address();
            let client_end = Endpoint::client(&client, &tuning, address).unwrap();
            let (_at_host, at_client) =
                tokio::join!(accept_one(&host_end), client_end.connect(address, ExpectedHost::Any));
            assert_eq!(at_client.unwrap().peer_key(), host.public_key());
        }
    })
    .await;
}

#[tokio::test]
async fn another_protocol_is_refused() {
    within_deadline(async {
        let (host, client) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        for tuning in both() {
            let host_end = Endpoint::host(ANY_PORT.parse().unwrap(), &host, &tuning).unwrap();
            let address = host_end.local_address();
            let client_end = Endpoint::client_speaking(b"wormhole/0", &client, &tuning, address).unwrap();
            let expected = ExpectedHost::Key(host.public_key());
            let (at_host, at_client) =
                tokio::join!(accept_one(&host_end), client_end.connect(address, expected));
            assert!(matches!(at_host, Err(TransportError::Handshake { .. })));
            assert!(matches!(at_client, Err(TransportError::Connect { .. })));
        }
    })
    .await;
}

/// Moves `bytes` of a pattern over each of `streams` at once. The sums at both ends must be equal.
async fn transfer(pair: &Pair, streams: usize, bytes: usize) {
    let content: bytes::Bytes =
        (0..bytes).map(|index| (index * 31 + index / 251) as u8).collect::<Vec<u8>>().into();
    let wanted = blake3::hash(&content);
    let host = pair.at_host.clone();
    let serve = tokio::spawn(async move {
        for _ in 0..streams {
            let (mut send, mut receive) = host.accept_stream().await.unwrap();
            let content = content.clone();
            tokio::spawn(async move {
                assert_eq!(receive.read_to_end(16).await.unwrap(), b"get");
                send.write_chunk(content).await.unwrap();
                send.finish().unwrap();
                send.stopped().await.unwrap();
            });
        }
    });
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..streams {
        let client = pair.at_client.clone();
        requests.spawn(async move {
            let (mut send, mut receive) = client.open_stream(Lane::Demand).await.unwrap();
            send.write_all(b"get").await.unwrap();
            send.finish().unwrap();
            blake3::hash(&receive.read_to_end(usize::MAX).await.unwrap())
        });
    }
    for sum in requests.join_all().await {
        assert_eq!(sum, wanted);
    }
    serve.await.unwrap();
}

async fn eight_streams_arrive_whole(congestion: CongestionKind) {
    within_deadline(async {
        let tuning = TransportTuning { congestion, ..TransportTuning::default() };
        let (pair, ..) = pair(ANY_PORT, &tuning).await;
        transfer(&pair, 8, 16 << 20).await;
        let stats = pair.at_host.stats();
        assert!(stats.bytes_sent > 128 << 20, "{stats:?}");
        assert_eq!(pair.at_client.datagrams_received(), pair.at_client.stats().datagrams_received);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_streams_arrive_whole_over_tcp() {
    within_deadline(async {
        let [_, tuning] = both();
        let (pair, ..) = pair(ANY_PORT, &tuning).await;
        transfer(&pair, 8, 16 << 20).await;
        let stats = pair.at_host.stats();
        assert!(stats.bytes_sent > 128 << 20 && stats.rtt > Duration::ZERO, "{stats:?}");
        assert!(stats.congestion_window_bytes > 0 && stats.mtu_bytes > 0 && stats.sent_packets > 0);
        assert_eq!(pair.at_client.datagrams_received(), pair.at_client.stats().datagrams_received);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_streams_arrive_whole_under_delivery() {
    eight_streams_arrive_whole(CongestionKind::Delivery).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_streams_arrive_whole_under_cubic() {
    eight_streams_arrive_whole(CongestionKind::Cubic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_streams_arrive_whole_under_bbr() {
    eight_streams_arrive_whole(CongestionKind::Bbr).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_streams_arrive_whole_under_newreno() {
    eight_streams_arrive_whole(CongestionKind::NewReno).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jumbo_packets_in_batches_do_not_look_like_a_black_hole() {
    within_deadline(async {
        let tuning = TransportTuning { datagram_bytes_max: 8_952, ..TransportTuning::default() };
        let (pair, ..) = pair(ANY_PORT, &tuning).await;
        transfer(&pair, 8, 16 << 20).await;
        let stats = pair.at_host.stats();
        assert_eq!((stats.mtu_bytes, stats.black_holes), (8_952, 0), "{stats:?}");
    })
    .await;
}

#[tokio::test]
async fn loopback_uses_the_largest_packets() {
    within_deadline(async {
        let (pair, ..) = pair(ANY_PORT, &TransportTuning::default()).await;
        transfer(&pair, 2, 4 << 20).await;
        assert!(pair.at_host.stats().mtu_bytes > 16_000, "{:?}", pair.at_host.stats());
    })
    .await;
}

#[tokio::test]
async fn the_peer_reads_the_text_of_a_close() {
    within_deadline(async {
        for tuning in both() {
            let (pair, ..) = pair(ANY_PORT, &tuning).await;
            assert_eq!(pair.at_client.close_reason(), None);
            assert_eq!((pair.client_end.open_connections(), pair.host_end.open_connections()), (1, 1));
            pair.at_host.close(7, "not welcome");
            let reason = pair.at_client.closed().await;
            assert_eq!(reason, CloseReason::ByPeer { code: 7, text: "not welcome".to_owned() });
            assert!(reason.to_string().contains("not welcome"));
            assert!(matches!(pair.at_client.open_stream(Lane::Demand).await, Err(TransportError::Closed(_))));
            pair.client_end.close(0, "");
            pair.host_end.close(0, "");
            tokio::join!(pair.client_end.wait_idle(), pair.host_end.wait_idle());
            assert!(pair.host_end.accept().await.is_none());
        }
    })
    .await;
}

#[tokio::test]
async fn one_of_several_addresses_is_enough() {
    within_deadline(async {
        let (host, client) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let tuning = TransportTuning::default();
        let host_end = Endpoint::host(ANY_PORT.parse().unwrap(), &host, &tuning).unwrap();
        // A socket that never answers precedes the host.
        let silent = std::net::UdpSocket::bind(ANY_PORT).unwrap();
        let addresses = [silent.local_addr().unwrap(), host_end.local_address()];
        let expected = ExpectedHost::Key(host.public_key());
        let (at_host, connected) = tokio::join!(
            accept_one(&host_end),
            connect_any(&client, &tuning, &addresses, expected, QUIC_HEAD_START)
        );
        assert_eq!(connected.unwrap().1.remote_address(), host_end.local_address());
        assert_eq!(at_host.unwrap().peer_key(), client.public_key());
    })
    .await;
}

#[tokio::test]
async fn a_wrong_key_is_reported_even_when_other_addresses_fail() {
    within_deadline(async {
        let (host, client) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let tuning =
            TransportTuning { idle_timeout: Duration::from_millis(500), ..TransportTuning::default() };
        let host_end = Endpoint::host(ANY_PORT.parse().unwrap(), &host, &tuning).unwrap();
        let silent = std::net::UdpSocket::bind(ANY_PORT).unwrap();
        let addresses = [host_end.local_address(), silent.local_addr().unwrap()];
        let expected = ExpectedHost::Key(client.public_key());
        let (_, connected) = tokio::join!(
            accept_one(&host_end),
            connect_any(&client, &tuning, &addresses, expected.clone(), QUIC_HEAD_START)
        );
        assert!(matches!(connected, Err(TransportError::WrongHostKey { .. })));
        assert!(matches!(
            connect_any(&client, &tuning, &[], expected, QUIC_HEAD_START).await,
            Err(TransportError::NoAddress)
        ));
    })
    .await;
}

#[tokio::test]
async fn a_used_port_gives_a_clear_error() {
    let identity = Identity::generate().unwrap();
    let taken = std::net::UdpSocket::bind(ANY_PORT).unwrap();
    let address = taken.local_addr().unwrap();
    let error = Endpoint::host(address, &identity, &TransportTuning::default()).unwrap_err();
    assert!(
        error.to_string().contains(&address.to_string()) && error.to_string().contains("--listen"),
        "{error}"
    );
}

/// Returns the protocol of a client that may use both, with a host that listens as `host` says. The route is
/// short if `is_short`.
async fn race(host: TransportChoice, is_short: bool) -> TransportKind {
    let (identity, client) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let host_tuning = TransportTuning { transport: host, ..TransportTuning::default() };
    let host_end = Endpoint::host(ANY_PORT.parse().unwrap(), &identity, &host_tuning).unwrap();
    let tcp_rtt_max = if is_short { Duration::from_secs(1) } else { Duration::ZERO };
    let tuning = TransportTuning { tcp_rtt_max, ..TransportTuning::default() };
    let addresses = [host_end.local_address()];
    let expected = ExpectedHost::Key(identity.public_key());
    let serve = async {
        let mut connections = tokio::task::JoinSet::new();
        while let Some(incoming) = host_end.accept().await {
            connections.spawn(incoming.handshake());
        }
    };
    let head_start = Duration::from_secs(1);
    tokio::select! {
        connected = connect_any(&client, &tuning, &addresses, expected, head_start) => {
            connected.unwrap().1.kind()
        }
        () = serve => unreachable!("the host's end is open"),
    }
}

#[tokio::test]
async fn the_route_decides_the_protocol_and_each_replaces_the_other() {
    let (quic, tcp) = (TransportKind::Quic, TransportKind::Tcp);
    within_deadline(async {
        for (host, is_short, winner) in [
            (TransportChoice::Auto, true, tcp),
            (TransportChoice::Auto, false, quic),
            (TransportChoice::Only(quic), true, quic),
            (TransportChoice::Only(quic), false, quic),
            (TransportChoice::Only(tcp), true, tcp),
            (TransportChoice::Only(tcp), false, tcp),
        ] {
            assert_eq!(race(host, is_short).await, winner, "{host}, short: {is_short}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_host_picks_a_port_that_is_free_for_both() {
    let identity = Identity::generate().unwrap();
    let host = Endpoint::host(ANY_PORT.parse().unwrap(), &identity, &TransportTuning::default()).unwrap();
    let address = host.local_address();
    assert!(std::net::UdpSocket::bind(address).is_err() && std::net::TcpListener::bind(address).is_err());
    let taken = std::net::TcpListener::bind(ANY_PORT).unwrap();
    let error = Endpoint::host(taken.local_addr().unwrap(), &identity, &TransportTuning::default());
    assert!(error.unwrap_err().to_string().contains("cannot listen on TCP"));
}

#[tokio::test]
async fn an_unadmitted_client_may_open_few_streams_and_send_little() {
    within_deadline(async {
        let patience = Duration::from_millis(300);
        for tuning in both() {
            let (host, client) = (Identity::generate().unwrap(), Identity::generate().unwrap());
            let host_end = Endpoint::host(ANY_PORT.parse().unwrap(), &host, &tuning).unwrap();
            let address = host_end.local_address();
            let client_end = Endpoint::client(&client, &tuning, address).unwrap();
            let (at_host, at_client) =
                tokio::join!(unadmitted(&host_end), client_end.connect(address, ExpectedHost::Any));
            let (at_host, at_client) = (at_host.unwrap(), at_client.unwrap());
            let mut streams = Vec::new();
            // Until the limit is reached.
            while let Ok(opened) = tokio::time::timeout(patience, at_client.open_stream(Lane::Demand)).await {
                streams.push(opened.unwrap());
            }
            assert_eq!(streams.len(), 4, "{}", tuning.transport);
            // Nothing is read, so the host must hold all bytes that are sent.
            let sent = at_client.stats().bytes_sent;
            let content = bytes::Bytes::from(vec![7; 1 << 20]);
            let mut writing = tokio::task::JoinSet::new();
            for (mut send, receive) in streams {
                let content = content.clone();
                writing.spawn(async move {
                    send.write_chunk(content).await.unwrap();
                    receive
                });
            }
            tokio::time::sleep(patience).await;
            let sent = at_client.stats().bytes_sent - sent;
            assert!(sent < 128 << 10, "{}: {sent} bytes went out", tuning.transport);
            at_host.admit();
            let read = async {
                let (_send, mut receive) = at_host.accept_stream().await.unwrap();
                receive.read_bytes(1 << 20, |_| ()).await.unwrap()
            };
            assert_eq!(read.await, content, "{}", tuning.transport);
            at_client.open_stream(Lane::Demand).await.unwrap();
            writing.shutdown().await;
        }
    })
    .await;
}
