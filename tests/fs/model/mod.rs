//! Two mounts of one host and processes of the host in one random history, beside a model that is as plain as can be.
//!
//! Files are made of units, each of which one write fills with a number of its own; so who reads sees whose writes he sees. Calls are
//! under way at once while the link is cut or answers are held back, and writes are on their way behind everybody's back. The model
//! (`worlds`) follows every order in which all of it may have happened, and each answer must fit one of them: what is closed by one is
//! seen by the next who opens, own writes are seen at once, what was written last stays, names are the same for all, and no error
//! comes that a local file system would not give. A read must have been all of the file at one moment (the host records its
//! contents). In the end everything is closed, and both mounts, the host and the model agree.
//!
//! Where copies hold for a while, what is looked at through them counts only when they have aged; opens, and reads through what was
//! opened, count always.

mod calls;
mod local;
mod scene;
mod tree;
mod worlds;

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use wormhole::chunk::CHUNK_BYTES;
use wormhole::client::memory::Stage;
use wormhole::proto::{RenameHow, Request};

use self::calls::{Call, FileCall};
use self::local::Local;
use self::scene::{Handle, NAMES, Path, Rules, Scene};
use self::tree::Name;

/// Most calls under way at once, and writes on their way: the model follows every order.
const CALLS_MAX: usize = 3;
const QUEUED_MAX: usize = 4;

/// Of the largest units four make a chunk, so that there are files of several chunks.
const UNIT_BYTES_MAX: usize = CHUNK_BYTES as usize / 4;

#[derive(Debug, Clone)]
enum Step {
    Call(usize, Call),
    File(usize, usize, FileCall),
    Close(usize, usize),
    Local(Local),
    Cut,
    Mend,
    Hold(Held),
    LetGo,
    Restart,
    Age,
}

/// What is held back.
#[derive(Debug, Clone, Copy)]
enum Held {
    Writes(Stage),
    /// Those that begin with a unit.
    WritesAt(usize),
    Changes(Stage),
    Reads(u64),
    Looks(Stage),
}

impl Held {
    fn holds(self, unit_bytes: usize, request: &Request, stage: Stage) -> bool {
        match (self, request) {
            (Self::WritesAt(unit), Request::Write(write)) => {
                stage == Stage::Arrived
                    && write.at.place().is_some_and(|(offset, ..)| offset == (unit * unit_bytes) as u64)
            }
            (Self::Reads(part), Request::Read(..)) => stage == Stage::Part(part),
            (Self::Writes(at), Request::Write(_))
            | (Self::Changes(at), Request::Change(_))
            | (
                Self::Looks(at),
                Request::Lookup { .. }
                | Request::GetAttributes { .. }
                | Request::ReadDirectory { .. }
                | Request::OpenFor { .. }
                | Request::ReadCurrent { .. },
            ) => stage == at,
            _ => false,
        }
    }
}

fn path() -> impl Strategy<Value = Path> {
    (proptest::option::weighted(0.3, 0usize..2), 0..NAMES.len() as Name)
        .prop_map(|(folder, name)| Path { folder, name })
}

/// One of the names that files mostly have.
fn file_path() -> impl Strategy<Value = Path> {
    prop_oneof![
        3 => Just(Path { folder: None, name: 0 }),
        1 => path(),
    ]
}

fn how() -> impl Strategy<Value = RenameHow> {
    prop_oneof![3 => Just(RenameHow::Replace), 1 => Just(RenameHow::NoReplace), 1 => Just(RenameHow::Exchange)]
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        5 => (file_path(), any::<bool>(), any::<bool>())
            .prop_map(|(path, exclusive, truncate)| Call::Create { path, exclusive, truncate }),
        6 => file_path().prop_map(|path| Call::Open { path }),
        2 => path().prop_map(|path| Call::Lookup { path }),
        1 => proptest::option::of(0usize..2).prop_map(|folder| Call::List { folder }),
        2 => (2..4 as Name).prop_map(|name| Call::MakeDir { path: Path { folder: None, name } }),
        2 => (path(), proptest::bool::weighted(0.3))
            .prop_map(|(path, directory)| Call::Remove { path, directory }),
        4 => (file_path(), path(), how()).prop_map(|(from, to, how)| Call::Rename { from, to, how }),
        1 => (file_path(), path()).prop_map(|(from, to)| Call::Link { from, to }),
    ]
}

