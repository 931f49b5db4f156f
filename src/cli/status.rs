//! `wormhole status`: what the mounts and hosts of this machine are doing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use super::CliError;
use super::mountpoint;
use super::words::{amount, count, duration};
use crate::control::{self, ClientReport, DaemonKind, KeyUse, LinkWord, StatusReport};
use crate::fuse::table;
use crate::metrics::{Metric, Reading, Readings};
use crate::transport::{SOCKET_BUFFER_BYTES_WANTED, buffers_help};

/// Between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// So much of a key names it for people, and for `wormhole key revoke`.
const KEY_CHARACTERS: usize = 12;

/// Moves to the top left and clears the terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What was typed.
#[derive(Debug, clap::Args)]
#[command(after_help = metrics_help())]
pub(super) struct Arguments {
    /// Only the mount on this directory
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: Option<PathBuf>,

    /// Print a JSON array, one object a daemon
    #[arg(long)]
    json: bool,

    /// Look again every second, until Ctrl-C; with --json one array a line
    #[arg(short, long)]
    watch: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    loop {
        let reports = reports(arguments)?;
        let text = match (arguments.json, arguments.watch) {
            (true, true) => serde_json::to_string(&reports).map_err(CliError::system)? + "\n",
            (true, false) => serde_json::to_string_pretty(&reports).map_err(CliError::system)? + "\n",
            (false, _) => table_of(&reports),
        };
        let clear = if arguments.watch && io::stdout().is_terminal() { CLEAR } else { "" };
        let mut out = io::stdout().lock();
        if write!(out, "{clear}{text}").and_then(|()| out.flush()).is_err() || !arguments.watch {
            // Nobody reads any more, or nobody wants more.
            return Ok(());
        }
        drop(out);
        std::thread::sleep(WATCH_EVERY);
    }
}

/// Every daemon that answers, and every mount whose daemon does not.
fn reports(arguments: &Arguments) -> Result<Vec<StatusReport>, CliError> {
    let mut asked = Vec::new();
    for (i, directory) in super::control_directories().into_iter().enumerate() {
        let daemons = control::daemons(&directory).unwrap_or_else(|error| {
            // A directory of another user that cannot be read has nothing to tell; the first is this user's own.
            if i == 0 {
                eprintln!("wormhole: {error}");
            }
            Vec::new()
        });
        asked.extend(daemons);
    }
    let mut reports = control::statuses(&asked);
    let mounts =
        table::mounts().map_err(|error| CliError::system(format!("/proc/self/mountinfo: {error}")))?;
    for entry in mounts.into_iter().filter(table::MountEntry::is_wormhole) {
        // A daemon whose mount was detached tells of another device than the one that was mounted there next.
        let known = |report: &StatusReport| report.device.as_ref() == Some(&entry.device_text());
        if !reports.iter().any(known) {
            reports.push(unreachable(entry));
        }
    }
    let mut reports = without_predecessors(&reports);
    let Some(wanted) = &arguments.mountpoint else { return Ok(reports) };
    let wrong = |why: &dyn std::fmt::Display| CliError::system(format!("{}: {why}", wanted.display()));
    let place = table::resolve(wanted).map_err(|error| wrong(&error))?;
    reports.retain(|report| report.mountpoint.as_ref() == Some(&place));
    if reports.is_empty() {
        return Err(wrong(&"no wormhole mount"));
    }
    Ok(reports)
}

/// A daemon whose mount is gone may still be finishing when the next one has mounted on the same place.
fn without_predecessors(reports: &[StatusReport]) -> Vec<StatusReport> {
    let is_last = |(at, report): &(usize, &StatusReport)| {
        let later = &reports[at + 1..];
        report.mountpoint.is_none() || later.iter().all(|other| other.mountpoint != report.mountpoint)
    };
    reports.iter().enumerate().filter(is_last).map(|(_, report)| report.clone()).collect()
}

fn unreachable(entry: table::MountEntry) -> StatusReport {
    let state = if mountpoint::is_dead(&entry) { LinkWord::Dead } else { LinkWord::Unreachable };
    StatusReport {
        kind: DaemonKind::Mount,
        pid: 0,
        version: String::new(),
        device: Some(entry.device_text()),
        source: vec![entry.source],
        mountpoint: Some(entry.mountpoint),
        state,
        problem: None,
        address: None,
        transport: String::new(),
        engine: None,
        cache_dir: None,
        clients_connected: Vec::new(),
        keys: Vec::new(),
        cache_problem: None,
        file_systems: Vec::new(),
        readings: Readings::default(),
    }
}

