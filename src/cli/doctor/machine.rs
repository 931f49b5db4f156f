//! What this machine offers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::Mode;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access, geteuid};

use super::Row;
use crate::cli::mount::FUSERMOUNT_MISSING;
use crate::cli::words::{amount, count};
use crate::config::{Environment, Side};
use crate::fuse;
use crate::host::StateDir;
use crate::io::{Engine, EngineConfig, private};
use crate::transport::route::{Route, UDP_PAYLOAD_BYTES_MIN};
use crate::transport::{DEFAULT_PORT, SocketBuffers};

/// Where mount(8) looks.
const MOUNT_HELPERS: [&str; 2] = ["/sbin/mount.wormhole", "/usr/sbin/mount.wormhole"];

/// From this version on shared mappings of large files work.
const KERNEL_WANTED: (u32, u32) = (6, 6);

/// 2025, in seconds: before that this program was not written.
const CLOCK_SECONDS_MIN: u64 = 1_735_689_600;
/// 2100, in seconds.
const CLOCK_SECONDS_MAX: u64 = 4_102_444_800;
const YEAR_SECONDS: u64 = 31_556_952;

/// Share of the disk, in per cent, that the cache leaves free when nobody says otherwise.
const FREE_PERCENT_MIN: u64 = 5;

/// An address that nobody has: the kernel is asked how it would send there, and nothing is sent.
const ELSEWHERE: [u8; 4] = [192, 0, 2, 1];

pub(super) fn rows(cache_dir: Option<PathBuf>) -> Vec<Row> {
    let mut rows = vec![fuse_device(), fusermount(), mount_helper(), kernel()];
    rows.extend(disk_engine());
    rows.extend([udp_buffers(), packets(), clock(seconds_now())]);
    rows.push(cache(cache_dir));
    let environment = Environment::of_process();
    rows.extend(environment.state_dir(Side::Host).ok().and_then(|path| host_keys(&path)));
    rows
}

/// What a host of this machine lets in, where there has been one.
fn host_keys(state: &Path) -> Option<Row> {
    const CHECK: &str = "keys of the host";
    const CURE: &str = "mend or remove it; `wormhole key list` shows who may come in";
    if !state.is_dir() {
        return None;
    }
    if let Err(error) = private::check(state) {
        return Some(Row::fail(CHECK, format!("{}: {error}", state.display()), "see there"));
    }
    let problems =
        StateDir::open(state).map_or_else(|error| vec![error.to_string()], |state| state.problems());
    Some(match problems.as_slice() {
        [] => Row::ok(CHECK, "all lines of authorized_keys and all tickets are understood"),
        problems => Row::warn(CHECK, problems.join("; "), CURE),
    })
}

fn fuse_device() -> Row {
    const CHECK: &str = "FUSE device";
    match fuse::check_device() {
        Ok(()) => Row::ok(CHECK, "/dev/fuse can be opened"),
        Err(error) => Row::fail(CHECK, error.to_string(), error.remedy()),
    }
}

fn fusermount() -> Row {
    const CHECK: &str = "fusermount3";
    match (crate::cli::is_in_path("fusermount3"), geteuid().is_root()) {
        (true, _) => Row::ok(CHECK, "found"),
        (false, true) => Row::warn(CHECK, "not found; root mounts without it", FUSERMOUNT_MISSING),
        (false, false) => Row::fail(CHECK, "not found", FUSERMOUNT_MISSING),
    }
}

fn mount_helper() -> Row {
    const CHECK: &str = "mount helper";
    let runs = |path: &&&str| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    match MOUNT_HELPERS.iter().find(runs) {
        Some(path) => Row::ok(CHECK, *path),
        None => Row::warn(
            CHECK,
            "/sbin/mount.wormhole is missing: mount(8) and fstab cannot mount",
            "install the package, or the program `mount-wormhole` under that name",
        ),
    }
}

fn kernel() -> Row {
    const CHECK: &str = "kernel";
    let release = nix::sys::utsname::uname()
        .map_or_else(|error| error.desc().to_owned(), |found| found.release().to_string_lossy().into_owned());
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_WANTED {
        return Row::ok(CHECK, format!("Linux {release}"));
    }
    let (wanted_major, wanted_minor) = KERNEL_WANTED;
    let found = format!("Linux {release}: programs that map large files as shared memory fail");
    Row::warn(CHECK, found, format!("Linux {wanted_major}.{wanted_minor} or newer"))
}

/// The engine that a host reads by, started and stopped; and whether its buffers could be locked.
fn disk_engine() -> [Row; 2] {
    const CHECK: &str = "disk engine";
    let config = EngineConfig::default();
    // What it would warn of is said here.
    let silent = tracing::subscriber::NoSubscriber::default();
    let engine = tracing::subscriber::with_default(silent, || Engine::start(&config));
    let (row, refusal) = match &engine {
        Ok(engine) if engine.name() == "io_uring" => (Row::ok(CHECK, "io_uring"), engine.fallback_reason()),
        Ok(engine) => {
            let found = format!("{}: io_uring cannot be used, hosting is slower", engine.name());
            let reason = engine.fallback_reason().unwrap_or("no reason was given");
            (Row::warn(CHECK, found, reason), Some("first mend io_uring"))
        }
        Err(error) => (Row::fail(CHECK, "no host can run here", error.to_string()), Some("first mend that")),
    };
    [row, locked_memory(config.pool_bytes as u64, refusal)]
}

