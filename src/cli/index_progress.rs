//! How far `wormhole host --index` is: one line on a terminal, which is written over; nothing where nobody watches.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::words::{amount, rate};
use crate::host::{HostObserver, HostStatus};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(200);

/// Width of the bar, in characters.
const BAR_WIDTH: u64 = 24;

/// Shows it on standard error until it is done; returns at once where that is no terminal. Drop it to end it.
pub(super) async fn show(host: HostObserver) {
    if !io::stderr().is_terminal() {
        return;
    }
    let began = Instant::now();
    let mut status = host.status();
    while status.index_ahead_runs {
        // A terminal that is gone does not keep the daemon from serving.
        let _ = write!(io::stderr(), "\r{}\x1b[K", line(&status, began.elapsed()));
        tokio::time::sleep(EVERY).await;
        status = host.status();
    }
    let _ = writeln!(io::stderr(), "\r{}\x1b[K", line(&status, began.elapsed()));
}

fn line(status: &HostStatus, took: Duration) -> String {
    let (done, total) = (status.index_ahead_bytes, status.index_ahead_total_bytes);
    let filled = (u128::from(done) * u128::from(BAR_WIDTH)).checked_div(u128::from(total));
    let filled = filled.unwrap_or(0).min(u128::from(BAR_WIDTH)) as usize;
    let bar = format!("{}{}", "#".repeat(filled), "-".repeat(BAR_WIDTH as usize - filled));
    format!("hashing ahead [{bar}] {} of {}, {}", amount(done), amount(total), rate(done, took.as_secs_f64()))
}
