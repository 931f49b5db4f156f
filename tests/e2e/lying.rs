//! A host that lies in every answer: programs get plain errors or what was said, nothing hangs, and the mount goes on when the host is honest
//! again.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use wormhole::chunk::{ChunkHash, ChunkIndex};
use wormhole::proto::{
    Attributes, Changed, ContentHeader, DirectoryBatch, DirectoryChange, DirectoryEntry, Errno, ErrorCode,
    FileKind, FsStatistics, HostEvent, LeaseEpoch, NodeId, Reply, Request, Timestamp, Trust, WireError,
    encode_frame,
};

use super::liar::{Decide, Liar, Lie};
use crate::world::{Host, Mount, World, mount_at, noise, run, status_of, wait_until, words};

/// A mount of a lying host; the daemon's words go into a file.
struct Stage {
    mount: Mount,
    daemon: Child,
    liar: Liar,
    world: World,
    _host: Host,
    rounds: usize,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// What programs do in a folder `D` that nobody has looked at yet, all at once.
const OPERATIONS: [&str; 22] = [
    "ls -la $D",
    "stat $D/file",
    "cat $D/file",
    "head -c 100 $D/small",
    "tail -c 100 $D/file",
    "readlink $D/link",
    "cat $D/link",
    "find $D",
    "df $D",
    "getfattr -d $D/small",
    "touch $D/new",
    "mkdir $D/newdir",
    "mv $D/moves $D/moved",
    "rm $D/goes",
    "ln -s x $D/newlink",
    "truncate -s 5 $D/cut",
    "echo x > $D/written",
    "echo x >> $D/log",
    "dd if=/dev/zero of=$D/synced bs=64k count=4 conv=fsync",
    "flock $D/small true",
    "cp $D/file $D/copy",
    "setfattr -n user.a -v b $D/log",
];

impl Stage {
    fn new() -> Self {
        let world = World::new();
        fs::write(world.source().join("kept"), noise(300_000, 1)).unwrap();
        let host = world.host();
        let liar = Liar::new(&host);
        let mount = Mount { point: world.path("mnt") };
        fs::create_dir(&mount.point).unwrap();
        let said = fs::File::create(world.path("said")).unwrap();
        let mut command = world.mount_command(&liar.ticket, &mount.point);
        command.args(["-f", "-o", "timeo=50,retrans=3"]).stderr(said);
        let daemon = command.spawn().unwrap();
        let stage = Self { mount, daemon, liar, world, _host: host, rounds: 0 };
        wait_until("it is mounted", || mount_at(&stage.mount.point).is_some());
        stage
    }

    /// A folder that the client has not seen, as the host has it.
    fn folder(&mut self) -> String {
        self.rounds += 1;
        let name = format!("round-{}", self.rounds);
        let folder = self.world.path("being-made");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), noise(700_000, self.rounds as u64)).unwrap();
        for name in ["small", "moves", "goes", "cut", "log"] {
            fs::write(folder.join(name), noise(500, 7)).unwrap();
        }
        symlink("small", folder.join("link")).unwrap();
        fs::rename(folder, self.world.source().join(&name)).unwrap();
        name
    }

    /// All programs come to an end in a folder whose name is known, and nothing else, when the lies begin.
    #[track_caller]
    fn operate(&mut self, lie: &str, begin: impl FnOnce(&Liar)) {
        let folder = self.folder();
        let folder = self.mount.path(folder);
        let look = ["-k", "1", "30", "stat", folder.to_str().unwrap()];
        wait_until("the folder is there", || run("timeout", &look).status.success());
        begin(&self.liar);
        let start = |operation: &&'static str| {
            let mut command = Command::new("timeout");
            command.args(["-k", "1", "90", "sh", "-c", operation]).env("D", &folder);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            (*operation, command.spawn().unwrap())
        };
        for (operation, mut child) in OPERATIONS.iter().map(start).collect::<Vec<_>>() {
            let status = child.wait().unwrap();
            assert!(!matches!(status.code(), None | Some(124 | 137)), "{lie}: {operation} hangs: {status}");
        }
    }

    /// The host tells the truth again, and the same daemon shows it.
    #[track_caller]
    fn assert_well(&mut self, lie: &str) {
        self.liar.lie(None);
        self.liar.spoil(None);
        let folder = self.folder();
        let read = |name: &str| {
            let path = self.mount.path(name);
            run("timeout", &["-k", "1", "30", "cat", path.to_str().unwrap()]).stdout
        };
        wait_until(&format!("what was there is there after {lie}"), || read("kept") == noise(300_000, 1));
        let file = noise(700_000, self.rounds as u64);
        wait_until(&format!("what is new is there after {lie}"), || read(&format!("{folder}/file")) == file);
        assert!(self.daemon.try_wait().unwrap().is_none(), "{lie}: the daemon has ended");
        assert_eq!(status_of(&self.mount.point)["pid"].as_u64(), Some(self.daemon.id().into()), "{lie}");
        let said = fs::read_to_string(self.world.path("said")).unwrap();
        assert!(!said.contains("panicked"), "{lie}: {said}");
    }
}

