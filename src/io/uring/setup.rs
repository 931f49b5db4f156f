//! Making a ring that is known to work: created, probed, tried, its buffers registered.

use std::io;

use io_uring::{IoUring, Probe, opcode};
use nix::errno::Errno;

use crate::io::diagnosis::Step;
use crate::io::pool::Pool;

/// Where the kernel said no.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    /// What it was asked for.
    pub(super) step: Step,
    /// What it said.
    pub(super) errno: Errno,
}

/// A ring of at least `entries` submission slots that ran an operation. Must be used by the calling thread only.
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

/// Registers all buffers of `pool`: the kernel locks their pages until the ring is closed.
pub(super) fn register(ring: &IoUring, pool: &Pool) -> Result<(), Errno> {
    // SAFETY: the vectors describe mapped memory. The kernel holds the pages themselves from now on: were the pool gone
    // before the ring, it would write to pages that nobody sees.
    let registered = unsafe { ring.submitter().register_buffers(&pool.vectors()) };
    registered.map_err(|error| errno_of(&error))
}

/// The error number of a failed call.
pub(super) fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// One thread submits, and completions are dealt with when it asks for them (Linux 6.1); else as older kernels do.
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
