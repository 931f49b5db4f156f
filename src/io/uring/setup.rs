//! Creation of a working ring: created, probed, tried, its buffers registered.

use std::io;

use io_uring::{IoUring, Probe, opcode};
use nix::errno::Errno;

use crate::io::diagnosis::Step;
use crate::io::registered_pool::RegisteredPool;

/// Failed step of the creation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    /// The refused step.
    pub(super) step: Step,
    /// Error of the kernel.
    pub(super) errno: Errno,
}

/// Creates a ring of at least `entries` submission slots and runs an operation on it. Only the calling
/// thread may use it.
pub(super) fn make(entries: u32) -> Result<IoUring, Refusal> {
    let mut ring = create(entries).map_err(refused(Step::Setup))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(refused(Step::Probe))?;
    if [opcode::Read::CODE, opcode::Write::CODE, opcode::ReadFixed::CODE]
        .iter()
        .any(|&code| !probe.is_supported(code))
    {
        return Err(Refusal { step: Step::Probe, errno: Errno::EINVAL });
    }
    // A filter may allow the set-up and forbid the use.
    // SAFETY: an operation that does nothing refers to no memory.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.map_err(|_| Refusal { step: Step::Enter, errno: Errno::EBUSY })?;
    ring.submit_and_wait(1).map_err(refused(Step::Enter))?;
    ring.completion().next().ok_or(Refusal { step: Step::Enter, errno: Errno::EIO })?;
    Ok(ring)
}

/// Registers all buffers of `pool`. The kernel locks their pages until the ring is closed.
pub(super) fn register(ring: &IoUring, pool: &RegisteredPool) -> Result<(), Errno> {
    // SAFETY: the vectors describe mapped memory. The kernel holds the pages themselves from now on: if the
    // pool ended before the ring, the kernel would write to pages that no process sees.
    let registered = unsafe { ring.submitter().register_buffers(&pool.vectors()) };
    registered.map_err(|error| errno_of(&error))
}

/// Returns the error number of a failed call.
pub(super) fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Creates a ring with one submitting thread, which also runs the completion work (Linux 6.1), or a plain
/// ring on older kernels.
fn create(entries: u32) -> io::Result<IoUring> {
    let mut modern = IoUring::builder();
    modern.dontfork().setup_single_issuer().setup_defer_taskrun();
    match modern.build(entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().dontfork().build(entries)
        }
        answer => answer,
    }
}

fn refused(step: Step) -> impl Fn(io::Error) -> Refusal {
    move |error| Refusal { step, errno: errno_of(&error) }
}
