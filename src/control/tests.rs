//! Orders and answers over real sockets.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::metrics::{Metric, Readings};

#[derive(Default)]
struct Model {
    stopped: AtomicU32,
    aborted: AtomicU32,
}

fn report() -> StatusReport {
    let mut readings = Readings::default();
    readings.set(Metric::HostBytes, 7_u64);
    readings.set(Metric::RttMs, 0.5);
    StatusReport {
        kind: DaemonKind::Mount,
        pid: std::process::id(),
        version: "1".to_owned(),
        source: vec!["nas:/media".to_owned()],
        mountpoint: Some("/mnt".into()),
        device: Some("0:45".to_owned()),
        state: LinkWord::Connected,
        problem: None,
        address: Some("10.0.0.1:4433".to_owned()),
        transport: "quic".to_owned(),
        engine: None,
        cache_dir: None,
        clients_connected: Vec::new(),
        keys: Vec::new(),
        cache_problem: None,
        file_systems: Vec::new(),
        readings,
    }
}

impl Controlled for Model {
    fn status(&self) -> StatusReport {
        report()
    }

    fn stop(&self) {
        self.stopped.fetch_add(1, Ordering::SeqCst);
    }

    fn abort(&self) -> Unsent {
        self.aborted.fetch_add(1, Ordering::SeqCst);
        let long = |at: u64| (vec![b'"'; 4095], at);
        Unsent::new((0..100).map(long).chain([(b"a\nb".to_vec(), 500)]).collect())
    }

    fn warm(&self, order: &WarmOrder) -> Result<WarmReport, String> {
        if order.pin { Err("pins are full".to_owned()) } else { self.warm_progress(7) }
    }

    fn warm_progress(&self, id: u64) -> Result<WarmReport, String> {
        Ok(WarmReport { id, problems: vec!["p".repeat(1000); 10], ..WarmReport::default() })
    }
}

/// A runtime of its own threads, a directory, a daemon, and its socket.
struct Stage {
    model: Arc<Model>,
    socket: ControlSocket,
    directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

fn stage() -> Stage {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let model = Arc::new(Model::default());
    let guard = runtime.enter();
    let socket =
        ControlSocket::open(&directory.path().join("wormhole"), Some(Path::new("/mnt")), model.clone())
            .unwrap();
    drop(guard);
    Stage { model, socket, directory, _runtime: runtime }
}

impl Stage {
    fn sockets(&self) -> PathBuf {
        self.directory.path().join("wormhole")
    }

    fn say(&self, text: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket.path()).unwrap();
        stream.write_all(text).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        // A daemon that hangs up on nonsense may do so before all of it was read.
        let _ = stream.read_to_string(&mut answer);
        answer
    }
}

#[test]
fn orders_reach_the_daemon_and_answers_come_back() {
    let stage = stage();
    let found = daemon_of_mount(&stage.sockets(), Path::new("/mnt")).unwrap().unwrap();
    assert_eq!(found.status().unwrap(), report());
    found.order(&Order::Stop).unwrap();
    assert_eq!(stage.model.stopped.load(Ordering::SeqCst), 1);
    let lost = found.abort().unwrap();
    assert_eq!((lost.bytes, lost.files, lost.largest.len()), (4950 + 500, 101, UNSENT_FILES_MAX));
    assert_eq!(lost.largest[0], UnsentFile { path: "a_b".to_owned(), bytes: 500 });
    assert_eq!(stage.model.aborted.load(Ordering::SeqCst), 1);
    assert_eq!(daemon_of_mount(&stage.sockets(), Path::new("/other")).unwrap(), None);
}

#[test]
fn several_orders_share_a_connection() {
    let stage = stage();
    let answers = stage.say(b"\"stop\"\n\"stop\"\n\"abort\"\n");
    let rest = answers.strip_prefix("\"done\"\n\"done\"\n").unwrap();
    assert!(rest.starts_with("{\"aborted\"") && rest.ends_with("}\n") && rest.lines().count() == 1);
    assert_eq!(stage.model.stopped.load(Ordering::SeqCst), 2);
}

#[test]
fn nonsense_is_refused_and_hung_up_on() {
    let stage = stage();
    for nonsense in [b"hello\n\"stop\"\n".to_vec(), b"\"stop\"".to_vec(), vec![b'x'; ORDER_BYTES_MAX * 4]] {
        let answer = stage.say(&nonsense);
        assert!(answer.is_empty() || answer.starts_with("{\"refused\""), "{answer}");
    }
    assert_eq!(stage.model.stopped.load(Ordering::SeqCst), 0);
}

