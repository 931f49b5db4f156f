//! Socket buffers larger than the system's limits for ordinary processes.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

/// Asks for a receive buffer of `bytes`: beyond `net.core.rmem_max` if the process may (`CAP_NET_ADMIN`),
/// otherwise up to that limit. A larger buffer stays.
///
/// Returns the size that the kernel reports, in bytes. It reports twice the requested size, because it
/// counts its own bookkeeping. Less than `2 * bytes` means that the limit cut the request, and that raising
/// it would help.
pub fn set_receive_buffer_force(socket: BorrowedFd<'_>, bytes: usize) -> Result<usize, Errno> {
    if getsockopt(&socket, sockopt::RcvBuf)? < bytes.saturating_mul(2)
        && setsockopt(&socket, sockopt::RcvBufForce, &bytes).is_err()
    {
        setsockopt(&socket, sockopt::RcvBuf, &bytes)?;
    }
    getsockopt(&socket, sockopt::RcvBuf)
}

/// Asks for a send buffer of `bytes`, like [`set_receive_buffer_force`]. The limit is `net.core.wmem_max`.
pub fn set_send_buffer_force(socket: BorrowedFd<'_>, bytes: usize) -> Result<usize, Errno> {
    if getsockopt(&socket, sockopt::SndBuf)? < bytes.saturating_mul(2)
        && setsockopt(&socket, sockopt::SndBufForce, &bytes).is_err()
    {
        setsockopt(&socket, sockopt::SndBuf, &bytes)?;
    }
    getsockopt(&socket, sockopt::SndBuf)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    type Set = fn(BorrowedFd<'_>, usize) -> Result<usize, Errno>;

    #[test]
    fn grants_are_reported_and_never_shrink() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for set in [set_receive_buffer_force as Set, set_send_buffer_force] {
            let socket = socket.as_fd();
            let small = set(socket, 64 * 1024).unwrap();
            assert!(small >= 128 * 1024, "{small}");
            let large = set(socket, 16 << 20).unwrap();
            assert!(large >= small, "{large} after {small}");
            if nix::unistd::geteuid().is_root() {
                assert_eq!(large, 32 << 20);
            }
            assert_eq!(set(socket, 4096).unwrap(), large);
        }
    }

    #[test]
    fn a_file_is_no_socket() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(set_receive_buffer_force(file.as_fd(), 1 << 20), Err(Errno::ENOTSOCK));
    }
}
