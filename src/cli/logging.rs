//! Where log lines go: standard error, a file, or the system's log for a daemon that has let go of its terminal.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::CliError;
use crate::proto::words;
use crate::transport::ticket::without_tickets;

/// Set once the daemon has no terminal any more.
static DETACHED: AtomicBool = AtomicBool::new(false);

/// syslog(3)'s facility of daemons, shifted to its place.
const FACILITY_DAEMON: u8 = 3 << 3;

/// Starts logging: warnings, with `-v` what happens, with `-vv` all of it; `WORMHOLE_LOG` overrides.
pub(super) fn start(verbose: u8, file: Option<&Path>) -> Result<(), CliError> {
    let default = match verbose {
        0 => "warn",
        1 => "wormhole=info,warn",
        _ => "wormhole=debug,info",
    };
    let filter = EnvFilter::try_from_env("WORMHOLE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false);
    match file {
        Some(path) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|error| CliError::system(format!("log file {}: {error}", path.display())))?;
            builder.with_writer(FileSink(file)).init();
        }
        None => builder.with_writer(Sink).init(),
    }
    Ok(())
}

/// From now on lines go to the system's log, because standard error is about to be closed.
pub(super) fn detach() {
    DETACHED.store(true, Ordering::Relaxed);
}

/// Whether standard error leads nowhere.
pub(super) fn is_detached() -> bool {
    DETACHED.load(Ordering::Relaxed)
}

/// Longest line of the log, in characters.
const LINE_CHARS_MAX: usize = 8_000;

/// Makes each line fit for a log: it is one, of bounded length, has nothing that a terminal obeys, and no ticket, whoever wrote it.
struct Fit<W>(W);

impl<W: Write> Write for Fit<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let fit = words::line(&without_tickets(text.trim_end_matches('\n')), LINE_CHARS_MAX).into_owned();
        self.0.write_all((fit + "\n").as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A file.
struct FileSink(File);

impl<'a> MakeWriter<'a> for FileSink {
    type Writer = Fit<&'a File>;

    fn make_writer(&'a self) -> Self::Writer {
        Fit(&self.0)
    }
}

/// Standard error, until [`detach`].
struct Sink;

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Fit<Box<dyn Write + 'a>>;

    fn make_writer(&'a self) -> Self::Writer {
        writer(Level::INFO)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        writer(*metadata.level())
    }
}

fn writer(level: Level) -> Fit<Box<dyn Write>> {
    if is_detached() {
        return Fit(Box::new(SystemLog { severity: severity(level) }));
    }
    Fit(Box::new(io::stderr()))
}

/// syslog(3)'s numbers.
const fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// One line, one datagram to `/dev/log`. Without a system log the line is lost.
struct SystemLog {
    severity: u8,
}

impl Write for SystemLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut datagram =
            format!("<{}>wormhole[{}]: ", FACILITY_DAEMON | self.severity, std::process::id()).into_bytes();
        datagram.extend_from_slice(line.trim_ascii_end());
        // A log that is not there must not stop a file system.
        if let Ok(socket) = UnixDatagram::unbound()
            && socket.set_nonblocking(true).is_ok()
        {
            let _ = socket.send_to(&datagram, "/dev/log");
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard input, output and error lead nowhere from now on.
pub(super) fn close_standard_streams() -> io::Result<()> {
    let nowhere = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&nowhere)?;
    nix::unistd::dup2_stdout(&nowhere)?;
    nix::unistd::dup2_stderr(&nowhere)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_stays_one_and_holds_no_ticket() {
        let mut log = Vec::new();
        let line = format!("WARN refused: \u{1b}[2J\nwormhole: fine, whm1{}\n", "a".repeat(90));
        Fit(&mut log).write_all(line.as_bytes()).unwrap();
        Fit(&mut log).write_all(&vec![b'0'; 100_000]).unwrap();
        let text = String::from_utf8(log).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "WARN refused: \\u{1b}[2J\\nwormhole: fine, whm1…");
        assert!(lines.len() == 2 && lines[1].chars().count() == LINE_CHARS_MAX + 1);
    }
}
