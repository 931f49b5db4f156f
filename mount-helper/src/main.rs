//! `mount.wormhole`: the program that mount(8) runs for file systems of type `wormhole`.
//!
//! It translates the call of mount(8) and executes `wormhole mount`. It links no library of wormhole, so
//! nothing can be missing early at boot. mount(8) calls `mount.wormhole SOURCE DIR [-sfnv] [-N NAMESPACE] [-t
//! TYPE] [-o OPTIONS]`.
//!
//! Exit codes are those of mount(8): 0, 1 wrong call, 2 system, 32 mount failure.

mod call;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use call::Call;

/// Search path if `PATH` is absent, as it is at boot.
const PATH_AT_BOOT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Last places in which `wormhole` is searched.
const USUAL_PLACES: [&str; 2] = ["/usr/bin/wormhole", "/usr/local/bin/wormhole"];

/// "incorrect invocation or permissions" of mount(8).
const EXIT_USAGE: u8 = 1;
/// "system error" of mount(8).
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

/// Does everything except the mount, for `mount -f`.
fn fake(call: &Call) -> ExitCode {
    if call.mountpoint.is_dir() {
        return ExitCode::SUCCESS;
    }
    fail(&format!("{}: not a directory; create it first", call.mountpoint.display()), EXIT_USAGE)
}

/// Returns the command `wormhole mount …`, with the environment that a program at boot lacks.
fn command(program: &Path, call: &Call, path: OsString) -> Command {
    let mut command = Command::new(program);
    // `HOME` may be missing, too. `wormhole` then looks it up in the user database.
    command.args(call.arguments()).env("PATH", path);
    command
}

/// Finds the program: next to this helper (after symbolic links), in `PATH`, in the usual places.
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