/// A few lines for each daemon.
fn table_of(reports: &[StatusReport]) -> String {
    if reports.is_empty() {
        return "Nothing is mounted or served by wormhole on this machine.\n".to_owned();
    }
    let lines: Vec<_> = reports
        .iter()
        .map(|report| match report.kind {
            DaemonKind::Mount => mount_lines(report),
            DaemonKind::Host => host_lines(report),
        })
        .collect();
    lines.join("\n")
}

/// The one line about a mount of which there is nothing else to tell.
fn why_nothing_answers(report: &StatusReport) -> Option<String> {
    match report.state {
        LinkWord::Unreachable => Some(
            "its daemon does not answer: it is another user's, or hangs (`wormhole umount -f`)".to_owned(),
        ),
        LinkWord::Dead => Some(
            "its daemon died: `wormhole mount` replaces it, and `wormhole umount` takes it away".to_owned(),
        ),
        LinkWord::Mounting => {
            let problem = report.problem.as_deref().unwrap_or("the first attempt is under way");
            let up = duration(report.readings.count(Metric::UptimeSeconds) * 1000);
            let pid = report.pid;
            Some(format!(
                "not mounted yet, tried for {up} by process {pid}, `wormhole umount` cancels it: {problem}"
            ))
        }
        _ => None,
    }
}

fn mount_lines(report: &StatusReport) -> String {
    let mountpoint = report.mountpoint.clone().unwrap_or_default();
    let mut text = format!("{}  {}\n", mountpoint.display(), report.source.join(" "));
    if let Some(line) = why_nothing_answers(report) {
        let _ = writeln!(text, "  {line}");
        return text;
    }
    let readings = &report.readings;
    let number = |metric| readings.count(metric);
    let address = report.address.as_deref().unwrap_or("the host");
    let link = match report.state {
        LinkWord::Ending => "unmounted; writes what it holds, and ends".to_owned(),
        LinkWord::Disconnected => {
            format!("the host does not answer: what is known still does; {}", staleness(readings))
        }
        LinkWord::Offline => format!("offline: what is known is shown; {}", staleness(readings)),
        _ => {
            format!("connected to {address} by {}, round trip {} ms", report.transport, rtt(readings))
        }
    };
    let up = duration(number(Metric::UptimeSeconds) * 1000);
    let reconnects = number(Metric::Reconnects);
    let _ = writeln!(text, "  {link}; {reconnects} reconnects; up {up}, process {}", report.pid);
    let _ = writeln!(
        text,
        "  content  {} from the host; {} chunks from the disk, {} reads from memory",
        amount(number(Metric::HostBytes)),
        count(number(Metric::DiskChunks)),
        count(number(Metric::MemoryReads)),
    );
    let _ = writeln!(
        text,
        "  wire     {} received, {} sent; lately {}/s; {} requests in flight, {} of them ahead",
        amount(number(Metric::WireReceivedBytes)),
        amount(number(Metric::WireSentBytes)),
        amount(number(Metric::LinkBytesPerSecond)),
        number(Metric::RequestsInFlight),
        number(Metric::PrefetchInFlight),
    );
    let (unsent, unsynced) = (number(Metric::UnsentBytes), number(Metric::UnsyncedBytes));
    if unsent + unsynced > 0 {
        let (unsent, unsynced) = (amount(unsent), amount(unsynced));
        let _ =
            writeln!(text, "  written  {unsent} not yet at the host; {unsynced} there, but not yet synced");
    }
    add_trust_lines(&mut text, report);
    add_buffers_line(&mut text, readings);
    if readings.get(Metric::CacheLimitBytes).is_some() {
        let _ = writeln!(
            text,
            "  cache    {} of {} in {} entries; {} hits, {} misses; {} chunks of other names",
            amount(number(Metric::CacheUsedBytes)),
            amount(number(Metric::CacheLimitBytes)),
            count(number(Metric::CacheEntries)),
            count(number(Metric::CacheHits)),
            count(number(Metric::CacheMisses)),
            count(number(Metric::ManifestChunksHeld)),
        );
    }
    if let Some(problem) = &report.cache_problem {
        let _ = writeln!(
            text,
            "  cache    not used as it should be, reads go on; it is taken up when it can be: {problem}"
        );
    }
    text
}

/// How old what is shown may be, and how much of it was.
fn staleness(readings: &Readings) -> String {
    format!(
        "last heard of {} ago, {} stale answers",
        duration(readings.count(Metric::LastContactSeconds) * 1000),
        count(readings.count(Metric::StaleAnswers)),
    )
}

