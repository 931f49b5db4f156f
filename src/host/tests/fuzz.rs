//! Fuzzers of a daemon by a real connection: whatever a stranger says for a hello, and a key for a request, the daemon goes on, serves others,
//! and touches nothing outside of the export.
//!
//! Each runs a moment. `WORMHOLE_FUZZ_SECONDS=600 cargo test --lib host::tests::fuzz -- --nocapture` runs each for ten minutes.

use std::fs;
use std::io::Write as _;
use std::panic::RefUnwindSafe;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::*;
use crate::chunk::testing::fuzz::{Numbers, fuzz, mutate};
use crate::chunk::{ChunkIndex, ChunkRange};
use crate::proto::{
    Caller, Change, ChangeRequest, FileKind, Growth, LockAction, LockCall, LockKind, LockOwner, LockRange,
    LockRequest, LockTest, LockWait, ManifestRequest, OpenAccess, OpenId, Operation, OperationId, RenameHow,
    SeekTarget, SetAttributes, WholeFile, WriteAt, WriteRequest, XattrHow,
};

/// A hang becomes a failure.
const DEADLINE: Duration = Duration::from_secs(120);

const OUTSIDE: &str = "nobody may reach this";

/// A daemon, somebody who sends anything, and an honest client.
struct Stage {
    runtime: Runtime,
    world: World,
    hostile: Guest,
    honest: Guest,
    file: Attributes,
    folder: NodeId,
}

/// A runtime and sockets are as good after a panic as before.
impl RefUnwindSafe for Stage {}

impl Stage {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let (world, hostile, honest, file, folder) = runtime.block_on(async {
            let world = World::new(|export| {
                fs::create_dir(export.join("folder")).unwrap();
                fs::write(export.join("folder/file"), pattern(700_000)).unwrap();
                fs::write(export.join("file"), pattern(3000)).unwrap();
                std::os::unix::fs::symlink("../secret", export.join("link")).unwrap();
            });
            fs::write(world.folder.path().join("secret"), OUTSIDE).unwrap();
            let (hostile, honest) = (world.client().await, world.client().await);
            let file = hostile.walk("folder/file").await.unwrap();
            let folder = hostile.walk("folder").await.unwrap().node;
            (world, hostile, honest, file, folder)
        });
        Self { runtime, world, hostile, honest, file, folder }
    }

    /// The daemon serves an honest client, and what lies beside the export is as it was.
    async fn assert_well(&self) {
        let pong = timeout(DEADLINE, self.honest.ask(Request::Ping)).await.expect("the daemon hangs");
        assert_eq!(pong, Ok(Reply::Done));
        let root = timeout(DEADLINE, self.honest.list(self.honest.root())).await.expect("listings hang");
        assert!(root.is_ok());
        let beside = self.world.folder.path();
        assert_eq!(fs::read_to_string(beside.join("secret")).unwrap(), OUTSIDE);
        let mut names: Vec<_> =
            fs::read_dir(beside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["export", "secret", "state"]);
    }
}

fn operation(guest: &Guest, numbers: &mut Numbers) -> Operation {
    let id = OperationId(numbers.next() >> 8);
    Operation { id, answered_below: OperationId(0), sent_first: guest.welcome.session }
}

fn name(numbers: &mut Numbers) -> Vec<u8> {
    let names: [&[u8]; 9] = [b"file", b"folder", b"link", b"new", b"..", b".", b"a/b", b"a\0b", b""];
    names[numbers.below(names.len())].to_vec()
}

