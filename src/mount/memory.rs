//! Gives memory back to the system once programs and the kernel have let go of what it was for.

use std::sync::Weak;
use std::time::Duration;

use crate::fs::FileSystem;
use crate::io::Slack;
use crate::io::sys::return_free_memory;

/// Looks now and then, for as long as the file system is there.
pub(super) async fn watch(file_system: Weak<FileSystem>) {
    let mut slack = Slack::default();
    loop {
        tokio::time::sleep(Duration::from_secs(Slack::LOOK_EVERY_SECONDS)).await;
        let Some(used) = file_system.upgrade().map(|file_system| file_system.table_bytes()) else { return };
        if slack.look(used) {
            tracing::debug!(used, "gives free memory back to the system");
            // Fails only while the runtime shuts down.
            let _ = tokio::task::spawn_blocking(return_free_memory).await;
        }
    }
}
