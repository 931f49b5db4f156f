//! Raw QUIC, and TCP with TLS: what the transport moves when nothing reads a disk or hashes a byte.
//!
//! `cargo bench --bench quic` compares packet sizes of QUIC, and TCP, over loopback, both ends in this process, beside the CPU
//! time they used. `quic loopback tcp` measures TCP alone. Over a real or emulated network (`wansim`), in two namespaces or on two machines:
//!
//! ```text
//! quic loopback [CONGESTION]
//! quic host ADDRESS:PORT [CONGESTION]
//! quic fetch ADDRESS:PORT STREAMS MEBIBYTES
//! ```

use std::env;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};
use tokio::task::JoinSet;
use wormhole::transport::{
    CongestionKind, Connection, Endpoint, ExpectedHost, Identity, Lane, LinkStats, RecvStream, SendStream,
    TransportChoice, TransportKind, TransportTuning,
};

/// One chunk of content, as the host sends them.
const CHUNK_BYTES: usize = 256 << 10;
const LOOPBACK_BYTES: u64 = 4 << 30;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match arguments[..] {
            ["host", address] => host(address, CongestionKind::default()).await,
            ["host", address, congestion] => host(address, congestion.parse()?).await,
            ["fetch", address, streams, mebibytes] => {
                fetch(address.parse()?, streams.parse()?, mebibytes.parse::<u64>()? << 20).await
            }
            ["loopback", "tcp"] => {
                print_loopback_head();
                loopback_over_tcp().await
            }
            ["loopback", congestion] => loopback(congestion.parse()?).await,
            _ => loopback(CongestionKind::default()).await,
        }
    })
}

/// Serves connections one after another and says after each what the link did.
async fn host(address: &str, congestion: CongestionKind) -> Result<(), Failure> {
    let tuning = TransportTuning { congestion, ..TransportTuning::default() };
    let endpoint = Endpoint::host(address.parse()?, &Identity::generate()?, &tuning)?;
    println!("listening: {} {:?}", endpoint.local_address(), endpoint.buffers());
    while let Some(incoming) = endpoint.accept().await {
        let connection = incoming.handshake().await?;
        connection.admit();
        let watcher = tokio::spawn(watch(connection.clone()));
        serve(connection.clone()).await;
        watcher.abort();
        println!("{congestion}: {}", link_words(&connection.stats()));
    }
    Ok(())
}

/// A line a second while `QUIC_WATCH` is set.
async fn watch(connection: Connection) {
    let mut before = connection.stats().bytes_sent;
    while env::var_os("QUIC_WATCH").is_some() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let stats = connection.stats();
        println!("  {:7.1} MB/s, {}", (stats.bytes_sent - before) as f64 / 1e6, link_words(&stats));
        before = stats.bytes_sent;
    }
}

/// Answers requests until the peer closes.
async fn serve(connection: Connection) {
    while let Ok((send, receive)) = connection.accept_stream().await {
        tokio::spawn(answer(send, receive));
    }
}

/// The request is a number of bytes, eight of them, big-endian; the answer is that many zeros.
async fn answer(mut send: SendStream, mut receive: RecvStream) -> Result<(), Failure> {
    let mut request = [0; 8];
    receive.read_exact(&mut request).await?;
    let chunk = Bytes::from(vec![0; CHUNK_BYTES]);
    let mut left = u64::from_be_bytes(request) as usize;
    while left > 0 {
        let piece = chunk.slice(..left.min(CHUNK_BYTES));
        left -= piece.len();
        send.write_chunk(piece).await?;
    }
    send.finish()?;
    Ok(())
}

/// Fetches `bytes` over `streams` at once; the time from the first request to the last byte.
async fn fetch_all(connection: &Connection, streams: u64, bytes: u64) -> Result<Duration, Failure> {
    let started = Instant::now();
    let mut requests = JoinSet::new();
    for _ in 0..streams {
        let connection = connection.clone();
        requests.spawn(async move {
            let (mut send, mut receive) = connection.open_stream(Lane::Demand).await?;
            send.write_all(&(bytes / streams).to_be_bytes()).await?;
            send.finish()?;
            let mut received = 0;
            while let Some(chunk) = receive.read_chunk(CHUNK_BYTES).await? {
                received += chunk.len() as u64;
            }
            Ok::<u64, Failure>(received)
        });
    }
    let mut received = 0;
    while let Some(request) = requests.join_next().await {
        received += request??;
    }
    assert_eq!(received, bytes / streams * streams);
    Ok(started.elapsed())
}

