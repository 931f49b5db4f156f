//! How a question about an inode reaches the host: looked up again if the host forgot it, answered from a copy while the
//! host is out of reach.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;

use super::error::Remedy;
use super::events::FsEvent;
use super::inodes::{DEPTH_MAX, Inode, Step};
use super::recovering::Recovering;
use super::{FileSystem, FsError, lock};
use crate::client::{CallError, Client};
use crate::proto::{Attributes, Errno, ErrorCode, FileKind, NodeId, OpenAccess, OpenId};

/// How often a waiting question looks whether the link is still there. A person notices a quarter of a second.
const LINK_LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Longest time from the lookup of a name in a walk to the request that follows it. The kernel sends it at once, but a machine
/// may be busy; a second more than names are believed does no harm.
pub(super) const WALK_MAX: Duration = Duration::from_secs(1);

/// Nodes that the host holds for one operation, though their names have gone to others.
#[derive(Debug)]
pub(super) struct Held<'a> {
    fs: &'a FileSystem,
    nodes: Vec<(NodeId, OpenId)>,
}

impl<'a> Held<'a> {
    /// None yet.
    pub(super) const fn new(fs: &'a FileSystem) -> Self {
        Self { fs, nodes: Vec::new() }
    }

    /// Has the host hold a node; `false` where it has it no longer.
    async fn hold(&mut self, node: NodeId) -> Result<bool, FsError> {
        let open = OpenId(lock(&self.fs.files).reserve());
        match self.fs.client.open(node, open, OpenAccess::NONE).await {
            Ok(_) => {
                self.nodes.push((node, open));
                Ok(true)
            }
            Err(error) if Remedy::of(&error) == Remedy::Resolve => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Held<'_> {
    /// Nobody waits for the answer.
    fn drop(&mut self) {
        for (node, open) in self.nodes.drain(..) {
            let client = Arc::clone(&self.fs.client);
            self.fs.runtime.spawn(async move {
                if let Err(error) = client.close(node, open).await {
                    tracing::debug!(%error, "the host was not told to let a file go");
                }
            });
        }
    }
}

/// Recoveries under way, by inode.
pub(super) type Recoveries = HashMap<Inode, Weak<AsyncMutex<()>>>;

impl FileSystem {
    /// Asks the host about `inode`. If it does not know the node, because it restarted, the inode is looked up again
    /// by its path and the question asked once more, as often as it restarts until the deadline.
    pub(super) async fn ask<T, F>(
        &self,
        inode: Inode,
        call: impl Fn(Arc<dyn Client>, NodeId) -> F,
    ) -> Result<T, FsError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let begun = Instant::now();
        let mut recovering = Recovering::within(self.config.patience, begun);
        let mut held = Held::new(self);
        loop {
            let (node, recoveries) = self.node_of(inode)?;
            match call(Arc::clone(&self.client), node).await {
                Err(error) if Remedy::of(&error) == Remedy::Resolve => {
                    self.may_recover(&mut recovering, error)?;
                    self.find_again((inode, recoveries), begun, &mut recovering, &mut held).await?;
                }
                answer => return answer.map_err(FsError::from),
            }
        }
    }

    /// `error` where an operation is not to be tried again.
    pub(super) fn may_recover<E: Into<FsError>>(
        &self,
        recovering: &mut Recovering,
        error: E,
    ) -> Result<(), FsError> {
        let run = *self.client.runs().borrow();
        if recovering.may_go_on(run, Instant::now()) { Ok(()) } else { Err(error.into()) }
    }

    /// Sees to it that the host knows an inode with which somebody came at `begun`, though its path does not lead to it. Whoever
    /// has just looked its name up acts on what he found: the host holds that for as long as `held` is there.
    pub(super) async fn find_again(
        &self,
        (inode, recoveries): (Inode, u64),
        begun: Instant,
        recovering: &mut Recovering,
        held: &mut Held<'_>,
    ) -> Result<(), FsError> {
        let node = {
            let inodes = lock(&self.inodes);
            let record = inodes.get(inode).ok_or(FsError::UnknownInode(inode.0))?;
            let may_be_held = record.more().opens == 0 && inodes.was_just_looked_up(inode, begun, WALK_MAX);
            may_be_held.then(|| record.node())
        };
        if let Some(node) = node
            && held.hold(node).await?
        {
            return Ok(());
        }
        self.recover(inode, recoveries, recovering).await
    }

    /// Waits for `answer`, but takes `copy` instead as soon as the host is known to be out of reach.
    pub(super) async fn or_copy<T>(
        &self,
        answer: impl Future<Output = Result<T, FsError>>,
        copy: impl Fn() -> Option<T>,
    ) -> Result<T, FsError> {
        if !self.config.serves_stale {
            return answer.await;
        }
        let copy = || copy().inspect(|_| self.count_stale());
        if !self.is_connected()
            && let Some(copy) = copy()
        {
            return Ok(copy);
        }
        let mut answer = pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    Err(error) if error.is_out_of_reach() => copy().ok_or(error),
                    answer => answer,
                },
                () = tokio::time::sleep(LINK_LOOK_INTERVAL) => {
                    if !self.is_connected() && let Some(copy) = copy() {
                        return Ok(copy);
                    }
                }
            }
        }
    }

    /// How long who waits for the host waits from now on.
    pub(super) fn patience(&self) -> Duration {
        self.client.link().wait_max(self.config.patience)
    }

    /// A copy was given because the host is out of reach.
    pub(super) fn count_stale(&self) {
        self.stale_answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the host answers, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.client.link().connected
    }

    /// The host's name of an inode, and how often it had to be recovered so far.
    pub(super) fn node_of(&self, inode: Inode) -> Result<(NodeId, u64), FsError> {
        let inodes = lock(&self.inodes);
        let record = inodes.get(inode).ok_or(FsError::UnknownInode(inode.0))?;
        Ok((record.node(), record.more().recoveries))
    }

    /// Makes the host know `inode` again, unless someone else has done so since the inode had been recovered
    /// `recoveries` times. One recovery of an inode runs at a time.
    pub(super) async fn recover(
        &self,
        inode: Inode,
        recoveries: u64,
        recovering: &mut Recovering,
    ) -> Result<(), FsError> {
        let turn = self.recovery_turn(inode);
        let _turn = turn.lock().await;
        if self.node_of(inode)?.1 != recoveries {
            return Ok(());
        }
        loop {
            match self.recover_once(inode).await {
                Err(FsError::Call(error)) if Remedy::of(&error) == Remedy::Resolve => {
                    self.may_recover(recovering, error)?;
                }
                recovered => return recovered,
            }
        }
    }

    async fn recover_once(&self, inode: Inode) -> Result<(), FsError> {
        let attributes = match self.resolve(inode).await {
            Err(FsError::Stale) => {
                self.forget_name_of(inode);
                return Err(FsError::Stale);
            }
            resolved => resolved?,
        };
        let is_open = attributes.kind == FileKind::Regular
            && lock(&self.inodes).get(inode).is_some_and(|record| record.more().opens > 0);
        let access = lock(&self.inodes).get(inode).map_or(OpenAccess::READ, |record| record.more().access);
        let open = is_open.then(|| OpenId(lock(&self.files).reserve()));
        if let Some(open) = open {
            self.client.open(attributes.node, open, access).await?;
        }
        lock(&self.inodes).recovered(inode, open);
        tracing::debug!(inode = inode.0, is_open, "the host knows the inode again");
        Ok(())
    }

    fn recovery_turn(&self, inode: Inode) -> Arc<AsyncMutex<()>> {
        let mut recoveries = lock(&self.recoveries);
        if let Some(turn) = recoveries.get(&inode).and_then(Weak::upgrade) {
            return turn;
        }
        recoveries.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(AsyncMutex::new(()));
        recoveries.insert(inode, Arc::downgrade(&turn));
        turn
    }

    /// Looks the inode up by its path: upwards to the first directory that the host knows, and down again from there.
    async fn resolve(&self, inode: Inode) -> Result<Attributes, FsError> {
        let way = lock(&self.inodes).way_up(inode).ok_or(FsError::Stale)?;
        if way.is_empty() {
            return self.client.attributes(self.client.root().node).await.map_err(FsError::from);
        }
        let mut at = 0;
        // Up and down once; more only when the host restarts meanwhile.
        for _ in 0..4 * DEPTH_MAX {
            match self.look_up_step(&way[at]).await? {
                StepAnswer::Same(attributes) if at == 0 => return Ok(attributes),
                StepAnswer::Same(_) => at -= 1,
                StepAnswer::ParentUnknown if at + 1 < way.len() => at += 1,
                StepAnswer::ParentUnknown | StepAnswer::Other => return Err(FsError::Stale),
            }
        }
        Err(FsError::Stale)
    }

    async fn look_up_step(&self, step: &Step) -> Result<StepAnswer, FsError> {
        match self.client.lookup(step.parent, &step.name).await {
            Ok(attributes) if attributes.node == step.node => Ok(StepAnswer::Same(attributes)),
            Ok(_) => Ok(StepAnswer::Other),
            Err(error) => match error.code() {
                Some(ErrorCode::UnknownNode) => Ok(StepAnswer::ParentUnknown),
                Some(ErrorCode::System(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE)) => {
                    Ok(StepAnswer::Other)
                }
                _ => Err(error.into()),
            },
        }
    }

    /// The name of an inode may lead elsewhere by now: who asks next asks the host.
    pub(super) fn doubt_name_of(&self, inode: Inode) {
        let Some((parent, name)) = lock(&self.inodes).newest_name(inode) else { return };
        lock(&self.inodes).set_lease_of_name(parent, &name, None);
        if let Ok((node, _)) = self.node_of(parent) {
            lock(&self.recent).remove(node);
        }
        self.events.send(FsEvent::InvalidateEntry { parent, name });
    }

    /// The inode is no longer what its name leads to: neither the kernel nor a listing may say so.
    pub(super) fn forget_name_of(&self, inode: Inode) {
        let (parent, name) = {
            let mut inodes = lock(&self.inodes);
            let Some((parent, name)) = inodes.reached_by(inode) else { return };
            if inodes.child(parent, &name) == Some(inode) {
                inodes.remove_name(parent, &name);
            }
            (parent, name)
        };
        if let Ok((node, _)) = self.node_of(parent) {
            lock(&self.recent).remove(node);
            lock(&self.lookups).note_unsteady(node, &name, Instant::now());
        }
        self.events.send(FsEvent::InvalidateEntry { parent, name });
    }
}

enum StepAnswer {
    Same(Attributes),
    Other,
    ParentUnknown,
}
