//! Every metric's name, unit and meaning: the one table from which status reports, their JSON and the manual take them.
//!
//! Pure. A name ends in its unit. Counters only grow while the daemon runs; gauges say how it is now.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Whether a metric only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// Grows from 0 at the daemon's start.
    Counter,
    /// As it is now.
    Gauge,
}

macro_rules! metrics {
    ($($variant:ident $name:literal $nature:ident $meaning:literal;)*) => {
        /// What is measured.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Metric {
            $(#[doc = $meaning] $variant,)*
        }

        impl Metric {
            /// All of them, in the order to show them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name: the key in JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Whether it only grows.
            pub const fn nature(self) -> Nature {
                match self { $(Self::$variant => Nature::$nature),* }
            }

            /// What it says, for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }
        }
    };
}

metrics! {
    UptimeSeconds "uptime_s" Gauge "time since the daemon's start, in seconds";
    RttMs "rtt_ms" Gauge "round-trip time to the host, smoothed, in milliseconds";
    LinkBytesPerSecond "link_bytes_per_second" Gauge "rate at which content arrived lately; 0 while unknown";
    WireSentBytes "wire_sent_bytes" Counter "UDP payload sent, with headers and what was sent twice; over TCP what the kernel took";
    WireReceivedBytes "wire_received_bytes" Counter "UDP payload received; over TCP what the kernel gave";
    PacketsSent "packets_sent" Counter "packets sent by QUIC, or segments by TCP";
    PacketsLost "packets_lost" Counter "of those, the ones that were lost";
    PacketBytes "packet_bytes" Gauge "payload of a full packet";
    UdpBufferBytes "udp_buffer_bytes" Gauge "the smaller of the UDP socket's buffers, as the kernel granted it";
    Connections "connections" Gauge "connections that are open";
    Reconnects "reconnects" Counter "times a connection was made after the first ones";
    LastContactSeconds "last_contact_s" Gauge "time since the host last answered something, in seconds; 0 while it is connected";
    StaleAnswers "stale_answers" Counter "answers from what was known, because the host was out of reach";
    HostRestarts "host_restarts" Counter "times the host was found to be another run of itself";
    BadAnswers "bad_answers" Counter "answers of the host that could not be used";
    Requests "requests" Counter "requests made to the host, or answered by it";
    RequestsInFlight "requests_in_flight" Gauge "requests under way";
    HostBytes "host_bytes" Counter "content that came from the host";
    HostChunks "host_chunks" Counter "chunks of content that came from the host";
    MovedBytes "moved_bytes" Counter "content put together from what earlier versions of files had elsewhere";
    DiskChunks "disk_chunks" Counter "chunks of content that came from the cache on disk";
    MemoryReads "memory_reads" Counter "reads that were answered from memory";
    UnsentBytes "unsent_bytes" Gauge "what programs have written and the host has not accepted yet";
    UnsyncedBytes "unsynced_bytes" Gauge "what the host has accepted and no fsync has brought to its disk";
    LocksHeld "locks_held" Gauge "file locks that programs on the mount hold on the host, or that clients hold here";
    LocksLost "locks_lost" Counter "file locks that ended with their session, because the host restarted or was away for too long";
    Leases "leases" Gauge "directories whose changes the host tells, so that nobody needs to ask for them";
    Inodes "inodes" Gauge "files and directories that the kernel knows or programs have open";
    DeduplicatedBytes "deduplicated_bytes" Counter "content that programs wrote and the host had already, so that it was not sent";
    MemoryUsedBytes "memory_used_bytes" Gauge "content held in memory";
    FetchInFlightBytes "fetch_in_flight_bytes" Gauge "content on its way, from disk or host";
    PrefetchInFlight "prefetch_in_flight" Gauge "requests on their way ahead of their readers";
    PrefetchQueued "prefetch_queued" Gauge "requests ahead of their readers that wait for their turn";
    PrefetchWastedChunks "prefetch_wasted_chunks" Counter "chunks asked for ahead that nobody read";
    CacheEntries "cache_entries" Gauge "records in the cache on disk";
    CacheUsedBytes "cache_used_bytes" Gauge "room that the cache on disk takes";
    CacheLimitBytes "cache_limit_bytes" Gauge "room that the cache on disk may take";
    CacheHits "cache_hits" Counter "chunks found in the cache on disk";
    CacheMisses "cache_misses" Counter "chunks not found in the cache on disk";
    CacheDamaged "cache_damaged" Counter "records of the cache on disk that did not match their hash";
    CacheDropped "cache_dropped" Counter "records that the cache did not keep: it was behind, or the disk full";
    CacheEvictedBytes "cache_evicted_bytes" Counter "what the cache removed to stay within its limit";
    ManifestChunks "manifest_chunks" Counter "chunks whose hashes the host told ahead of the reader";
    ManifestChunksHeld "manifest_chunks_held" Counter "those of them that the cache held under another name";
    Clients "clients" Gauge "clients that are connected";
    Refused "refused" Counter "connections that were turned away";
    Strangers "strangers" Gauge "connections that were not let in yet";
    ServedBytes "served_bytes" Counter "content sent to clients, as it travelled";
    ServedSavedBytes "served_saved_bytes" Counter "content that compression kept off the wire";
    DiskInFlight "disk_in_flight" Gauge "reads at the disk";
    DiskInFlightMax "disk_in_flight_max" Gauge "most reads at the disk at once since the start";
    SendInFlight "send_in_flight" Gauge "answers whose content is on its way to a client";
    SendInFlightMax "send_in_flight_max" Gauge "most answers on their way at once since the start";
    IndexHits "index_hits" Counter "hashes told to clients that the host's index had";
    IndexMisses "index_misses" Counter "hashes told to clients for which a file was read";
    IndexUsedBytes "index_used_bytes" Gauge "room that the host's index of hashes takes on disk";
    IndexLimitBytes "index_limit_bytes" Gauge "room that it may take; 0 where it cannot be kept";
    IndexAheadBytes "index_ahead_bytes" Gauge "content hashed ahead so far";
    IndexAheadTotalBytes "index_ahead_total_bytes" Gauge "content that `host --index` has found to hash ahead";
}

