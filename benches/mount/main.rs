//! Whole-mount benchmark: what programs get from a mount, beside what the parts can do alone, in one run.
//!
//! `cargo bench --bench mount -- --net loopback` (or `veth`, or `--host-netns`/`--client-netns` of an emulated link)
//! prints a table, and JSON with `--json FILE`. `benches/README.md` has the results and how they were made.

mod ceiling;
mod net;
mod probe;
mod process;
mod report;
mod scenario;
mod sshfs;
mod wormhole;

use std::path::PathBuf;

use ::wormhole::transport::TransportChoice;
use clap::{Parser, ValueEnum};

use net::Net;

/// Anything that keeps a measurement from being taken.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
#[command(about = "Measures a mount beside the ceilings of its parts")]
struct Arguments {
    /// The network between host and client
    #[arg(long, value_enum, default_value = "loopback")]
    net: NetKind,
    /// Namespace of the host, for `--net given`
    #[arg(long, default_value = "wb")]
    host_netns: String,
    /// Namespace of the client, for `--net given`
    #[arg(long, default_value = "wa")]
    client_netns: String,
    /// Address of the host, for `--net given`
    #[arg(long, default_value = "10.77.0.2")]
    address: String,
    /// Rate of the link in Mbit/s, for `--net given`: its share is printed
    #[arg(long)]
    link_mbit: Option<f64>,
    /// What to measure; everything unless named
    #[arg(long, value_enum)]
    only: Vec<Scenario>,
    /// Size of the file that is read and written, in MiB
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// How many files are read at a time by the parallel readers
    #[arg(long, default_value_t = 16)]
    readers: usize,
    /// Size of each of their files, in MiB; all of them lie in --data-dir
    #[arg(long, default_value_t = 512)]
    reader_mib: u64,
    /// How often each cold read is done
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// What carries content: auto, quic or tcp
    #[arg(long, default_value_t = TransportChoice::Auto)]
    transport: TransportChoice,
    /// More mount options
    #[arg(long, default_value = "")]
    options: String,
    /// Where the hosted files lie: memory, so that no disk is measured
    #[arg(long, default_value = "/dev/shm")]
    data_dir: PathBuf,
    /// Where the cache lies
    #[arg(long, default_value = "/var/tmp")]
    cache_dir: PathBuf,
    /// Measure sshfs too, where it is installed
    #[arg(long)]
    sshfs: bool,
    /// Also write the results here
    #[arg(long)]
    json: Option<PathBuf>,
    /// One end of a ceiling; used by the program itself
    #[arg(long, hide = true)]
    role: Option<String>,
    #[arg(long, hide = true, default_value = "")]
    key: String,
    #[arg(long, hide = true, default_value_t = 0)]
    bytes: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NetKind {
    Loopback,
    Veth,
    Given,
}

/// A group of measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// The parts alone
    Ceilings,
    /// One cold `cat`
    Cold,
    /// The same after a remount, from the disk cache
    Remount,
    /// One file written and synced
    Write,
    /// First bytes, random reads, seeks
    Latency,
    /// Many readers at once
    Readers,
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    match arguments.role.as_deref() {
        Some("raw-host") => return ceiling::raw_host(&arguments.address, arguments.transport),
        Some("raw-client") => {
            return ceiling::raw_client(
                &arguments.address,
                arguments.transport,
                &arguments.key,
                arguments.bytes,
            );
        }
        Some("stub") => {
            return ceiling::stub(&arguments.data_dir, arguments.bytes, arguments.key == "direct");
        }
        Some(role) => return Err(format!("no such role: {role}").into()),
        None => {}
    }
    let net = match arguments.net {
        NetKind::Loopback => Net::loopback(),
        NetKind::Veth => Net::veth()?,
        NetKind::Given => {
            Net::given("given", &arguments.host_netns, &arguments.client_netns, &arguments.address)
        }
    };
    let report = scenario::run_all(&arguments, &net)?;
    report.print();
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

impl Arguments {
    /// Options of every mount.
    fn mount_options(&self) -> String {
        let comma = if self.options.is_empty() { "" } else { "," };
        format!("transport={}{comma}{}", self.transport, self.options)
    }

    fn wants(&self, scenario: Scenario) -> bool {
        self.only.is_empty() || self.only.contains(&scenario)
    }
}