/// A request that only asks.
fn question(stage: &Stage, numbers: &mut Numbers) -> Request {
    let (file, folder, open) = (&stage.file, stage.folder, OpenId(numbers.below(5) as u64));
    let (node, version) = (file.node, file.version());
    let range = ByteRange::new(numbers.below(800_000) as u64, numbers.below(800_000) as u64);
    match numbers.below(22) {
        0 => Request::Lookup { parent: folder, name: name(numbers) },
        1 => Request::GetAttributes { node },
        2 => Request::ReadDirectory { node: folder },
        3 => Request::ReadLink { node },
        4 => Request::StatFs { node },
        5 => Request::GetXattr { node, name: b"user.a".to_vec() },
        6 => Request::ListXattr { node },
        7 => Request::Access { node, mask: 4 },
        8 => Request::Open { node, open },
        9 => Request::Close { node, open },
        10 => Request::Seek { node, offset: range.offset, target: SeekTarget::Hole },
        11 => Request::Read(ReadRequest::chunks_of(file, range), Lane::Ahead),
        12 => Request::Sum { node },
        13 => Request::ReadCurrent { node, range },
        14 => Request::LookupMany { parent: folder, names: vec![name(numbers), name(numbers)] },
        15 => Request::Blocks { node, version, range },
        16 => {
            let chunks = ChunkRange::new(ChunkIndex(numbers.below(4) as u64), numbers.below(4) as u64);
            Request::Manifest(ManifestRequest { node, version, chunks })
        }
        17 => {
            Request::OpenFor { node, open, access: OpenAccess { reads: true, writes: true, appends: false } }
        }
        18 => Request::Sync { node, data_only: true, after: Vec::new() },
        19 => {
            let (owner, range) = (LockOwner(numbers.below(4) as u64), LockRange::WHOLE);
            Request::TestLock(LockTest { node, owner, range, kind: LockKind::Shared })
        }
        20 => Request::HaveChunks { node, offset: 0, chunks: vec![ChunkHash::of(b"x"); 3] },
        21 => Request::SyncFileSystem { node },
        _ => Request::Events,
    }
}

/// A request that changes something, or takes a lock.
fn change(stage: &Stage, numbers: &mut Numbers) -> Request {
    let operation = operation(&stage.hostile, numbers);
    let (node, parent, caller) = (stage.file.node, stage.folder, Caller::default());
    let permissions = 0o644;
    let change = match numbers.below(11) {
        0 => {
            let (open, access) =
                (OpenId(numbers.next()), OpenAccess { reads: true, writes: true, appends: false });
            let (exclusive, truncate) = (numbers.below(2) == 0, false);
            let name = name(numbers);
            Change::Create { parent, name, permissions, caller, open, access, exclusive, truncate }
        }
        1 => Change::MakeDirectory { parent, name: name(numbers), permissions, caller },
        2 => {
            let (kind, device_number) = (FileKind::Fifo, 0);
            Change::MakeNode { parent, name: name(numbers), kind, permissions, device_number, caller }
        }
        3 => Change::MakeSymlink { parent, name: name(numbers), target: b"../../secret".to_vec(), caller },
        4 => Change::Link { node, seen_as: None, parent, name: name(numbers) },
        5 => Change::Rename {
            from_parent: parent,
            from_name: name(numbers),
            to_parent: stage.hostile.root(),
            to_name: name(numbers),
            how: RenameHow::NoReplace,
            expected: None,
        },
        6 => {
            let size = Some(numbers.below(900_000) as u64);
            Change::SetAttributes { node, set: SetAttributes { size, ..SetAttributes::default() } }
        }
        7 => Change::SetXattr { node, name: b"user.a".to_vec(), value: vec![1; 9], how: XattrHow::Any },
        8 => Change::CopyRange { from: node, range: ByteRange::new(0, 5000), to: node, offset: 9000 },
        9 => {
            let growth = Growth { from: numbers.below(900_000) as u64 };
            Change::WriteKnown { node, offset: 0, chunks: vec![ChunkHash::of(b"x"); 2], growth }
        }
        _ => {
            let range = LockRange { start: numbers.below(9) as u64, end: 9 + numbers.below(9) as u64 };
            let (kind, whole) = (LockKind::Exclusive, WholeFile::Both);
            let wait = (numbers.below(2) == 0).then_some(LockWait { ticket: numbers.next(), for_ms: 50 });
            let action = match numbers.below(3) {
                0 => LockAction::Release { range },
                1 => LockAction::Leave { ticket: 7 },
                _ => LockAction::Take { range, kind, whole, process: 1, wait },
            };
            let (run, owner) = (stage.hostile.welcome.session, LockOwner(numbers.below(4) as u64));
            return Request::Lock(LockRequest { operation, call: LockCall { run, node, owner, action } });
        }
    };
    Request::Change(ChangeRequest { operation, change })
}

