//! (P) Choice of the kernel's congestion control for a connection.
//!
//! Our own congestion control is rate-based, and so is the kernel's `bbr`. On a long route with some loss it
//! moves twenty times as much as `cubic`. But it paces by timers. Between two hosts on one switch this costs
//! 5 to 13 % of the processor time of a whole cold read without a benefit. So a short route starts with
//! `cubic`, and moves to `bbr` if it loses packets.

use crate::io::sys::TcpInfo;
use crate::transport::congestion::CongestionKind;

const CUBIC: &str = "cubic";
const BBR: &str = "bbr";

/// Segments over which loss is judged.
const JUDGED_SEGMENTS: u64 = 16_384;
/// A loss rate of one in this many is more than congestion alone explains on a short route. `cubic` moves 80
/// MB/s with it at 1 ms, by the usual formula (Mathis et al., 1997).
const LOSSY_ONE_IN: u64 = 2_000;
/// Lossy intervals in a row that make a route lossy. A queue that overflows once, as at the start, does not.
const LOSSY_TIMES: u32 = 2;

/// Congestion control of one connection, and the rule for changing it.
#[derive(Debug)]
pub(super) struct KernelCongestion {
    first: &'static str,
    /// True if loss may change it.
    watches: bool,
    judged: TcpInfo,
    lossy_times: u32,
}

impl KernelCongestion {
    /// Returns the choice for a connection of this `kind` on a short or a long route.
    pub(super) fn new(kind: CongestionKind, is_short: bool) -> Self {
        let first = match kind {
            CongestionKind::Delivery if is_short => CUBIC,
            CongestionKind::Delivery | CongestionKind::Bbr => BBR,
            CongestionKind::Cubic => CUBIC,
            CongestionKind::NewReno => "reno",
        };
        let watches = is_short && matches!(kind, CongestionKind::Delivery);
        Self { first, watches, judged: TcpInfo::default(), lossy_times: 0 }
    }

    /// Returns the kernel's name for the first congestion control.
    pub(super) const fn first(&self) -> &'static str {
        self.first
    }

    /// Takes the kernel's present counters. Returns the name of the next congestion control, once, when it
    /// changes.
    pub(super) fn update(&mut self, info: &TcpInfo) -> Option<&'static str> {
        let sent = info.segments_sent.saturating_sub(self.judged.segments_sent);
        if !self.watches || sent < JUDGED_SEGMENTS {
            return None;
        }
        let lost = info.segments_lost.saturating_sub(self.judged.segments_lost);
        self.judged = *info;
        self.lossy_times = if lost * LOSSY_ONE_IN > sent { self.lossy_times + 1 } else { 0 };
        self.watches = self.lossy_times < LOSSY_TIMES;
        (!self.watches).then_some(BBR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the decisions for a short route that loses these many of ten thousand segments, one number a
    /// second of traffic.
    fn after(lost_in_10000: &[u64]) -> Vec<Option<&'static str>> {
        let mut congestion = KernelCongestion::new(CongestionKind::Delivery, true);
        let mut info = TcpInfo::default();
        let mut second = |lost: &u64| {
            info.segments_sent += 20_000;
            info.segments_lost += lost * 2;
            congestion.update(&info)
        };
        lost_in_10000.iter().map(&mut second).collect()
    }

    #[test]
    fn a_short_route_starts_unpaced_and_changes_once_if_it_loses() {
        assert_eq!(KernelCongestion::new(CongestionKind::Delivery, true).first(), "cubic");
        assert_eq!(KernelCongestion::new(CongestionKind::Delivery, false).first(), "bbr");
        assert_eq!(after(&[0, 1, 0, 1, 1]), [None; 5]);
        assert_eq!(after(&[30, 0, 30, 0]), [None; 4]);
        assert_eq!(after(&[0, 10, 10, 10]), [None, None, Some("bbr"), None]);
    }

    #[test]
    fn little_traffic_decides_nothing() {
        let mut congestion = KernelCongestion::new(CongestionKind::Delivery, true);
        for segments in 1..100 {
            let info = TcpInfo { segments_sent: segments * 160, segments_lost: 0, ..TcpInfo::default() };
            assert_eq!(congestion.update(&info), None);
        }
        let mut congestion = KernelCongestion::new(CongestionKind::Delivery, true);
        let info = TcpInfo { segments_sent: 300, segments_lost: 200, ..TcpInfo::default() };
        assert_eq!([congestion.update(&info), congestion.update(&info)], [None, None]);
    }

    #[test]
    fn a_configured_algorithm_stays() {
        for (kind, name) in [
            (CongestionKind::Cubic, "cubic"),
            (CongestionKind::Bbr, "bbr"),
            (CongestionKind::NewReno, "reno"),
        ] {
            let mut congestion = KernelCongestion::new(kind, true);
            assert_eq!(congestion.first(), name);
            for segments in 1..9 {
                let info = TcpInfo {
                    segments_sent: segments * 20_000,
                    segments_lost: segments * 2_000,
                    ..TcpInfo::default()
                };
                assert_eq!(congestion.update(&info), None);
            }
        }
    }
}
