//! The measurements in their order; each begins with nothing of the mount in memory or on disk unless it says otherwise.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::wormhole::transport::TransportKind;
use serde_json::Value;

use super::ceiling::{self, Ceiling};
use super::net::Net;
use super::probe::{self, Random};
use super::process::run;
use super::report::Report;
use super::sshfs::{self, Sshfs};
use super::wormhole::{Host, Mount};
use super::{Arguments, Failure, Scenario};

const MIB: u64 = 1 << 20;

/// Random reads of one measurement; enough for a 99th percentile.
const RANDOM_READS: usize = 200;
const SEEKS: usize = 20;

/// What the transports reach alone, and what the other parts of a cold read, and of a write, cost in processor time, in seconds per
/// GiB.
struct Parts {
    quic: Ceiling,
    tcp: Ceiling,
    of_reading: f64,
    of_writing: f64,
}

impl Parts {
    fn transport(&self, name: &str) -> &Ceiling {
        if name == "tcp" { &self.tcp } else { &self.quic }
    }
}

struct Bench<'a> {
    arguments: &'a Arguments,
    net: &'a Net,
    /// Hosted files.
    data: PathBuf,
    /// Keys, cache and mount points; removed at the end.
    state: PathBuf,
    report: Report,
}

/// Everything that was asked for.
pub(crate) fn run_all(arguments: &Arguments, net: &Net) -> Result<Report, Failure> {
    let data = arguments.data_dir.join(format!("wormhole-bench-{}", std::process::id()));
    let state = arguments.cache_dir.join(format!("wormhole-bench-{}", std::process::id()));
    fs::create_dir_all(&data)?;
    fs::create_dir_all(&state)?;
    let report = Report::new(&net.name);
    let mut bench = Bench { arguments, net, data, state, report };
    let done = bench.run();
    fs::remove_dir_all(&bench.data)?;
    fs::remove_dir_all(&bench.state)?;
    done?;
    Ok(bench.report)
}