/// What a metric reads: a count, or a number with a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reading {
    /// Bytes, events, things.
    Count(u64),
    /// Times.
    Real(f64),
}

impl From<u64> for Reading {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Reading {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<f64> for Reading {
    fn from(real: f64) -> Self {
        Self::Real(real)
    }
}

/// Metrics and what they read. In JSON an object with the metrics' names as keys.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Readings(BTreeMap<String, Reading>);

impl Readings {
    /// Notes what `metric` reads.
    pub fn set(&mut self, metric: Metric, reading: impl Into<Reading>) {
        self.0.insert(metric.name().to_owned(), reading.into());
    }

    /// What `metric` reads, if the daemon has it.
    pub fn get(&self, metric: Metric) -> Option<Reading> {
        self.0.get(metric.name()).copied()
    }

    /// What `metric` reads as a whole number, 0 if the daemon does not have it.
    pub fn count(&self, metric: Metric) -> u64 {
        match self.get(metric) {
            Some(Reading::Count(count)) => count,
            Some(Reading::Real(real)) => real as u64,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_words_and_unique() {
        let names: BTreeSet<_> = Metric::ALL.iter().map(|metric| metric.name()).collect();
        assert_eq!(names.len(), Metric::ALL.len());
        for name in names {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        }
    }

    #[test]
    fn every_metric_says_what_it_means() {
        for metric in Metric::ALL {
            assert!(metric.meaning().len() > 10, "{}", metric.name());
        }
    }

    #[test]
    fn readings_become_keys_and_come_back() {
        let mut readings = Readings::default();
        readings.set(Metric::RttMs, 1.5);
        readings.set(Metric::HostBytes, 3_u64);
        let text = serde_json::to_string(&readings).unwrap();
        assert_eq!(text, r#"{"host_bytes":3,"rtt_ms":1.5}"#);
        assert_eq!(serde_json::from_str::<Readings>(&text).unwrap(), readings);
        assert_eq!(readings.count(Metric::Clients), 0);
        assert_eq!(readings.get(Metric::Clients), None);
    }
}