fn says(reply: Reply) -> Lie {
    says_bytes(&[frame(reply)])
}

fn says_bytes(parts: &[Vec<u8>]) -> Lie {
    Lie { bytes: parts.concat(), goes_on: false }
}

fn for_ever(lie: Lie) -> Lie {
    Lie { goes_on: true, ..lie }
}

fn frame(reply: Reply) -> Vec<u8> {
    encode_frame(&Ok::<_, WireError>(reply))
}

/// Attributes that no file has; `number` chooses which.
fn absurd(number: u64) -> Attributes {
    let kinds = [FileKind::Regular, FileKind::Directory, FileKind::Symlink, FileKind::BlockDevice];
    let sizes = [u64::MAX, i64::MAX as u64, 1 << 60, 0, 1];
    let times = [i64::MIN, i64::MAX, 0, -1];
    let pick = |of: &[i64]| Timestamp(of[number as usize % of.len()]);
    Attributes {
        node: NodeId { device: number % 3, inode: number % 5, birth_ns: 0 },
        kind: kinds[number as usize % kinds.len()],
        permissions: u16::MAX,
        links: (number % 2) as u32,
        uid: u32::MAX,
        gid: u32::MAX,
        device_number: u64::MAX,
        size: sizes[number as usize % sizes.len()],
        blocks: u64::MAX,
        atime: pick(&times),
        mtime: pick(&times),
        ctime: pick(&times[1..]),
        btime: Some(Timestamp(i64::MIN)),
        has_xattrs: true,
        trust: Trust::Full,
        observed: pick(&times[2..]),
    }
}

/// A number that a request gives: the same for the same request.
fn number_of(request: &Request) -> u64 {
    let hash = blake3::hash(&encode_frame(request));
    u64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap())
}

fn absurd_attributes(request: &Request) -> Option<Lie> {
    let found = absurd(number_of(request));
    let lie = match request {
        Request::Lookup { .. }
        | Request::GetAttributes { .. }
        | Request::Open { .. }
        | Request::OpenFor { .. } => says(Reply::Attributes(found)),
        Request::LookupMany { names, .. } => says(Reply::Entries(vec![Some(found); names.len()])),
        Request::Change(_) => says(Reply::Changed(Changed { node: Some(found), others: vec![found; 1000] })),
        Request::ReadDirectory { .. } => {
            let entry = |name: &str| DirectoryEntry { name: name.into(), attributes: found };
            listing(["file", "small", "link", "log", "a", "b"].map(entry).to_vec())
        }
        _ => return None,
    };
    Some(lie)
}

fn another_kind(request: &Request) -> Option<Lie> {
    let even = number_of(request).is_multiple_of(2);
    (!is_hello(request)).then(|| says(if even { Reply::Offset(u64::MAX) } else { Reply::Done }))
}

fn is_hello(request: &Request) -> bool {
    matches!(request, Request::Hello(_))
}