/// A write and its content.
fn write(stage: &Stage, numbers: &mut Numbers) -> Vec<u8> {
    let bytes = vec![numbers.next() as u8; numbers.below(50_000)];
    let at = match numbers.below(3) {
        0 => WriteAt::End { believed: numbers.below(9000) as u64 },
        1 => {
            let growth = Growth { from: numbers.below(900_000) as u64 };
            WriteAt::Behind { offset: numbers.below(900_000) as u64, growth, run: None }
        }
        _ => WriteAt::Offset(numbers.below(900_000) as u64),
    };
    let operation = operation(&stage.hostile, numbers);
    let (node, len, hash) = (stage.file.node, bytes.len() as u32, ChunkHash::of(&bytes));
    let request = Request::Write(WriteRequest { operation, node, at, len, hash });
    [encode_frame(&request), bytes].concat()
}

/// What is sent on one stream: nearly right, and mostly of the length that it says.
fn sent(stage: &Stage, numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = match numbers.below(5) {
        0 => write(stage, numbers),
        1 | 2 => encode_frame(&change(stage, numbers)),
        _ => encode_frame(&question(stage, numbers)),
    };
    if numbers.below(4) > 0 {
        spoil(&mut bytes, numbers);
    }
    bytes
}

/// Changes the body of the first frame, or anything.
fn spoil(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    if numbers.below(4) == 0 {
        return mutate(bytes, numbers);
    }
    let header = bytes.first_chunk().copied().unwrap_or_default();
    let end = FRAME_HEADER_BYTES + frame_len(header).unwrap_or_default();
    let rest = bytes.split_off(end.min(bytes.len()));
    let mut body = bytes.split_off(FRAME_HEADER_BYTES);
    mutate(&mut body, numbers);
    *bytes = [&(body.len() as u32).to_le_bytes()[..], &body, &rest].concat();
}

#[test]
fn requests_of_a_key() {
    let stage = Stage::new();
    fuzz("requests of a key", |numbers| {
        stage.runtime.block_on(async {
            let mut answers = Vec::new();
            for _ in 0..20 {
                let bytes = sent(&stage, numbers);
                let stream = stage.hostile.visitor.connection.open_stream(Lane::Metadata);
                let (mut send, receive) = timeout(DEADLINE, stream).await.expect("no stream").unwrap();
                // The host may have enough before all is sent.
                let _ = timeout(DEADLINE, send.write_all(&bytes)).await.expect("nothing is taken");
                if numbers.below(4) > 0 {
                    let _ = send.finish();
                }
                answers.push((send, receive));
            }
            stage.assert_well().await;
        });
    });
}

#[test]
fn hellos_of_a_stranger() {
    let stage = Stage::new();
    fuzz("hellos of a stranger", |numbers| {
        stage.runtime.block_on(async {
            let visitor = Visitor::new(&stage.world).await;
            let mut hello = hello();
            hello.sub_path = name(numbers);
            let mut bytes = encode_frame(&Request::Hello(hello));
            spoil(&mut bytes, numbers);
            let mut answered = visitor.send(&bytes).await;
            let answer: Option<Result<Reply, WireError>> =
                timeout(DEADLINE, answered.frame()).await.expect("no answer");
            assert!(!matches!(answer, Some(Ok(_))), "a stranger was let in: {answer:?}");
            stage.assert_well().await;
        });
    });
}

/// Datagrams and bytes that begin as a handshake does, by those who prove no key.
#[test]
fn what_is_no_handshake() {
    let stage = Stage::new();
    fuzz("what is no handshake", |numbers| {
        let address = stage.world.host.listening();
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for _ in 0..20 {
            // A long header of QUIC version 1 with connection ids of 8 bytes.
            let mut packet = [&[0xc3, 0, 0, 0, 1, 8][..], &[7; 8], &[8], &[9; 8]].concat();
            packet.extend((0..numbers.below(1300)).map(|_| numbers.next() as u8));
            mutate(&mut packet, numbers);
            let _ = socket.send_to(&packet, address);
        }
        for _ in 0..3 {
            let Ok(mut stream) = std::net::TcpStream::connect(address) else { continue };
            let mut bytes = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
            bytes.extend((0..numbers.below(700)).map(|_| numbers.next() as u8));
            mutate(&mut bytes, numbers);
            let _ = stream.write_all(&bytes);
        }
        stage.runtime.block_on(stage.assert_well());
    });
}