async fn fetch(address: SocketAddr, streams: u64, bytes: u64) -> Result<(), Failure> {
    let tuning = TransportTuning::default();
    let endpoint = Endpoint::client(&Identity::generate()?, &tuning, address)?;
    let connection = endpoint.connect(address, ExpectedHost::Any).await?;
    let elapsed = fetch_all(&connection, streams, bytes).await?;
    println!("{:.1} MB/s ({elapsed:.2?})", bytes as f64 / 1e6 / elapsed.as_secs_f64());
    connection.close(0, "done");
    endpoint.wait_idle().await;
    Ok(())
}

fn print_loopback_head() {
    println!("| packets of | streams | MB/s | CPU s per GiB | link |");
    println!("| --- | --- | --- | --- | --- |");
}

async fn loopback_over_tcp() -> Result<(), Failure> {
    let transport = TransportChoice::Only(TransportKind::Tcp);
    let tuning = TransportTuning { transport, ..TransportTuning::default() };
    for streams in [8, 1] {
        let (best, cpu, stats) = loopback_with(&tuning, streams).await?;
        println!("| TCP | {streams} | {:.0} | {cpu:.2} | {} |", best / 1e6, link_words(&stats));
    }
    Ok(())
}

async fn loopback(congestion: CongestionKind) -> Result<(), Failure> {
    print_loopback_head();
    loopback_over_tcp().await?;
    for (datagram_bytes_max, streams) in [(65_507, 8), (65_507, 1), (8_952, 8), (1_452, 8), (1_452, 1)] {
        let tuning = TransportTuning { datagram_bytes_max, congestion, ..TransportTuning::default() };
        let tuning = match env::var("QUIC_ACK_PACKETS") {
            Ok(packets) => TransportTuning { ack_threshold_packets: packets.parse()?, ..tuning },
            Err(_) => tuning,
        };
        let (best, cpu, stats) = loopback_with(&tuning, streams).await?;
        println!(
            "| {datagram_bytes_max} | {streams} | {:.0} | {cpu:.2} | {} |",
            best / 1e6,
            link_words(&stats)
        );
    }
    Ok(())
}

/// Best of three: bytes a second, with the CPU seconds per GiB of that run.
async fn loopback_with(tuning: &TransportTuning, streams: u64) -> Result<(f64, f64, LinkStats), Failure> {
    let server = Endpoint::host("127.0.0.1:0".parse()?, &Identity::generate()?, tuning)?;
    let address = server.local_address();
    let client = Endpoint::client(&Identity::generate()?, tuning, address)?;
    let accept = async { server.accept().await.ok_or("closed")?.handshake().await.map_err(Failure::from) };
    let connect = async { client.connect(address, ExpectedHost::Any).await.map_err(Failure::from) };
    let (at_host, at_client) = tokio::try_join!(accept, connect)?;
    at_host.admit();
    let serving = tokio::spawn(serve(at_host.clone()));
    let (mut best, mut best_cpu) = (0.0, 0.0);
    for _ in 0..3 {
        let cpu_before = cpu_seconds();
        let rate =
            LOOPBACK_BYTES as f64 / fetch_all(&at_client, streams, LOOPBACK_BYTES).await?.as_secs_f64();
        if rate > best {
            best = rate;
            best_cpu = (cpu_seconds() - cpu_before) * f64::from(1 << 30) / LOOPBACK_BYTES as f64;
        }
    }
    let stats = at_host.stats();
    at_client.close(0, "done");
    serving.await?;
    Ok((best, best_cpu, stats))
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask about itself");
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        .sum()
}

fn link_words(stats: &LinkStats) -> String {
    format!(
        "rtt {:.1?} (least {:.1?}), {} of {} packets lost, window {} KiB, mtu {}, black holes {}",
        stats.rtt,
        stats.rtt_min,
        stats.lost_packets,
        stats.sent_packets,
        stats.congestion_window_bytes >> 10,
        stats.mtu_bytes,
        stats.black_holes
    )
}
