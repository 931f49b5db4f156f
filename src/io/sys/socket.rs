//! Socket buffers larger than the system's limits for ordinary processes.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

/// Asks for `bytes` of receive buffer: past `net.core.rmem_max` where the process may (`CAP_NET_ADMIN`), else as much
/// as that limit allows. A buffer that is larger already stays.
///
/// Returns what the kernel then reports, in bytes. It reports twice what it was asked for, as it counts its own
/// bookkeeping: less than `2 * bytes` means that the limit cut the request, and that raising it would help.
pub fn set_receive_buffer_force(socket: BorrowedFd<'_>, bytes: usize) -> Result<usize, Errno> {
    if getsockopt(&socket, sockopt::RcvBuf)? < bytes.saturating_mul(2)
        && setsockopt(&socket, sockopt::RcvBufForce, &bytes).is_err()
    {
        setsockopt(&socket, sockopt::RcvBuf, &bytes)?;
    }
    getsockopt(&socket, sockopt::RcvBuf)
}

/// Asks for `bytes` of send buffer, as [`set_receive_buffer_force`] does for the other direction; the limit is
/// `net.core.wmem_max`.
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
