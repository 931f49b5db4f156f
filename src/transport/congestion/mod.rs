//! Congestion control: the choice of an algorithm, and one of our own.

use std::{fmt, str::FromStr, sync::Arc};

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use thiserror::Error;

use adapter::DeliveryFactory;
use delivery::INITIAL_WINDOW_PACKETS;
pub use delivery::{AckPolicy, DeliveryRate};

mod adapter;
mod delivery;
mod sampler;
#[cfg(test)]
mod simulate;

/// A congestion control by name, as in `-o cc=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CongestionKind {
    /// Measures the delivery rate and keeps that much in flight. Random loss does not slow it.
    #[default]
    Delivery,
    /// Default of quinn and of TCP on most systems. Fair to others, slow on lossy links.
    Cubic,
    /// BBR of quinn. Fast on lossy links, loses up to half of the bytes it sends.
    Bbr,
    /// The textbook algorithm. Halves the window at every loss.
    NewReno,
}

impl CongestionKind {
    /// All kinds, in the order of listings.
    pub const ALL: [Self; 4] = [Self::Delivery, Self::Cubic, Self::Bbr, Self::NewReno];

    /// Returns the name that `FromStr` reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delivery => "delivery",
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
            Self::NewReno => "newreno",
        }
    }

    /// Returns quinn's factory of controllers. `acks` is the policy asked of the peer, `packet_bytes` the
    /// size of the first packets.
    pub(super) fn factory(
        self,
        acks: AckPolicy,
        packet_bytes: u16,
    ) -> Arc<dyn ControllerFactory + Send + Sync> {
        // quinn's own first window is 14,720 bytes for any packet size. On loopback not even one packet would
        // fit.
        let initial_window_bytes = INITIAL_WINDOW_PACKETS * u64::from(packet_bytes);
        match self {
            Self::Delivery => Arc::new(DeliveryFactory { acks }),
            Self::Bbr => {
                let mut config = BbrConfig::default();
                config.initial_window(initial_window_bytes);
                Arc::new(config)
            }
            Self::Cubic => {
                let mut config = CubicConfig::default();
                config.initial_window(initial_window_bytes);
                Arc::new(config)
            }
            Self::NewReno => {
                let mut config = NewRenoConfig::default();
                config.initial_window(initial_window_bytes);
                Arc::new(config)
            }
        }
    }
}

impl fmt::Display for CongestionKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for CongestionKind {
    type Err = UnknownCongestion;

    fn from_str(text: &str) -> Result<Self, UnknownCongestion> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text.to_ascii_lowercase())
            .ok_or_else(|| UnknownCongestion(text.chars().take(40).collect()))
    }
}

/// Error: no congestion control has this name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("unknown congestion control `{0}`: choose delivery, cubic, bbr or newreno")]
pub struct UnknownCongestion(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_by_its_name() {
        for kind in CongestionKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(kind.name().to_uppercase().parse(), Ok(kind));
        }
        assert!("vegas".parse::<CongestionKind>().unwrap_err().to_string().contains("vegas"));
    }
}
