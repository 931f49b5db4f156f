//! A mount that is not established yet. It has claimed the folder, `wormhole status` shows it, and it can be
//! cancelled.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::{Mount, MountConfig, MountError, MountHandle};
use crate::control::{
    ControlSocket, Controlled, DaemonKind, LinkWord, StatusReport, SyncReport, Unsent, WarmOrder, WarmReport,
};
use crate::fuse::Claim;
use crate::metrics::{Metric, Readings};

/// A mount that is being tried, once or repeatedly.
pub struct Attempt {
    config: MountConfig,
    state: Arc<AttemptState>,
    control: Option<ControlSocket>,
    claim: Claim,
}

/// State of an attempt, for the control socket. Once mounted, the mount answers instead.
struct AttemptState {
    label: String,
    mountpoint: PathBuf,
    cache_dir: Option<PathBuf>,
    started: Instant,
    problem: Mutex<Option<String>>,
    cancelled: watch::Sender<bool>,
    mounted: OnceLock<Arc<MountHandle>>,
}

impl Attempt {
    /// Claims the mountpoint and opens the control socket. Asks no host.
    ///
    /// Needs a tokio runtime.
    pub fn begin(config: MountConfig) -> Result<Self, MountError> {
        let claim = Claim::take(&config.mountpoint)?;
        let state = Arc::new(AttemptState {
            label: config.label.clone(),
            mountpoint: config.mountpoint.clone(),
            cache_dir: config.cache.as_ref().map(|cache| cache.config.directory.clone()),
            started: Instant::now(),
            problem: Mutex::default(),
            cancelled: watch::Sender::new(false),
            mounted: OnceLock::new(),
        });
        let shared = Arc::clone(&state);
        let control = ControlSocket::open(&config.control_dir, Some(&config.mountpoint), shared);
        let control = control
            .inspect_err(|error| tracing::warn!("{error}; `wormhole status` will not show this mount"))
            .ok();
        Ok(Self { config, state, control, claim })
    }

    /// Connects (unless offline) and mounts. The returned mount answers.
    pub async fn mount(&mut self) -> Result<Mount, MountError> {
        let result = Mount::start(self.config.clone(), &self.claim, &mut self.control).await;
        match &result {
            Ok(mount) => {
                let handle = mount.handle();
                // Only this call sets it, and it succeeds once.
                let _ = self.state.mounted.set(Arc::clone(handle));
                if *self.state.cancelled.borrow() {
                    handle.stop();
                }
            }
            Err(error) => *self.state.problem() = Some(error.to_string()),
        }
        result
    }

    /// Completes when the attempt is cancelled, otherwise never.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut cancelled = self.state.cancelled.subscribe();
        async move {
            if cancelled.wait_for(|cancelled| *cancelled).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl AttemptState {
    fn problem(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancel(&self) {
        self.cancelled.send_replace(true);
    }
}

impl Controlled for AttemptState {
    fn status(&self) -> StatusReport {
        if let Some(mounted) = self.mounted.get() {
            return mounted.status();
        }
        let mut readings = Readings::default();
        readings.set(Metric::UptimeSeconds, self.started.elapsed().as_secs());
        StatusReport {
            kind: DaemonKind::Mount,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: vec![self.label.clone()],
            mountpoint: Some(self.mountpoint.clone()),
            device: None,
            state: LinkWord::Mounting,
            problem: self.problem().clone(),
            address: None,
            transport: "none".to_owned(),
            engine: None,
            cache_dir: self.cache_dir.clone(),
            clients_connected: Vec::new(),
            keys: Vec::new(),
            cache_problem: None,
            file_systems: Vec::new(),
            readings,
        }
    }

    fn stop(&self) {
        self.cancel();
        if let Some(mounted) = self.mounted.get() {
            mounted.stop();
        }
    }

    fn abort(&self) -> Unsent {
        self.cancel();
        self.mounted.get().map(|mounted| mounted.abort()).unwrap_or_default()
    }

    fn warm(&self, order: &WarmOrder) -> Result<WarmReport, String> {
        let mounted = self.mounted.get().ok_or("nothing is mounted yet")?;
        mounted.warm(order)
    }

    fn sync(&self) -> Result<SyncReport, String> {
        let mounted = self.mounted.get().ok_or("nothing is mounted yet")?;
        mounted.sync()
    }

    fn sync_progress(&self, id: u64) -> Result<SyncReport, String> {
        let mounted = self.mounted.get().ok_or("nothing is mounted yet")?;
        mounted.sync_progress(id)
    }

    fn warm_progress(&self, id: u64) -> Result<WarmReport, String> {
        let mounted = self.mounted.get().ok_or("nothing is mounted yet")?;
        mounted.warm_progress(id)
    }
}