fn file_call() -> impl Strategy<Value = FileCall> {
    prop_oneof![
        6 => (0usize..5, 1usize..4).prop_map(|(at, units)| FileCall::Write { at, units }),
        2 => (1usize..3).prop_map(|units| FileCall::Append { units }),
        2 => (0usize..6).prop_map(|units| FileCall::Truncate { units }),
        7 => (0usize..6, 1usize..8).prop_map(|(at, units)| FileCall::Read { at, units }),
        2 => Just(FileCall::Size),
        2 => Just(FileCall::Sync),
        1 => Just(FileCall::Flush),
    ]
}

fn local() -> impl Strategy<Value = Local> {
    prop_oneof![
        4 => Just(Local::Read),
        1 => file_path().prop_map(|path| Local::Create { path }),
        4 => (file_path(), 0usize..5, 1usize..4).prop_map(|(path, at, units)| Local::Write { path, at, units }),
        1 => (file_path(), 1usize..3).prop_map(|(path, units)| Local::Append { path, units }),
        2 => (file_path(), 0usize..6).prop_map(|(path, units)| Local::Truncate { path, units }),
        1 => path().prop_map(|path| Local::Remove { path }),
        2 => (path(), path()).prop_map(|(from, to)| Local::Rename { from, to }),
        1 => (2..4 as Name).prop_map(|name| Local::MakeDir { path: Path { folder: None, name } }),
        1 => (file_path(), path()).prop_map(|(from, to)| Local::Link { from, to }),
    ]
}

fn held() -> impl Strategy<Value = Held> {
    let stage = || prop_oneof![Just(Stage::Arrived), Just(Stage::Answered)];
    prop_oneof![
        3 => stage().prop_map(Held::Writes),
        3 => (0usize..4).prop_map(Held::WritesAt),
        2 => stage().prop_map(Held::Changes),
        1 => (0u64..3).prop_map(Held::Reads),
        2 => stage().prop_map(Held::Looks),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        16 => (0usize..2, call()).prop_map(|(mount, call)| Step::Call(mount, call)),
        24 => (0usize..2, 0usize..4, file_call()).prop_map(|(mount, file, call)| Step::File(mount, file, call)),
        3 => (0usize..2, 0usize..4).prop_map(|(mount, file)| Step::Close(mount, file)),
        12 => local().prop_map(Step::Local),
        1 => Just(Step::Cut),
        2 => Just(Step::Mend),
        4 => held().prop_map(Step::Hold),
        3 => Just(Step::LetGo),
        1 => Just(Step::Restart),
        2 => Just(Step::Age),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    let unit_bytes = prop_oneof![6 => Just(7usize), 3 => Just(4096), 1 => Just(UNIT_BYTES_MAX)];
    let granularity = prop_oneof![
        2 => Just(Duration::from_nanos(1)),
        1 => Just(Duration::from_millis(4)),
        1 => Just(Duration::from_secs(1)),
    ];
    (unit_bytes, proptest::bool::weighted(0.3), granularity)
        .prop_map(|(unit_bytes, keeps_copies, granularity)| Rules { unit_bytes, keeps_copies, granularity })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn two_mounts_and_the_host_are_one_file_system(
        rules in rules(),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut history = History::new(rules);
            for step in steps {
                history.step(step).await;
            }
            history.end().await;
        });
    }
}

/// What of a history is under way.
struct History {
    scene: Arc<Scene>,
    files: [Vec<Arc<Handle>>; 2],
    calls: JoinSet<Option<(usize, Handle)>>,
}

impl History {
    fn new(rules: Rules) -> Self {
        Self { scene: Scene::new(rules), files: [Vec::new(), Vec::new()], calls: JoinSet::new() }
    }

