//! Kernel statistics of a TCP connection.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;

/// State of a TCP connection in the kernel (`TCP_INFO`, tcp(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round-trip time. On a new connection it is that of the handshake.
    pub rtt: Duration,
    /// Smallest recent round-trip time.
    pub rtt_min: Duration,
    /// Most bytes in flight.
    pub congestion_window_bytes: u64,
    /// Payload of a full segment, in bytes.
    pub segment_bytes: u32,
    /// Segments sent.
    pub segments_sent: u64,
    /// Retransmitted segments.
    pub segments_lost: u64,
}

/// Reads the state of a TCP connection. Fails for other sockets.
pub fn tcp_info(socket: &impl AsFd) -> Result<TcpInfo, Errno> {
    let mut raw = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open while it is borrowed; `raw` has `len` bytes, and the kernel writes no
    // more.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    Errno::result(result)?;
    // SAFETY: all fields are integers, zero where an old kernel filled less.
    let info = unsafe { raw.assume_init() };
    let micros = |micros: u32| Duration::from_micros(micros.into());
    Ok(TcpInfo {
        rtt: micros(info.tcpi_rtt),
        // All bits are set before the first sample.
        rtt_min: micros(if info.tcpi_min_rtt == u32::MAX { info.tcpi_rtt } else { info.tcpi_min_rtt }),
        congestion_window_bytes: u64::from(info.tcpi_snd_cwnd) * u64::from(info.tcpi_snd_mss),
        segment_bytes: info.tcpi_snd_mss,
        segments_sent: info.tcpi_segs_out.into(),
        segments_lost: info.tcpi_total_retrans.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn a_connection_reports_its_state() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let info = tcp_info(&stream).unwrap();
        assert!(info.rtt > Duration::ZERO && info.rtt < Duration::from_secs(1), "{info:?}");
        assert!(info.segment_bytes >= 536 && info.segments_sent >= 2, "{info:?}");
        assert!(info.congestion_window_bytes >= info.segment_bytes.into(), "{info:?}");
    }

    #[test]
    fn other_sockets_are_refused() {
        assert!(tcp_info(&UdpSocket::bind("127.0.0.1:0").unwrap()).is_err());
    }
}