fn long_answers(request: &Request) -> Option<Lie> {
    let lie = match request {
        Request::ReadCurrent { .. } => {
            let reply = Reply::Current { hash: ChunkHash::of(b"x"), len: u32::MAX };
            for_ever(says_bytes(&[frame(reply), vec![0; 1 << 16]]))
        }
        Request::LookupMany { .. } => says(Reply::Entries(vec![None; 5000])),
        Request::HaveChunks { .. } => says(Reply::Have(vec![true; 9000])),
        Request::Manifest(_) => {
            says(Reply::Manifest { hashes: vec![ChunkHash::of(b"x"); 4000], computed: 0 })
        }
        Request::Blocks { .. } => {
            says(Reply::Blocks { offset: u64::MAX, blocks: vec![(u32::MAX, ChunkHash::of(b"x")); 5000] })
        }
        Request::Seek { .. } => says(Reply::Offset(u64::MAX)),
        Request::StatFs { .. } => says(Reply::FsStatistics(FsStatistics {
            block_bytes: 0,
            blocks: u64::MAX,
            blocks_free: u64::MAX,
            blocks_available: u64::MAX,
            inodes: u64::MAX,
            inodes_free: u64::MAX,
            name_bytes_max: 0,
        })),
        Request::ReadLink { .. } | Request::GetXattr { .. } | Request::ListXattr { .. } => {
            says(Reply::Bytes(vec![number_of(request) as u8 & 1; 200_000]))
        }
        _ => return None,
    };
    Some(lie)
}

/// What is no answer at all.
fn no_frames(request: &Request) -> Option<Lie> {
    let lie = match number_of(request) % 3 {
        0 => for_ever(says_bytes(&[vec![0xff; 1 << 16]])),
        1 => says_bytes(&[]),
        _ => says_bytes(&[vec![9, 0, 0, 0], vec![0xff; 9]]),
    };
    (!is_hello(request)).then_some(lie)
}

fn listing(entries: Vec<DirectoryEntry>) -> Lie {
    let reply = Reply::Directory { attributes: None, lease: None };
    says_bytes(&[frame(reply), encode_frame(&DirectoryBatch { entries, last: true })])
}

fn names_that_lead_elsewhere(request: &Request) -> Option<Lie> {
    let Request::ReadDirectory { node } = request else { return None };
    let long = vec![b'x'; 300];
    let names: [&[u8]; 8] = [b"..", b".", b"", b"a/b", b"/etc/passwd", b"a\0b", &long, b"../../etc/passwd"];
    let name = names[number_of(request) as usize % names.len()].to_vec();
    let attributes = Attributes { node: *node, kind: FileKind::Directory, ..absurd(3) };
    Some(listing(vec![DirectoryEntry { name, attributes }]))
}

/// Names twice, and a folder in itself.
fn names_that_repeat(request: &Request) -> Option<Lie> {
    let Request::ReadDirectory { node } = request else { return None };
    let attributes = Attributes { node: *node, kind: FileKind::Directory, links: 2, ..absurd(3) };
    let entry = |name: &str| DirectoryEntry { name: name.into(), attributes };
    Some(listing(vec![entry("same"), entry("same"), entry("itself")]))
}

fn endless_listings(request: &Request) -> Option<Lie> {
    let Request::ReadDirectory { .. } = request else { return None };
    let reply = frame(Reply::Directory { attributes: None, lease: None });
    let batch = encode_frame(&DirectoryBatch { entries: Vec::new(), last: false });
    Some(for_ever(says_bytes(&[reply, batch.repeat(1000)])))
}

/// Content that is not what was asked for, in nine ways.
fn content(way: usize) -> Decide {
    Arc::new(move |request: &Request| {
        let Request::Read(asked, _) = request else { return None };
        let bytes = vec![7; 1000];
        let (index, hash, len) = (ChunkIndex(0), ChunkHash::of(b"other"), 1000);
        let end = ContentHeader::End { observed: Timestamp(i64::MAX) };
        let zeros = zstd::bulk::compress(&vec![0; 50 << 20], 3).unwrap();
        let packed_len = zeros.len() as u32;
        let offset = asked.range.offset.wrapping_sub(5);
        let (first, bytes) = match way {
            0 => (end, Vec::new()),
            1 => (ContentHeader::Same { index: ChunkIndex(u64::MAX) }, Vec::new()),
            2 => (ContentHeader::Chunk { index, hash, len }, bytes),
            3 => (ContentHeader::Chunk { index, hash, len: u32::MAX }, bytes),
            4 => (
                ContentHeader::Chunk { index: ChunkIndex(u64::MAX), hash: ChunkHash::of(&bytes), len },
                bytes,
            ),
            5 => (ContentHeader::Piece { offset, hash: ChunkHash::of(&bytes), len }, bytes),
            6 => (ContentHeader::Packed { index, hash, len: 1 << 18, packed_len }, zeros),
            7 => (ContentHeader::PackedPiece { offset, hash, len: 100, packed_len: 1000 }, bytes),
            _ => (ContentHeader::Failed(ErrorCode::System(Errno(libc::ENOSYS))), Vec::new()),
        };
        Some(says_bytes(&[frame(Reply::Content), encode_frame(&first), bytes, encode_frame(&end)]))
    })
}

