//! Warm-up: a file or a whole tree is brought into the disk cache, and pinned there if wanted, while people go on working.
//!
//! The tree is walked here and not by a program on the mount: nothing passes through the kernel, no inode is made up, no page
//! is cached. A bounded number of runs is under way, in the order of the walk, each in the lane of lowest priority.
//! What the cache has already costs a look at its index, so a walk that was cut short goes on where it was.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::task::{JoinHandle, JoinSet};

use super::{FileSystem, lock};
use crate::cache::{PinBuilder, PinError};
use crate::chunk::{CHUNK_BYTES, ChunkIndex, ChunkRange};
use crate::client::{CallError, ListPart};
use crate::fetch::{FetchError, FileContent, WARM_RUN_CHUNKS, Warmed};
use crate::proto::{Attributes, DirectoryEntry, ErrorCode, FileKind, NodeId, Trust, words};

/// Most directories that wait to be walked, and most entries of one of them: some 100 MB.
const DIRECTORIES_MAX: usize = 1 << 20;
const ENTRIES_MAX: usize = 1 << 22;

/// Most symbolic links that are asked for at once.
const LINKS_MAX: usize = 32;

/// Most problems that are told one by one.
const PROBLEMS_MAX: usize = 10;

/// Longest of them, in characters.
const PROBLEM_CHARS_MAX: usize = 1000;

/// How far a warm-up is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmProgress {
    /// Regular files that are in the cache now.
    pub files: u64,
    /// What of them is in the cache now, in bytes.
    pub bytes: u64,
    /// What of that the host had to send, in bytes.
    pub host_bytes: u64,
    /// Files that cannot be kept: they changed within two seconds before.
    pub skipped: u64,
    /// Files whose times prove nothing: the host confirms them before they are shown.
    pub unproven: u64,
    /// Files and directories that could not be read.
    pub failed: u64,
    /// Why, for the first of them.
    pub problems: Vec<String>,
    /// `true` once it has ended.
    pub is_done: bool,
    /// Why it ended early.
    pub error: Option<String>,
}

/// A warm-up under way. Dropping it ends it.
#[derive(Debug)]
pub struct WarmJob {
    progress: Arc<Mutex<WarmProgress>>,
    task: JoinHandle<()>,
}

impl WarmJob {
    /// How far it is.
    pub fn progress(&self) -> WarmProgress {
        lock(&self.progress).clone()
    }
}

impl Drop for WarmJob {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FileSystem {
    /// Begins to bring what lies at `path` (from the mount's root, without a leading `/`) into the disk cache, and to pin
    /// it there under `pin`.
    pub fn warm(self: &Arc<Self>, path: Vec<u8>, pin: Option<String>) -> WarmJob {
        let progress = Arc::new(Mutex::new(WarmProgress::default()));
        let fs = Arc::clone(self);
        let walk = Walk {
            fs,
            progress: Arc::clone(&progress),
            runs: VecDeque::new(),
            runs_max: usize::MAX,
            links: JoinSet::new(),
            pinning: None,
        };
        let task = self.runtime().spawn(async move {
            let progress = Arc::clone(&walk.progress);
            let error = walk.run(path, pin).await.err();
            let mut progress = lock(&progress);
            progress.error = error;
            progress.is_done = true;
        });
        WarmJob { progress, task }
    }

    /// What people call a path on this mount: `HOST:/EXPORT/PATH`.
    pub fn source_of(&self, path: &[u8]) -> String {
        let source = self.config.source.trim_end_matches('/');
        let path = String::from_utf8_lossy(path);
        if path.is_empty() { self.config.source.clone() } else { format!("{source}/{path}") }
    }

    /// Looks a path up from the root, which makes the host know its node, also after it restarted.
    async fn look_up_path(&self, path: &[u8]) -> Result<Attributes, CallError> {
        self.look_up_with_parents(path).await.map(|(_, found)| found)
    }

    /// The same, with the directories on the way from the root.
    async fn look_up_with_parents(&self, path: &[u8]) -> Result<(Vec<NodeId>, Attributes), CallError> {
        let mut found = self.client.root();
        let mut parents = Vec::new();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            parents.push(found.node);
            found = self.client.lookup(found.node, name).await?;
        }
        // Nothing that is cached: a version that is out of date costs the whole file.
        Ok((parents, self.client.attributes(found.node).await?))
    }
}