impl Bench<'_> {
    fn run(&mut self) -> Result<(), Failure> {
        let bytes = self.arguments.size_mib * MIB;
        let file = self.data.join("large");
        probe::write_random(&file, bytes, 1)?;
        let mut raw = None;
        if self.arguments.wants(Scenario::Ceilings) {
            raw = Some(self.ceilings(&file, bytes)?);
        }
        // What was just written is too young to be kept in a cache.
        std::thread::sleep(std::time::Duration::from_millis(2200));
        if self.arguments.wants(Scenario::Cold) {
            self.cold(bytes, raw.as_ref())?;
        }
        if self.arguments.wants(Scenario::Remount) {
            self.remount(bytes)?;
        }
        if self.arguments.wants(Scenario::Write) {
            self.write(&file, bytes, raw.as_ref())?;
        }
        if self.arguments.wants(Scenario::Latency) {
            self.latency()?;
        }
        fs::remove_file(file)?;
        if self.arguments.wants(Scenario::Readers) {
            self.readers()?;
        }
        Ok(())
    }

    /// The parts alone.
    fn ceilings(&mut self, file: &Path, bytes: u64) -> Result<Parts, Failure> {
        let disk = ceiling::raw_disk(file)?;
        let quic = ceiling::raw(self.net, TransportKind::Quic, bytes)?;
        let tcp = ceiling::raw(self.net, TransportKind::Tcp, bytes)?;
        let hash = ceiling::blake3(bytes);
        let (write, way) = ceiling::cache_write(&self.state, bytes)?;
        let writing = format!("writing the cache's bytes {way}");
        let cached = ceiling::fuse_stub(&self.state, bytes, false)?;
        let direct = ceiling::fuse_stub(&self.state, bytes, true)?;
        for (name, ceiling) in [
            ("raw disk (`cat` where the file lies)", &disk),
            ("raw QUIC, both ends, 8 streams", &quic),
            ("raw TCP with TLS, both ends, 8 streams", &tcp),
            ("BLAKE3, one core", &hash),
            (writing.as_str(), &write),
            ("FUSE stub through the page cache, reader included", &cached),
            ("FUSE stub with direct I/O, reader included", &direct),
        ] {
            self.report.add(name, ceiling.mb_per_second, "MB/s");
            self.report.add(&format!("{name}, processor"), ceiling.cpu_seconds_per_gib, "s/GiB");
        }
        let of_reading =
            2.0 * hash.cpu_seconds_per_gib + write.cpu_seconds_per_gib + cached.cpu_seconds_per_gib;
        let of_writing = self.parts_of_writing(file, bytes, &disk)? + 2.0 * hash.cpu_seconds_per_gib;
        Ok(Parts { quic, tcp, of_reading, of_writing })
    }

    /// What FUSE and the disk cost a writer. Both read the file, which a writer does once.
    fn parts_of_writing(&mut self, file: &Path, bytes: u64, disk: &Ceiling) -> Result<f64, Failure> {
        if !self.arguments.wants(Scenario::Write) {
            return Ok(0.0);
        }
        let stub = ceiling::fuse_stub_write(&self.state, file, bytes)?;
        let lies = ceiling::raw_write(&self.data, file, bytes)?;
        for (name, part) in
            [("FUSE stub, written to, writer included", &stub), ("written and synced where it lies", &lies)]
        {
            self.report.add(name, part.mb_per_second, "MB/s");
            self.report.add(&format!("{name}, processor"), part.cpu_seconds_per_gib, "s/GiB");
        }
        Ok(stub.cpu_seconds_per_gib + lies.cpu_seconds_per_gib - disk.cpu_seconds_per_gib)
    }

    fn has_peer(&self) -> bool {
        self.arguments.sshfs && sshfs::is_installed()
    }

    fn cold_sshfs(&self, bytes: u64) -> Result<Ceiling, Failure> {
        let peer = Sshfs::start(self.net, &self.data, &self.state)?;
        let before = peer.cpu_seconds();
        let took = run(Command::new("timeout").args(["60", "cat"]).arg(peer.point.join("large")))?;
        let cpu = took.cpu_seconds + peer.cpu_seconds() - before;
        Ok(Ceiling::new(bytes, took.seconds, cpu))
    }

    /// The file, read through a mount that knows nothing; in turns with sshfs, as the machine's speed wanders.
    fn cold(&mut self, bytes: u64, parts: Option<&Parts>) -> Result<(), Failure> {
        let host = Host::start(self.net, &self.data, &self.state)?;
        let (mut runs, mut peer_runs, mut transport) = (Vec::new(), Vec::new(), Value::Null);
        for _ in 0..self.arguments.runs {
            if self.has_peer() {
                peer_runs.push(self.cold_sshfs(bytes)?);
            }
            self.forget_cache()?;
            let mount = Mount::start(self.net, &host, &self.state, &self.arguments.mount_options())?;
            let before = host.daemon.cpu_seconds() + mount.daemon.cpu_seconds();
            let took = run(Command::new("cat").arg(mount.point.join("large")))?;
            let cpu = took.cpu_seconds + host.daemon.cpu_seconds() + mount.daemon.cpu_seconds() - before;
            runs.push(Ceiling::new(bytes, took.seconds, cpu));
            transport = mount.status()?["transport"].take();
            mount.stop()?;
        }
        let peer = self.report_median("sshfs, one cold `cat`", peer_runs);
        let Some(Ceiling { mb_per_second: speed, cpu_seconds_per_gib: cpu }) = median(runs) else {
            return Ok(());
        };
        let transport = transport.as_str().unwrap_or_default();
        let what = format!("one cold `cat` over {transport}");
        let what = what.as_str();
        self.report.add(what, speed, "MB/s");
        let raw = parts.map(|parts| (parts, parts.transport(transport)));
        if let Some((_, raw)) = raw {
            self.report.add_beside(what, speed, "MB/s", raw.mb_per_second, "raw transport");
        }
        if let Some(mbit) = self.arguments.link_mbit {
            self.report.add_beside(what, speed, "MB/s", mbit / 8.0, "the link");
        }
        if let Some(peer) = peer {
            self.report.add_beside(what, speed, "MB/s", peer, "sshfs");
        }
        let sum = raw.map(|(parts, raw)| parts.of_reading + raw.cpu_seconds_per_gib);
        self.report_processor(cpu, sum);
        Ok(())
    }

    fn remount(&mut self, bytes: u64) -> Result<(), Failure> {
        let host = Host::start(self.net, &self.data, &self.state)?;
        self.forget_cache()?;
        let mount = Mount::start(self.net, &host, &self.state, &self.arguments.mount_options())?;
        run(Command::new("cat").arg(mount.point.join("large")))?;
        mount.stop()?;
        let segments = self.state.join("cache/v1/segments");
        let (cached, direct) =
            (ceiling::fuse_stub(&self.state, bytes, false)?, ceiling::fuse_stub(&self.state, bytes, true)?);
        let stubs = [(&cached, "FUSE stub, page cache"), (&direct, "FUSE stub, direct I/O")];
        // As a user meets it: what the kernel still has of the cache's files is used.
        self.cat_after_remount(&host, bytes, &["`cat` right after a remount"], &stubs)?;
        ceiling::forget_pages(&segments)?;
        let disk = ceiling::disk_read(&segments)?;
        let beside: Vec<_> = stubs.into_iter().chain(disk.as_ref().map(|disk| (disk, "the disk"))).collect();
        let reads =
            ["`cat` after a remount, nothing of the cache in memory", "the same again", "and a third time"];
        self.cat_after_remount(&host, bytes, &reads, &beside)
    }

    /// Mounts, and reads the file as often as there are names for it.
    fn cat_after_remount(
        &mut self,
        host: &Host,
        bytes: u64,
        names: &[&str],
        beside: &[(&Ceiling, &str)],
    ) -> Result<(), Failure> {
        let mount = Mount::start(self.net, host, &self.state, &self.arguments.mount_options())?;
        for what in names {
            let before = mount.daemon.cpu_seconds();
            let took = run(Command::new("cat").arg(mount.point.join("large")))?;
            let cpu = took.cpu_seconds + mount.daemon.cpu_seconds() - before;
            let took = Ceiling::new(bytes, took.seconds, cpu);
            for (ceiling, name) in beside {
                self.report.add_beside(what, took.mb_per_second, "MB/s", ceiling.mb_per_second, name);
            }
            self.report.add(&format!("{what}, processor"), took.cpu_seconds_per_gib, "s/GiB");
        }
        let received = mount.status()?["wire_received_bytes"].as_f64().unwrap_or(f64::NAN);
        self.report.add("received over the wire for it", received / 1e3, "kB");
        mount.stop()
    }

    /// `file` written into an empty folder of the mount, and synced; each time under the same name, which is free again. In turns
    /// with sshfs.
    fn write(&mut self, file: &Path, bytes: u64, parts: Option<&Parts>) -> Result<(), Failure> {
        fs::create_dir_all(self.data.join("written"))?;
        let peer =
            if self.has_peer() { Some(Sshfs::start(self.net, &self.data, &self.state)?) } else { None };
        let host = Host::start(self.net, &self.data, &self.state)?;
        // Content that the host has already would not be sent.
        let options = format!("{},dedup=off", self.arguments.mount_options());
        let mount = Mount::start(self.net, &host, &self.state, &options)?;
        let (mut runs, mut peer_runs) = (Vec::new(), Vec::new());
        for _ in 0..self.arguments.runs {
            if let Some(peer) = &peer {
                peer_runs.push(written(file, bytes, &peer.point, || peer.cpu_seconds())?);
            }
            let used = || host.daemon.cpu_seconds() + mount.daemon.cpu_seconds();
            runs.push(written(file, bytes, &mount.point, used)?);
        }
        let peer = self.report_median("sshfs, written and synced", peer_runs);
        let transport = mount.status()?["transport"].take();
        let transport = transport.as_str().unwrap_or_default();
        let what = format!("written and synced over {transport}");
        let what = what.as_str();
        let Some(Ceiling { mb_per_second: speed, cpu_seconds_per_gib: cpu }) = median(runs) else {
            return Ok(());
        };
        self.report.add(what, speed, "MB/s");
        if let Some(peer) = peer {
            self.report.add_beside(what, speed, "MB/s", peer, "sshfs");
        }
        if let Some(mbit) = self.arguments.link_mbit {
            self.report.add_beside(what, speed, "MB/s", mbit / 8.0, "the link");
        }
        let sum = parts.map(|parts| parts.of_writing + parts.transport(transport).cpu_seconds_per_gib);
        self.report_processor(cpu, sum);
        mount.stop()
    }

    fn report_processor(&mut self, cpu: f64, sum_of_parts: Option<f64>) {
        let what = "processor of both daemons and the program";
        match sum_of_parts {
            Some(sum) => self.report.add_beside(what, cpu, "s/GiB", sum, "sum of the parts"),
            None => self.report.add(what, cpu, "s/GiB"),
        }
    }

    /// Reports the median of `runs`, with its processor time. Returns its rate in megabytes a second.
    fn report_median(&mut self, what: &str, runs: Vec<Ceiling>) -> Option<f64> {
        let median = median(runs)?;
        self.report.add(what, median.mb_per_second, "MB/s");
        self.report.add(&format!("{what}, processor"), median.cpu_seconds_per_gib, "s/GiB");
        Some(median.mb_per_second)
    }

    fn latency(&mut self) -> Result<(), Failure> {
        let host = Host::start(self.net, &self.data, &self.state)?;
        let mut firsts = Vec::new();
        for _ in 0..self.arguments.runs {
            self.forget_cache()?;
            let mount = Mount::start(self.net, &host, &self.state, &self.arguments.mount_options())?;
            fs::metadata(&mount.point)?;
            firsts.push(probe::first_bytes_ms(&mount.point.join("large"))?);
            mount.stop()?;
        }
        firsts.sort_by(f64::total_cmp);
        self.forget_cache()?;
        let mount = Mount::start(self.net, &host, &self.state, &self.arguments.mount_options())?;
        let large = mount.point.join("large");
        let rtt = mount.status()?["rtt_ms"].as_f64().unwrap_or(f64::NAN);
        let random = probe::random_reads_ms(&large, RANDOM_READS, &mut Random(2))?;
        mount.stop()?;
        self.forget_cache()?;
        let mount = Mount::start(self.net, &host, &self.state, &self.arguments.mount_options())?;
        let scrub = probe::scrub_seconds(&mount.point.join("large"), SEEKS, &mut Random(3))?;
        mount.stop()?;
        self.report.add("round-trip time, measured by the transport", rtt, "ms");
        self.report.add_beside(
            "look-up, open and first 64 KiB of a cold file",
            firsts[firsts.len() / 2],
            "ms",
            rtt,
            "round trip",
        );
        self.report.add_beside(
            "random 4 KiB read, median",
            probe::percentile(&random, 0.5),
            "ms",
            rtt,
            "round trip",
        );
        self.report.add_beside(
            "random 4 KiB read, 99th percentile",
            probe::percentile(&random, 0.99),
            "ms",
            rtt,
            "round trip",
        );
        self.report.add_beside(
            "20 seeks, each reading 2 MiB",
            scrub * 1e3,
            "ms",
            SEEKS as f64 * (rtt + 40.0),
            "20 x (round trip + 40 ms)",
        );
        Ok(())
    }

    fn readers(&mut self) -> Result<(), Failure> {
        let (count, each) = (self.arguments.readers, self.arguments.reader_mib * MIB);
        for number in 0..count {
            probe::write_random(&self.data.join(format!("reader {number}")), each, 100 + number as u64)?;
        }
        std::thread::sleep(std::time::Duration::from_millis(2200));
        self.forget_cache()?;
        let host = Host::start(self.net, &self.data, &self.state)?;
        let mount = Mount::start(self.net, &host, &self.state, &self.arguments.mount_options())?;
        let files: Vec<PathBuf> =
            (0..count).map(|number| mount.point.join(format!("reader {number}"))).collect();
        let times = probe::parallel_seconds(&files, each)?;
        let slowest = times[times.len() - 1];
        self.report.add(
            &format!("{count} readers of {} MiB each, together", each / MIB),
            (each * count as u64) as f64 / 1e6 / slowest,
            "MB/s",
        );
        self.report.add_beside("slowest reader", slowest, "s", times[0], "fastest reader");
        self.report.add_beside("host's memory at most", host.daemon.peak_mib(), "MiB", 256.0, "bound");
        self.report.add_beside("mount's memory at most", mount.daemon.peak_mib(), "MiB", 256.0, "bound");
        mount.stop()
    }

    fn forget_cache(&self) -> Result<(), Failure> {
        match fs::remove_dir_all(self.state.join("cache")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn median(mut runs: Vec<Ceiling>) -> Option<Ceiling> {
    runs.sort_by(|a, b| a.mb_per_second.total_cmp(&b.mb_per_second));
    let middle = runs.len() / 2;
    runs.into_iter().nth(middle)
}

/// Writes `file` below `point`, syncs and removes it. Counts the processor time of the writer and of the daemons (`used`).
fn written(file: &Path, bytes: u64, point: &Path, used: impl Fn() -> f64) -> Result<Ceiling, Failure> {
    let target = point.join("written/large");
    let before = used();
    let took = run(&mut ceiling::write_command(file, &target, &["conv=fsync"]))?;
    let cpu = took.cpu_seconds + used() - before;
    fs::remove_file(&target)?;
    Ok(Ceiling::new(bytes, took.seconds, cpu))
}