/// Only `io_uring` locks memory, and for root the limit does not count.
fn locked_memory(wanted_bytes: u64, refusal: Option<&str>) -> Row {
    const CHECK: &str = "locked memory";
    let wanted = amount(wanted_bytes);
    let Some(reason) = refusal else {
        return Row::ok(CHECK, format!("a host's {wanted} of buffers can be locked"));
    };
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    let found = format!("a host's {wanted} of buffers were not locked, the limit is {}", shown(limit));
    Row::warn(CHECK, found, reason)
}

fn shown(limit: u64) -> String {
    if limit == u64::MAX { "any amount".to_owned() } else { amount(limit) }
}

fn udp_buffers() -> Row {
    const CHECK: &str = "UDP buffers";
    match SocketBuffers::granted() {
        Ok(buffers) => {
            let (granted, wanted) = (buffers.smaller_bytes() as u64, buffers.wanted_bytes as u64);
            let found = format!("{} granted, {} wanted", amount(granted), amount(wanted));
            if buffers.clamped() { Row::warn(CHECK, found, buffers.help()) } else { Row::ok(CHECK, found) }
        }
        Err(error) => Row::fail(CHECK, error.to_string(), "allow this process to open UDP sockets"),
    }
}

fn packets() -> Row {
    const CHECK: &str = "packets";
    let help = "on the local network nothing may be wrong; else set a default route";
    match Route::ask((ELSEWHERE, DEFAULT_PORT).into()) {
        Ok(route) if route.udp_payload_bytes_max > UDP_PAYLOAD_BYTES_MIN => {
            let bytes = count(u64::from(route.udp_payload_bytes_max));
            Row::ok(CHECK, format!("{bytes} bytes on the default route"))
        }
        Ok(_) => Row::warn(
            CHECK,
            format!("the default route takes less than QUIC's {UDP_PAYLOAD_BYTES_MIN} bytes, or just that"),
            "raise the interface's MTU to 1280 or more (`ip link set DEVICE mtu 1500`)",
        ),
        Err(error) => Row::warn(CHECK, format!("no default route: {error}"), help),
    }
}

/// Tickets expire by the clock.
fn clock(seconds: u64) -> Row {
    let found = format!("the year {}", 1970 + seconds / YEAR_SECONDS);
    if (CLOCK_SECONDS_MIN..CLOCK_SECONDS_MAX).contains(&seconds) {
        return Row::ok("clock", found);
    }
    Row::warn("clock", found, "set the clock (`timedatectl set-ntp true`): tickets expire by it")
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn cache(given: Option<PathBuf>) -> Row {
    const CHECK: &str = "cache";
    let directory = match given.map_or_else(|| Environment::of_process().cache_dir(), Ok) {
        Ok(directory) => directory,
        Err(error) => return Row::warn(CHECK, "no place for it", error.to_string()),
    };
    // What is missing is made by the first mount.
    let base = directory.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
    let place = directory.display();
    if let Err(error) = access(base, AccessFlags::W_OK | AccessFlags::X_OK) {
        let found = format!("{place} cannot be written ({}): nothing is kept", error.desc());
        return Row::warn(CHECK, found, "name another directory with `wormhole mount --cache-dir DIR`");
    }
    match statvfs(base) {
        Ok(disk) => {
            let (free, all) = (disk.blocks_available(), disk.blocks().max(1));
            let direct = if takes_direct_io(base) { "" } else { ", no direct I/O: through the page cache" };
            let found = format!("{place}: {} free{direct}", amount(free * disk.fragment_size()));
            if free * 100 >= all * FREE_PERCENT_MIN {
                return Row::ok(CHECK, found);
            }
            let help =
                format!("free some: {FREE_PERCENT_MIN}% of the disk are left alone, so nothing is kept");
            Row::warn(CHECK, found, help)
        }
        Err(error) => Row::warn(CHECK, format!("{place}: {}", error.desc()), "mount the disk it is on"),
    }
}

/// Tried with a file that never has a name.
fn takes_direct_io(directory: &Path) -> bool {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_DIRECT | OFlag::O_CLOEXEC;
    open(directory, flags, Mode::S_IRUSR | Mode::S_IWUSR).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::io::denied::{Denial, with_denial};

    #[test]
    fn a_clock_that_was_never_set_is_told() {
        for (seconds, verdict, year) in [
            (0, Verdict::Warn, "1970"),
            (1_790_000_000, Verdict::Ok, "2026"),
            (1 << 33, Verdict::Warn, "2242"),
        ] {
            let row = clock(seconds);
            assert!(row.verdict == verdict && row.found.contains(year), "{row:?}");
        }
    }

    #[test]
    fn an_engine_that_is_kept_from_its_ring_is_told() {
        for (denial, verdicts, words) in [
            (Denial::SETUP, [Verdict::Warn, Verdict::Warn], "blocking"),
            (Denial::BUFFERS, [Verdict::Ok, Verdict::Warn], "io_uring"),
        ] {
            let rows = with_denial(denial, disk_engine);
            assert_eq!([rows[0].verdict, rows[1].verdict], verdicts, "{rows:?}");
            assert!(rows[0].found.contains(words), "{rows:?}");
        }
        let rows = with_denial(Denial::SETUP, disk_engine);
        assert!(rows[0].help.as_deref().unwrap().contains("io_uring"), "{rows:?}");
    }

    #[test]
    fn lines_of_keys_that_let_nobody_in_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(host_keys(&path), None);
        drop(StateDir::open(&path).unwrap());
        assert_eq!(host_keys(&path).unwrap().verdict, Verdict::Ok);
        fs::write(path.join("authorized_keys"), "nonsense\n").unwrap();
        let row = host_keys(&path).unwrap();
        assert!(row.verdict == Verdict::Warn && row.found.contains("line 1"), "{row:?}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(host_keys(&path).unwrap().verdict, Verdict::Fail);
    }
}
