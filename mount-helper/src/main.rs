//! `mount.wormhole`: what mount(8) runs for file systems of type `wormhole`.
//!
//! It turns mount(8)'s call into one of `wormhole mount` and becomes that: no library of wormhole's, nothing that could be missing
//! early at boot. mount(8) calls `mount.wormhole SOURCE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`.
//!
//! Exit codes are mount(8)'s: 0, 1 wrong call, 2 system, 32 mount failure.

mod call;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use call::Call;

/// Where programs are looked for when `PATH` is absent, as it is at boot.
const PATH_AT_BOOT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where `wormhole` is looked for last.
const USUAL_PLACES: [&str; 2] = ["/usr/bin/wormhole", "/usr/local/bin/wormhole"];

/// mount(8)'s "incorrect invocation or permissions".
const EXIT_USAGE: u8 = 1;
/// mount(8)'s "system error".
const EXIT_SYSTEM: u8 = 2;

fn main() -> ExitCode {
    let call = match Call::parse(std::env::args_os().skip(1)) {
        Ok(call) => call,
        Err(error) => return fail(&error.to_string(), EXIT_USAGE),
    };
    let path =
        std::env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| PATH_AT_BOOT.into());
    let beside = std::env::current_exe().ok().and_then(|own| own.parent().map(Path::to_owned));
    let Some(program) = find(beside.as_deref(), &path, Path::is_file) else {
        return fail(
            "`wormhole` is neither beside this helper nor in PATH, /usr/bin or /usr/local/bin: install it",
            EXIT_SYSTEM,
        );
    };
    if call.fake {
        return fake(&call);
    }
    let error = command(&program, &call, path).exec();
    fail(&format!("cannot run {}: {error}", program.display()), EXIT_SYSTEM)
}

fn fail(message: &str, code: u8) -> ExitCode {
    eprintln!("mount.wormhole: {message}");
    ExitCode::from(code)
}

/// `mount -f`: everything but the mount.
fn fake(call: &Call) -> ExitCode {
    if call.mountpoint.is_dir() {
        return ExitCode::SUCCESS;
    }
    fail(&format!("{}: not a directory; create it first", call.mountpoint.display()), EXIT_USAGE)
}

/// `wormhole mount …`, with what a program needs that is started at boot.
fn command(program: &Path, call: &Call, path: OsString) -> Command {
    let mut command = Command::new(program);
    // There may be no HOME either: `wormhole` then looks the user's up.
    command.args(call.arguments()).env("PATH", path);
    command
}

/// The program: beside this helper (a symbolic link counts as what it leads to), in `PATH`, in the usual places.
fn find(beside: Option<&Path>, path: &OsString, is_file: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let listed = std::env::split_paths(path).filter(|directory| directory.is_absolute());
    beside
        .map(Path::to_owned)
        .into_iter()
        .chain(listed)
        .map(|directory| directory.join("wormhole"))
        .chain(USUAL_PLACES.map(PathBuf::from))
        .find(|candidate| is_file(candidate))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found_where(existing: &[&str], path: &str) -> Option<PathBuf> {
        find(Some(Path::new("/opt/w")), &path.into(), |candidate| {
            existing.iter().any(|known| Path::new(known) == candidate)
        })
    }

    #[test]
    fn the_nearest_program_is_taken() {
        let all = ["/opt/w/wormhole", "/p/wormhole", "/usr/bin/wormhole", "/usr/local/bin/wormhole"];
        for (nearest, place) in all.iter().enumerate() {
            assert_eq!(found_where(&all[nearest..], "/p").as_deref(), Some(Path::new(place)));
        }
        assert_eq!(found_where(&[], "/p"), None);
    }

    #[test]
    fn a_relative_place_in_path_is_not_trusted() {
        assert_eq!(found_where(&["./wormhole", "wormhole"], ".:"), None);
    }
}