fn events_of_strange_nodes(request: &Request) -> Option<Lie> {
    let Request::Events = request else { return None };
    let events: Vec<u8> = (0..200)
        .flat_map(|number| {
            let name = [&b"kept"[..], b"file", b"..", b"a/b", b""]
                [if number < 150 { number % 2 } else { number % 5 }];
            let directory = absurd(number as u64).node;
            let entries = vec![(name.to_vec(), Some(absurd(number as u64))), (b"x".to_vec(), None)];
            let attributes = Some(absurd(number as u64 + 1));
            let changed = HostEvent::Changed(DirectoryChange { directory, attributes, entries });
            let revoked = HostEvent::Revoked { directory };
            [encode_frame(&HostEvent::Alive), encode_frame(&changed), encode_frame(&revoked)].concat()
        })
        .collect();
    Some(for_ever(says_bytes(&[frame(Reply::Events { epoch: LeaseEpoch(1) }), events])))
}

type Say = fn(&Request) -> Option<Lie>;

#[test]
fn whatever_a_host_answers_programs_end_and_the_mount_goes_on() {
    let mut stage = Stage::new();
    let lies: [(&str, Say); 9] = [
        ("answers of another kind", another_kind),
        ("absurd attributes", absurd_attributes),
        ("long answers", long_answers),
        ("what is no answer", no_frames),
        ("names that lead elsewhere", names_that_lead_elsewhere),
        ("names that repeat", names_that_repeat),
        ("listings without an end", endless_listings),
        ("refusals", |request| {
            let error = WireError::new(ErrorCode::System(Errno(number_of(request) as i32)), "\x1b[2J\nno");
            (!is_hello(request)).then(|| Lie { bytes: encode_frame(&Err::<Reply, _>(error)), goes_on: false })
        }),
        ("events of strange nodes", events_of_strange_nodes),
    ];
    let contents = (0..9).map(|way| (format!("content {way}"), content(way)));
    let all = lies.into_iter().map(|(name, say)| (name.to_owned(), Arc::new(say) as Decide));
    for (name, decide) in all.chain(contents) {
        let told = stage.liar.told();
        stage.operate(&name, |liar| {
            liar.lie(Some(decide));
            if name.starts_with("events") {
                liar.hang_up();
                wait_until("events are asked for again", || liar.told() > told);
            }
        });
        assert!(stage.liar.told() > told, "{name}: nobody asked");
        stage.assert_well(&name);
    }
    // No path of a lie led anywhere.
    assert!(!stage.mount.path("etc").exists());
}

/// Answers with changed bytes, for rounds that are `WORMHOLE_LIES` if that is set.
#[test]
fn spoilt_answers_are_plain_errors_and_the_mount_goes_on() {
    let mut stage = Stage::new();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (rounds, first) = (number("WORMHOLE_LIES").unwrap_or(3), number("WORMHOLE_LIES_SEED").unwrap_or(1));
    for round in first..first + rounds {
        let name = format!("spoilt answers, WORMHOLE_LIES_SEED={round}");
        stage.operate(&name, |liar| liar.spoil(Some(round << 20)));
        stage.assert_well(&name);
    }
    let output = run("timeout", &["-k", "1", "60", "ls", stage.mount.point.to_str().unwrap()]);
    assert!(output.status.success(), "{}", words(&output));
}