#[test]
fn the_socket_goes_with_the_daemon() {
    let stage = stage();
    let path = stage.socket.path().to_owned();
    assert_eq!(std::fs::metadata(stage.sockets()).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(path.exists());
    drop(stage.socket);
    assert!(!path.exists());
    let error = ask(&path, &Order::Status).unwrap_err();
    assert!(error.is_nobody(), "{error}");
}

#[test]
fn what_a_dead_daemon_left_is_cleaned_and_other_files_are_not() {
    let stage = stage();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let stale = stage.sockets().join(format!("host-{}.sock", child.id()));
    std::fs::write(&stale, "").unwrap();
    std::fs::write(stage.sockets().join("notes"), "").unwrap();
    let found = daemons(&stage.sockets()).unwrap();
    assert_eq!(found.iter().map(|daemon| daemon.pid).collect::<Vec<_>>(), [std::process::id()]);
    assert!(!stale.exists());
    assert!(stage.sockets().join("notes").exists());
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let error = ControlSocket::open(directory.path(), None, Arc::new(Model::default())).unwrap_err();
    assert!(matches!(error, ControlError::Directory { .. }), "{error}");
}

#[test]
fn a_daemon_that_does_not_answer_does_not_hold_the_asker_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("host-1.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = ask(&path, &Order::Status).unwrap_err();
    assert!(error.to_string().contains("timed out"), "{error}");
}

#[test]
fn a_report_keeps_its_shape_in_json() {
    let text = serde_json::to_string(&Answer::Status(Box::new(report()))).unwrap();
    assert!(text.starts_with("{\"status\":{\"kind\":\"mount\",\"pid\":"), "{text}");
    assert!(text.contains("\"host_bytes\":7,\"rtt_ms\":0.5") && !text.contains("engine"), "{text}");
    assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), Answer::Status(Box::new(report())));
}

proptest! {
    #[test]
    fn no_answer_makes_the_asker_panic(text in ".{0,200}") {
        let _ = serde_json::from_str::<Answer>(&text);
    }
}

#[test]
fn warming_is_ordered_and_asked_about() {
    let stage = stage();
    let daemon = daemons(&stage.sockets()).unwrap().remove(0);
    // As long as a path may be.
    let order = WarmOrder { path_hex: "2f".repeat(4096), pin: false };
    let begun = daemon.warm(&Order::Warm(order.clone())).unwrap();
    assert_eq!((begun.id, begun.problems.len()), (7, 10));
    assert_eq!(daemon.warm(&Order::WarmProgress(9)).unwrap().id, 9);
    let refused = daemon.warm(&Order::Warm(WarmOrder { pin: true, ..order })).unwrap_err();
    assert!(refused.to_string().ends_with("refuses: pins are full"), "{refused}");
}

/// Orders the daemon behind a socket to stop, and says whether it answers.
const ORDER: &str = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
    s.send(b'\"stop\"\\n'); print('answered' if s.recv(99) else 'nothing')";

#[test]
fn a_socket_is_its_users_alone_whatever_the_umask_is() {
    // As a host has it.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let stage = stage();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(stage.socket.path()), 0o600);
    assert_eq!(mode(&stage.sockets()), 0o700);
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // Also where all doors were opened since, nobody else is listened to.
    for (path, mode) in
        [(stage.directory.path(), 0o755), (&stage.sockets(), 0o755), (stage.socket.path(), 0o666)]
    {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let said = |user: u32| {
        let mut command = std::process::Command::new("python3");
        let output = command.args(["-c", ORDER]).arg(stage.socket.path()).uid(user).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_ne!(said(65_534), "answered");
    assert_eq!(stage.model.stopped.load(Ordering::SeqCst), 0);
    assert_eq!(said(0), "answered");
    assert_eq!(stage.model.stopped.load(Ordering::SeqCst), 1);
}

#[test]
fn sockets_in_a_directory_of_others_are_not_asked() {
    let stage = stage();
    assert_eq!(daemons(&stage.sockets()).unwrap().len(), 1);
    std::fs::set_permissions(stage.sockets(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let refused = daemons(&stage.sockets()).unwrap_err().to_string();
    assert!(refused.contains("chmod go-w"), "{refused}");
    let refused = ControlSocket::open(&stage.sockets(), None, stage.model.clone()).unwrap_err().to_string();
    assert!(refused.contains("chmod go-w"), "{refused}");
}

/// Daemons that answer none before all are asked; `silent` of them never do.
fn daemons_that_wait(directory: &Path, count: usize, silent: usize) -> Vec<Daemon> {
    let all_are_asked = Arc::new(std::sync::Barrier::new(count));
    let listen = |at: usize| {
        let socket = directory.join(format!("{at}.sock"));
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let all_are_asked = Arc::clone(&all_are_asked);
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            all_are_asked.wait();
            if at < silent {
                // Until the other side has had enough.
                let _ = stream.read_to_end(&mut Vec::new());
                return;
            }
            let report = StatusReport { pid: at as u32, ..report() };
            let answer = serde_json::to_string(&Answer::Status(Box::new(report))).unwrap();
            let _ = writeln!(stream, "{answer}");
        });
        Daemon { socket, pid: std::process::id() }
    };
    (0..count).map(listen).collect()
}

#[test]
fn daemons_are_asked_at_the_same_time() {
    let directory = tempfile::tempdir().unwrap();
    let daemons = daemons_that_wait(directory.path(), 40, 10);
    let pids: Vec<u32> = statuses(&daemons).iter().map(|report| report.pid).collect();
    assert_eq!(pids, (10..40).collect::<Vec<u32>>(), "those that answer, in their order");
}
