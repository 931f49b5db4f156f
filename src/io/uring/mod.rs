//! The `io_uring` backend: one thread per ring, fed by a queue and an event descriptor.
//!
//! A ring's thread sleeps in `io_uring_enter` until an operation completes or the event descriptor is
//! written, on which a read is always pending. Callers write to it only if the thread announced that it
//! will sleep, so a busy ring costs them no system call.

mod driver;
mod queue;
mod setup;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;

use nix::errno::Errno;

use self::driver::Driver;
use self::queue::Queue;
use self::setup::Refusal;
use super::backend::Backend;
use super::diagnosis::{Step, explain};
use super::error::IoError;
use super::operation::Operation;
use super::registered_pool::RegisteredPool;
use super::stats::Counters;
use super::sys;

/// Rings used in turn.
pub(super) struct Uring {
    rings: Vec<Ring>,
    next: AtomicUsize,
}

/// Caller's end of one ring. Dropping it lets the thread end.
struct Ring {
    queue: Arc<Queue>,
    #[cfg_attr(not(test), allow(dead_code))]
    thread: thread::JoinHandle<()>,
}

impl Uring {
    /// Starts `rings` rings of `depth` operations each, which read into the buffers of `pool`. Also returns
    /// a note if they work without registered buffers.
    pub(super) fn start(
        rings: usize,
        depth: u32,
        pool: &Arc<RegisteredPool>,
        counters: &Arc<Counters>,
    ) -> Result<(Self, Option<String>), IoError> {
        // A failure is ignored here. A limit that is too low shows when buffers are registered.
        let _ = sys::raise_memlock(pool.bytes() as u64 * rings as u64);
        let mut uring = Self { rings: Vec::with_capacity(rings), next: AtomicUsize::new(0) };
        let mut note = None;
        for number in 0..rings {
            let (ring, unregistered) = Ring::start(number, depth, pool, counters)
                .map_err(|refusal| unavailable(refusal, pool.bytes()))?;
            uring.rings.push(ring);
            note = note.or(unregistered);
        }
        let note = note.map(|errno| {
            format!("io_uring: {} ({errno})", explain(Step::Register, errno, None, pool.bytes()))
        });
        Ok((uring, note))
    }

    /// Closes the rings and waits for their threads.
    #[cfg(test)]
    pub(super) fn join(mut self) {
        for ring in self.rings.drain(..) {
            ring.queue.close();
            ring.thread.join().expect("a ring thread does not panic");
        }
    }
}

impl Backend for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn push(&self, operation: Operation) {
        let turn = self.next.fetch_add(1, Relaxed) % self.rings.len();
        self.rings[turn].queue.push(operation);
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        for ring in &self.rings {
            ring.queue.close();
        }
    }
}

impl Ring {
    /// Starts a ring and its thread. Also returns the error if only the registration of buffers failed.
    fn start(
        number: usize,
        depth: u32,
        pool: &Arc<RegisteredPool>,
        counters: &Arc<Counters>,
    ) -> Result<(Self, Option<Errno>), Refusal> {
        let resources = |errno| Refusal { step: Step::Resources, errno };
        let queue = Arc::new(Queue::new().map_err(resources)?);
        let (tell, told) = mpsc::sync_channel(1);
        let (thread_queue, pool, counters) = (Arc::clone(&queue), Arc::clone(pool), Arc::clone(counters));
        // The ring is created on its own thread: the kernel then knows the only submitter, and skips locks.
        let work = move || match Driver::new(depth, thread_queue, pool, counters) {
            Ok((driver, unregistered)) => {
                if tell.send(Ok(unregistered)).is_ok() {
                    driver.run();
                }
            }
            Err(refusal) => {
                let _ = tell.send(Err(refusal));
            }
        };
        let thread = thread::Builder::new()
            .name(format!("wormhole-ring-{number}"))
            .spawn(work)
            .map_err(|error| resources(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
        let unregistered = told.recv().unwrap_or(Err(resources(Errno::UnknownErrno)))?;
        Ok((Self { queue, thread }, unregistered))
    }
}

fn unavailable(refusal: Refusal, pool_bytes: usize) -> IoError {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let reason = explain(refusal.step, refusal.errno, disabled.as_deref(), pool_bytes);
    IoError::Unavailable { backend: "io_uring", reason, errno: refusal.errno }
}