fn host_lines(report: &StatusReport) -> String {
    let number = |metric| report.readings.count(metric);
    let address = report.address.as_deref().unwrap_or("?");
    let mut text = format!("host on {address}  {}\n", report.source.join(" "));
    let up = duration(number(Metric::UptimeSeconds) * 1000);
    let engine = report.engine.as_deref().unwrap_or("?");
    let _ = writeln!(
        text,
        "  {} clients; disk by {engine}, net by {}; up {up}, process {}",
        number(Metric::Clients),
        report.transport,
        report.pid
    );
    let _ = writeln!(
        text,
        "  served   {} in {} requests; {} connections turned away",
        amount(number(Metric::ServedBytes)),
        count(number(Metric::Requests)),
        count(number(Metric::Refused)),
    );
    let _ = writeln!(
        text,
        "  at once  {} reads at the disk, {} answers on their way; at most {} and {} so far",
        number(Metric::DiskInFlight),
        number(Metric::SendInFlight),
        number(Metric::DiskInFlightMax),
        number(Metric::SendInFlightMax),
    );
    add_trust_lines(&mut text, report);
    add_index_line(&mut text, &report.readings);
    add_buffers_line(&mut text, &report.readings);
    add_client_lines(&mut text, report);
    report.keys.iter().for_each(|key| add_key_line(&mut text, key));
    text
}

/// Who is connected: a line for each key and what it has mounted.
fn add_client_lines(text: &mut String, report: &StatusReport) {
    let mut seen = BTreeSet::new();
    for client in &report.clients_connected {
        if !seen.insert((&client.key, &client.export)) {
            continue;
        }
        let name = if client.name.is_empty() { "(no name)" } else { &client.name };
        let ClientReport { key, address, export, rights, .. } = client;
        let _ = writeln!(text, "  client   {name}  {export}  {rights}  from {address}, key {key}");
    }
}

/// What one key uses, of what it may use.
fn add_key_line(text: &mut String, key: &KeyUse) {
    let of = |(used, max): (u64, u32)| format!("{used} of {max}");
    let _ = writeln!(
        text,
        "  key      {}: {} mounts, {} connections, {} files open, {} requests, {} threads",
        key.key.get(..KEY_CHARACTERS).unwrap_or(&key.key),
        of(key.sessions),
        of(key.connections),
        of(key.open),
        of(key.requests),
        of(key.threads),
    );
}

/// Lists the file systems with their trust class.
fn add_trust_lines(text: &mut String, report: &StatusReport) {
    for found in &report.file_systems {
        let path = found.path.as_deref().map(|path| format!("{path}: ")).unwrap_or_default();
        let kind = found.file_system.as_deref().map(|kind| format!("{kind}, ")).unwrap_or_default();
        let _ = writeln!(text, "  trust    {path}{kind}{}: {}", found.trust, found.reason);
    }
}

/// What the host knows of hashes.
fn add_index_line(text: &mut String, readings: &Readings) {
    let number = |metric| readings.count(metric);
    let _ = write!(
        text,
        "  hashes   {} told from the index, {} by reading; {} of {} on disk",
        count(number(Metric::IndexHits)),
        count(number(Metric::IndexMisses)),
        amount(number(Metric::IndexUsedBytes)),
        amount(number(Metric::IndexLimitBytes)),
    );
    if readings.get(Metric::IndexAheadTotalBytes).is_some() {
        let _ = write!(
            text,
            "; hashed ahead {} of {}",
            amount(number(Metric::IndexAheadBytes)),
            amount(number(Metric::IndexAheadTotalBytes)),
        );
    }
    text.push('\n');
}

/// Says what would help where the kernel grants less buffer than a fast link needs.
fn add_buffers_line(text: &mut String, readings: &Readings) {
    let bytes = readings.count(Metric::UdpBufferBytes);
    if readings.get(Metric::UdpBufferBytes).is_some() && bytes < SOCKET_BUFFER_BYTES_WANTED as u64 {
        let _ = writeln!(
            text,
            "  udp      socket buffers of {} where {} are wanted; `{}` helps",
            amount(bytes),
            amount(SOCKET_BUFFER_BYTES_WANTED as u64),
            buffers_help(SOCKET_BUFFER_BYTES_WANTED),
        );
    }
}

fn rtt(readings: &Readings) -> String {
    match readings.get(Metric::RttMs) {
        Some(Reading::Real(ms)) => format!("{ms:.1}"),
        Some(Reading::Count(ms)) => ms.to_string(),
        None => "?".to_owned(),
    }
}