    async fn step(&mut self, step: Step) {
        let scene = Arc::clone(&self.scene);
        match step {
            Step::Call(mount, call) => {
                self.run(async move { Some((mount, scene.call(mount, call).await?)) }).await;
            }
            Step::File(mount, file, call) => {
                let Some(file) = self.file(mount, file) else { return };
                if matches!(call, FileCall::Write { .. } | FileCall::Append { .. }) {
                    self.bound_queue().await;
                }
                self.run(async move {
                    scene.file_call(mount, &file, call).await;
                    None
                })
                .await;
            }
            Step::Close(mount, file) => {
                let Some(file) = self.file(mount, file) else { return };
                self.files[mount].retain(|other| !Arc::ptr_eq(other, &file));
                match Arc::try_unwrap(file) {
                    Ok(file) => {
                        self.run(async move {
                            scene.close(mount, file).await;
                            None
                        })
                        .await;
                    }
                    // Something is under way on it.
                    Err(file) => self.files[mount].push(file),
                }
            }
            Step::Local(act) => scene.act(&act),
            Step::Cut => {
                scene.hinder();
                scene.host.set_connected(false);
            }
            Step::Mend => self.calm().await,
            Step::Hold(held) => {
                scene.hinder();
                let unit_bytes = scene.rules.unit_bytes;
                scene.host.hold(move |request, stage| held.holds(unit_bytes, request, stage));
            }
            Step::LetGo => {
                scene.host.release_one();
                self.collect().await;
            }
            Step::Restart => {
                scene.state().breaks_off();
                scene.host.restart();
            }
            Step::Age => scene.age().await,
        }
    }

    fn file(&self, mount: usize, number: usize) -> Option<Arc<Handle>> {
        let files = &self.files[mount];
        files.get(number % files.len().max(1)).cloned()
    }

    /// Makes a call, which ends now unless something stands in its way.
    async fn run(&mut self, call: impl Future<Output = Option<(usize, Handle)>> + Send + 'static) {
        if self.calls.len() >= CALLS_MAX {
            self.calm().await;
        }
        self.calls.spawn(call);
        if self.scene.state().is_hindered {
            self.collect().await;
        } else {
            self.finish().await;
        }
    }

    /// Lets what can go on go on, and takes what has ended.
    async fn collect(&mut self) {
        for _ in 0..30 {
            tokio::task::yield_now().await;
        }
        while let Some(ended) = self.calls.try_join_next() {
            self.take(ended.unwrap());
        }
    }

    async fn finish(&mut self) {
        while let Some(ended) = self.calls.join_next().await {
            self.take(ended.unwrap());
        }
    }

    fn take(&mut self, opened: Option<(usize, Handle)>) {
        if let Some((mount, file)) = opened {
            self.files[mount].push(Arc::new(file));
        }
    }

    /// Nothing stands in the way any more, and every call has ended.
    async fn calm(&mut self) {
        self.scene.host.set_connected(true);
        self.scene.host.release_all();
        self.scene.state().is_hindered = false;
        self.finish().await;
    }

    /// Has what was written arrive, if much of it is on its way.
    async fn bound_queue(&mut self) {
        if self.scene.state().queued.values().map(Vec::len).sum::<usize>() < QUEUED_MAX {
            return;
        }
        self.calm().await;
        for mount in 0..2 {
            for file in self.files[mount].clone() {
                self.scene.file_call(mount, &file, FileCall::Flush).await;
            }
        }
    }

    /// Everything is closed, and all agree.
    async fn end(mut self) {
        self.calm().await;
        for mount in 0..2 {
            for file in std::mem::take(&mut self.files[mount]) {
                let file = Arc::try_unwrap(file).expect("every call has ended");
                self.scene.close(mount, file).await;
            }
        }
        let scene = &self.scene;
        assert!(scene.state().worlds.is_settled(), "something is under way");
        scene.age().await;
        for mount in 0..2 {
            for folder in [None, Some(0), Some(1)] {
                scene.call(mount, Call::List { folder }).await;
                for name in 0..NAMES.len() as Name {
                    let path = Path { folder, name };
                    if scene.kind_at(path).is_none() {
                        scene.call(mount, Call::Lookup { path }).await;
                        continue;
                    }
                    self.compare(mount, path).await;
                }
            }
        }
    }

    /// Both the mount and the host show what the model says.
    async fn compare(&self, mount: usize, path: Path) {
        let scene = &self.scene;
        let opened = scene.call(mount, Call::Open { path }).await;
        if scene.read_locally(path).is_none() {
            return;
        }
        let content = scene.host.content(path.text());
        let file = opened.unwrap_or_else(|| panic!("{} cannot be opened", path.text()));
        let mut seen = Vec::new();
        loop {
            let part = scene.mounts[mount].read(file.number, seen.len() as u64, 1 << 20).await.unwrap();
            if part.is_empty() {
                break;
            }
            seen.extend(part);
        }
        assert!(
            seen == content,
            "{} is {:?} by one and {:?} by the host",
            path.text(),
            scene.tags(&seen),
            scene.tags(&content)
        );
        scene.close(mount, file).await;
    }
}