/// One file on its way.
#[derive(Debug)]
struct WarmFile {
    path: Vec<u8>,
    has_failed: bool,
}

/// A run of a file on its way.
struct Run {
    file: Arc<Mutex<WarmFile>>,
    content: FileContent,
    chunks: ChunkRange,
    is_last: bool,
    task: Task,
}

/// Ended when dropped.
struct Task(JoinHandle<Result<Warmed, FetchError>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What keeps a file from being warmed, and perhaps all others.
enum Trouble {
    File(FetchError),
    All(String),
}

impl From<FetchError> for Trouble {
    fn from(error: FetchError) -> Self {
        Self::File(error)
    }
}

struct Walk {
    fs: Arc<FileSystem>,
    progress: Arc<Mutex<WarmProgress>>,
    runs: VecDeque<Run>,
    runs_max: usize,
    /// Targets of symbolic links on their way into the notes.
    links: JoinSet<()>,
    pinning: Option<PinBuilder>,
}

impl Drop for Walk {
    fn drop(&mut self) {
        // To take back what was begun means work on the disk.
        if let Some(pinning) = self.pinning.take() {
            self.fs.runtime().spawn_blocking(move || drop(pinning));
        }
    }
}

impl Walk {
    async fn run(mut self, path: Vec<u8>, pin: Option<String>) -> Result<(), String> {
        if !self.fs.fetcher.cache().is_writable() {
            return Err(
                "the cache keeps nothing new: its directory cannot be written, or cache=none".to_owned()
            );
        }
        if let Some(problem) = self.fs.fetcher.cache().problem() {
            return Err(format!("the disk cache: {problem}"));
        }
        let dropped_before = self.fs.fetcher.cache().stats().dropped;
        let found = self.fs.look_up_with_parents(&path).await;
        let (parents, top) = found.map_err(|error| error.to_string())?;
        if let Some(name) = pin {
            self.begin_pin(name).await?;
        }
        for parent in parents {
            self.list_for_later(parent).await;
        }
        let mut directories = Vec::new();
        match top.kind {
            FileKind::Regular => self.file(path, &top).await?,
            FileKind::Directory => directories.push((path, top.node)),
            _ => return Err("neither a regular file nor a directory".to_owned()),
        }
        while let Some((directory, node)) = directories.pop() {
            let entries = match self.list_known(&directory, node).await {
                Ok(entries) => entries,
                Err(error) => {
                    self.problem(&directory, error.into())?;
                    continue;
                }
            };
            let mut below = Vec::new();
            for entry in entries {
                let path = join(&directory, &entry.name);
                match entry.attributes.kind {
                    FileKind::Regular => self.file(path, &entry.attributes).await?,
                    FileKind::Directory => below.push((path, entry.attributes.node)),
                    FileKind::Symlink => self.link(entry.attributes.node).await,
                    _ => {}
                }
            }
            // In the order of the listing.
            directories.extend(below.into_iter().rev());
            if directories.len() > DIRECTORIES_MAX {
                return Err(format!("more than {DIRECTORIES_MAX} directories wait: take parts of the tree"));
            }
        }
        while !self.runs.is_empty() {
            self.settle_next().await?;
        }
        while self.links.join_next().await.is_some() {}
        self.finish(dropped_before).await
    }

    /// Everything is written, and pinned for good.
    async fn finish(mut self, dropped_before: u64) -> Result<(), String> {
        let (cache, pinning) = (Arc::clone(self.fs.fetcher.cache()), self.pinning.take());
        let end = move || {
            let is_written = cache.flush();
            let dropped = cache.stats().dropped - dropped_before;
            if !is_written || dropped > 0 {
                return Err(format!(
                    "the cache dropped {dropped} chunks meanwhile: its disk is full, slow or read-only; run it again"
                ));
            }
            pinning.map_or(Ok(()), |pinning| pinning.finish().map(drop).map_err(|error| error.to_string()))
        };
        self.blocking(end).await
    }

    async fn begin_pin(&mut self, name: String) -> Result<(), String> {
        let cache = Arc::clone(self.fs.fetcher.cache());
        let pinning =
            self.blocking(move || cache.begin_pin(&name).map_err(|error| error.to_string())).await?;
        let runs = pinning.ahead_bytes_max() / (WARM_RUN_CHUNKS * CHUNK_BYTES);
        self.runs_max = (runs as usize).max(1);
        self.pinning = Some(pinning);
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let done = self.fs.runtime().spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err("the mount is being taken down".to_owned()))
    }

    /// Lists a directory, by its path where the host has forgotten its node.
    async fn list_known(&self, path: &[u8], node: NodeId) -> Result<Vec<DirectoryEntry>, FetchError> {
        match self.list(node).await {
            Err(FetchError::UnknownNode) => self.list(self.fs.look_up_path(path).await?.node).await,
            listed => listed,
        }
    }

    /// Lists a directory above, so that the way to what is warmed can be listed without the host. One that may not be listed stays so.
    async fn list_for_later(&self, node: NodeId) {
        let mut parts = self.fs.client.list(node);
        let mut entries = 0;
        while let Some(Ok(ListPart::Entries(batch))) = parts.recv().await {
            entries += batch.len();
            if entries > ENTRIES_MAX {
                return;
            }
        }
    }

    /// Has the target of a symbolic link noted, beside others. One that cannot be read is told when somebody reads it.
    async fn link(&mut self, node: NodeId) {
        while self.links.len() >= LINKS_MAX {
            self.links.join_next().await;
        }
        let client = Arc::clone(&self.fs.client);
        self.links.spawn(async move { drop(client.read_link(node).await) });
    }

    async fn list(&self, node: NodeId) -> Result<Vec<DirectoryEntry>, FetchError> {
        let mut parts = self.fs.client.list(node);
        let mut entries = Vec::new();
        while let Some(part) = parts.recv().await {
            match part? {
                ListPart::Begin { .. } => {}
                ListPart::Entries(_) if entries.len() > ENTRIES_MAX => {
                    return Err(CallError::BadAnswer(format!("more than {ENTRIES_MAX} entries")).into());
                }
                ListPart::Entries(batch) => entries.extend(batch),
                ListPart::End => return Ok(entries),
            }
        }
        Err(CallError::Closed.into())
    }

    /// Puts the runs of a file on their way.
    async fn file(&mut self, path: Vec<u8>, attributes: &Attributes) -> Result<(), String> {
        let content = self.fs.content_kept(attributes);
        if !content.settled && attributes.trust == Trust::Full {
            lock(&self.progress).skipped += 1;
            return Ok(());
        }
        lock(&self.progress).unproven += u64::from(attributes.trust == Trust::Weak);
        if let Some(pinning) = &self.pinning {
            pinning.check_capacity(attributes.size).map_err(|error| error.to_string())?;
        }
        let file = Arc::new(Mutex::new(WarmFile { path, has_failed: false }));
        let chunks = attributes.size.div_ceil(CHUNK_BYTES);
        let mut first = 0;
        loop {
            let count = WARM_RUN_CHUNKS.min(chunks - first);
            let run = ChunkRange::new(ChunkIndex(first), count);
            first += count;
            while self.runs.len() >= self.runs_max.min(self.fs.fetcher.warm_runs_max()) {
                self.settle_next().await?;
            }
            self.fs.fetcher.wait_until_idle().await;
            self.start(&file, content, run, first == chunks);
            if first == chunks || lock(&file).has_failed {
                return Ok(());
            }
        }
    }

    fn start(
        &mut self,
        file: &Arc<Mutex<WarmFile>>,
        content: FileContent,
        chunks: ChunkRange,
        is_last: bool,
    ) {
        let fetcher = Arc::clone(&self.fs.fetcher);
        let warm = async move { fetcher.warm(&content, chunks).await };
        let task = Task(self.fs.runtime().spawn(warm));
        self.runs.push_back(Run { file: Arc::clone(file), content, chunks, is_last, task });
    }

    /// Waits for the first run.
    async fn settle_next(&mut self) -> Result<(), String> {
        let Some(mut run) = self.runs.pop_front() else { return Ok(()) };
        if lock(&run.file).has_failed {
            return Ok(());
        }
        let closed = || Err(CallError::Closed.into());
        let mut result = (&mut run.task.0).await.unwrap_or_else(|_| closed());
        if matches!(result, Err(FetchError::UnknownNode)) {
            result = self.again(&run).await;
        }
        let settled = match result {
            Ok(warmed) => self.take(&run, warmed).await,
            Err(error) => Err(Trouble::File(error)),
        };
        if let Err(error) = settled {
            lock(&run.file).has_failed = true;
            let path = lock(&run.file).path.clone();
            self.problem(&path, error)?;
        }
        Ok(())
    }

    /// Once more, after the host was made to know the file again.
    async fn again(&self, run: &Run) -> Result<Warmed, FetchError> {
        let path = lock(&run.file).path.clone();
        let attributes = self.fs.look_up_path(&path).await?;
        if self.fs.content_kept(&attributes) != run.content {
            return Err(FetchError::VersionChanged);
        }
        self.fs.fetcher.warm(&run.content, run.chunks).await
    }

    /// A run is in the cache: pins it, and counts it.
    async fn take(&mut self, run: &Run, warmed: Warmed) -> Result<(), Trouble> {
        if self.pinning.is_some() && !self.pin(run).await? {
            // The cache lost it again in between.
            self.fs.fetcher.warm(&run.content, run.chunks).await?;
            if !self.pin(run).await? {
                return Err(Trouble::All(PinError::Missing.to_string()));
            }
        }
        if run.is_last {
            self.fs.fetcher.flush_hashes(&run.content);
        }
        let mut progress = lock(&self.progress);
        progress.bytes += warmed.cached_bytes + warmed.same_bytes + warmed.host_bytes;
        progress.host_bytes += warmed.host_bytes;
        progress.files += u64::from(run.is_last);
        Ok(())
    }

    /// Says whether the cache had all of it.
    async fn pin(&mut self, run: &Run) -> Result<bool, Trouble> {
        let Some(mut pinning) = self.pinning.take() else { return Ok(true) };
        let (key, size, chunks, is_last) =
            (run.content.disk_key(), run.content.version.size, run.chunks, run.is_last);
        let work = move || {
            let mut result = pinning.add_chunks(&key, chunks);
            if is_last && result.is_ok() {
                result = pinning.add_file(&key, size);
            }
            (pinning, result)
        };
        let closed = |_| Trouble::All(CallError::Closed.to_string());
        let (pinning, result) = self.fs.runtime().spawn_blocking(work).await.map_err(closed)?;
        self.pinning = Some(pinning);
        match result {
            Ok(()) => Ok(true),
            Err(PinError::Missing) => Ok(false),
            Err(error) => Err(Trouble::All(error.to_string())),
        }
    }

    /// Takes note of what could not be read. What concerns all the rest ends the walk.
    fn problem(&self, path: &[u8], trouble: Trouble) -> Result<(), String> {
        let error = match trouble {
            Trouble::File(error) => error,
            Trouble::All(why) => return Err(why),
        };
        let why = match &error {
            FetchError::VersionChanged => "changed while it was read".to_owned(),
            FetchError::UnknownNode => "is gone".to_owned(),
            FetchError::Call(call) => call.to_string(),
        };
        let source = self.fs.source_of(path);
        match error {
            FetchError::Call(CallError::Host(error)) if error.code == ErrorCode::Refused => {
                return Err(format!("{source}: {error}"));
            }
            FetchError::Call(
                CallError::TimedOut(_) | CallError::Offline | CallError::Closed | CallError::BadAnswer(_),
            ) => {
                return Err(format!("{source}: {why}"));
            }
            _ => {}
        }
        let mut progress = lock(&self.progress);
        progress.failed += 1;
        if progress.problems.len() < PROBLEMS_MAX {
            let told = format!("{source}: {why}");
            progress.problems.push(words::line(&told, PROBLEM_CHARS_MAX).into_owned());
        }
        Ok(())
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}