/// The keys of the JSON that are numbers, from the one table.
fn metrics_help() -> String {
    let width = Metric::ALL.iter().map(|metric| metric.name().len()).max().unwrap_or_default();
    let mut help = String::from("Numbers in the JSON, where a daemon has them:\n");
    for metric in Metric::ALL {
        let _ = writeln!(help, "  {:width$}  {}", metric.name(), metric.meaning());
    }
    help.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::FileSystemReport;

    fn key_use() -> KeyUse {
        KeyUse {
            key: "k".repeat(52),
            connections: (3, 256),
            sessions: (1, 64),
            open: (17, 65_536),
            requests: (0, 1_024),
            threads: (0, 32),
        }
    }

    fn report(kind: DaemonKind) -> StatusReport {
        let mut readings = Readings::default();
        readings.set(Metric::HostBytes, 3_u64 << 20);
        readings.set(Metric::RttMs, 1.25);
        readings.set(Metric::CacheLimitBytes, 1_u64 << 30);
        readings.set(Metric::Clients, 2_u64);
        StatusReport {
            kind,
            pid: 42,
            version: "1".to_owned(),
            source: vec!["nas:/media".to_owned()],
            mountpoint: (kind == DaemonKind::Mount).then(|| "/mnt".into()),
            device: None,
            file_systems: Vec::new(),
            state: LinkWord::Connected,
            problem: None,
            address: Some("10.0.0.1:4433".to_owned()),
            transport: "quic".to_owned(),
            engine: Some("uring".to_owned()),
            cache_dir: None,
            clients_connected: Vec::new(),
            keys: vec![key_use()],
            cache_problem: None,
            readings,
        }
    }

    #[test]
    fn a_mount_says_where_its_bytes_came_from() {
        let text = table_of(&[report(DaemonKind::Mount)]);
        for part in ["/mnt  nas:/media", "10.0.0.1:4433", "1.2 ms", "3.0 MiB from the host", "of 1.0 GiB"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn each_file_system_is_shown_with_its_class() {
        let found = |path: Option<&str>| FileSystemReport {
            path: path.map(str::to_owned),
            file_system: path.map(|_| "ext4".to_owned()),
            trust: "full".to_owned(),
            reason: "why".to_owned(),
        };
        let (mut host, mut mount) = (report(DaemonKind::Host), report(DaemonKind::Mount));
        host.file_systems = vec![found(Some("/srv"))];
        mount.file_systems = vec![found(None)];
        assert!(table_of(&[host]).contains("trust    /srv: ext4, full: why\n"));
        assert!(table_of(&[mount]).contains("trust    full: why\n"));
    }

    #[test]
    fn of_two_daemons_at_one_place_the_last_counts() {
        let (mut before, host) = (report(DaemonKind::Mount), report(DaemonKind::Host));
        before.pid = 1;
        let now = report(DaemonKind::Mount);
        let kept = without_predecessors(&[host.clone(), before, host.clone(), now.clone()]);
        assert_eq!(kept, [host.clone(), host, now]);
    }

    #[test]
    fn small_socket_buffers_are_told_with_what_helps() {
        for kind in [DaemonKind::Mount, DaemonKind::Host] {
            let mut small = report(kind);
            assert!(!table_of(&[small.clone()]).contains("sysctl"));
            small.readings.set(Metric::UdpBufferBytes, SOCKET_BUFFER_BYTES_WANTED);
            assert!(!table_of(&[small.clone()]).contains("sysctl"));
            small.readings.set(Metric::UdpBufferBytes, 4_u64 << 20);
            let text = table_of(&[small]);
            assert!(
                text.contains("of 4.0 MiB where 16.0 MiB") && text.contains("sysctl -w net.core.rmem_max"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_lost_host_is_told() {
        let mut lost = report(DaemonKind::Mount);
        lost.state = LinkWord::Disconnected;
        lost.readings.set(Metric::LastContactSeconds, 90_u64);
        lost.readings.set(Metric::StaleAnswers, 7_u64);
        let text = table_of(&[lost.clone()]);
        assert!(text.contains("the host does not answer") && text.contains("7 stale answers"), "{text}");
        assert!(text.contains(&format!("last heard of {} ago", duration(90_000))), "{text}");
        lost.state = LinkWord::Offline;
        let text = table_of(&[lost]);
        assert!(text.contains("offline: ") && text.contains("7 stale answers"), "{text}");
    }

    #[test]
    fn a_host_says_whom_it_serves() {
        let text = table_of(&[report(DaemonKind::Host)]);
        assert!(text.contains("2 clients; disk by uring"), "{text}");
    }

    #[test]
    fn nothing_is_told_as_such() {
        assert!(table_of(&[]).contains("Nothing"));
    }

    #[test]
    fn every_metric_stands_in_the_help() {
        let help = metrics_help();
        assert!(Metric::ALL.iter().all(|metric| help.contains(metric.name())));
    }
}
