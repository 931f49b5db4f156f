//! Limits of the process that the disk engines depend on.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of locked memory so that `bytes` can be registered with `io_uring`, as far as the
/// process may.
///
/// Without privilege the soft limit can rise to the hard one; with `CAP_SYS_RESOURCE` the hard one rises
/// too. The kernel counts per user over all processes, so the limit is raised as far as allowed. Returns
/// the new soft limit in bytes. Less than `bytes` is no error, because reading works without locked memory.
pub fn raise_memlock(bytes: u64) -> Result<u64, Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    if hard < bytes && setrlimit(Resource::RLIMIT_MEMLOCK, bytes, bytes).is_ok() {
        return Ok(bytes);
    }
    if soft < hard {
        setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_lowers_the_limit() {
        let (before, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        let granted = raise_memlock(1 << 20).unwrap();
        let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        assert_eq!(granted, soft);
        assert!(granted >= before && granted >= hard);
    }
}
