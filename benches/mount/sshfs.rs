//! sshfs beside the mount, in the same run and on the same network, where it and an SSH server are installed.
//!
//! The server is Debian's own with a configuration, a port and keys of this run, so nothing of the machine's is touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Failure;
use super::net::Net;
use super::process::{Daemon, run, wait_until};
use super::wormhole::is_mounted;

const SERVER: &str = "/usr/sbin/sshd";
const PORT: &str = "4422";

/// An sshfs mount and the server behind it.
pub(crate) struct Sshfs {
    server: Daemon,
    client: Daemon,
    pub point: PathBuf,
}

/// Whether the peer can be measured here.
pub(crate) fn is_installed() -> bool {
    Path::new(SERVER).exists() && Command::new("sshfs").arg("--version").output().is_ok()
}

impl Sshfs {
    /// Serves and mounts `source`, tuned as its users tune it: a fast cipher, several connections, the kernel's cache.
    pub(crate) fn start(net: &Net, source: &Path, state: &Path) -> Result<Self, Failure> {
        let folder = state.join("ssh");
        fs::create_dir_all(&folder)?;
        fs::create_dir_all("/run/sshd")?;
        let key = |name: &str| folder.join(name).display().to_string();
        for name in ["host_key", "user_key"] {
            if !folder.join(name).exists() {
                run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &key(name)]))?;
            }
        }
        fs::copy(folder.join("user_key.pub"), folder.join("authorized_keys"))?;
        let config = format!(
            "Port {PORT}\nListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nSubsystem sftp internal-sftp\n",
            net.address,
            key("host_key"),
            key("authorized_keys"),
        );
        fs::write(folder.join("sshd_config"), config)?;
        let mut command = net.host_command(SERVER);
        command.args(["-D", "-e", "-f", &key("sshd_config")]).stderr(std::process::Stdio::null());
        let server = Daemon::start(command, false)?;
        let point = folder.join("mnt");
        fs::create_dir_all(&point)?;
        let client = Self::mount(net, source, &point, &key("user_key"))?;
        Ok(Self { server, client, point })
    }

    /// The server may need a moment to listen, so a refused connection is tried again.
    fn mount(net: &Net, source: &Path, point: &Path, key: &str) -> Result<Daemon, Failure> {
        for _ in 0..50 {
            let mut command = net.client_command("sshfs");
            command.arg("-f").arg(format!("root@{}:{}", net.address, source.display())).arg(point).args([
                "-p",
                PORT,
                "-o",
                &format!("IdentityFile={key}"),
                "-o",
                "StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,LogLevel=ERROR",
                "-o",
                "Ciphers=aes128-gcm@openssh.com,kernel_cache,auto_cache,max_conns=4,Compression=no",
            ]);
            let mut daemon = Daemon::start(command.stderr_null(), false)?;
            let ended_or_mounted = || is_mounted(point) || matches!(daemon.child().try_wait(), Ok(Some(_)));
            wait_until("sshfs has mounted or given up", ended_or_mounted)?;
            // A daemon whose connection was refused leaves a dead mount for a moment.
            if is_mounted(point) && fs::metadata(point).is_ok() {
                return Ok(daemon);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Err("sshfs did not mount".into())
    }

    /// Processor time of both ends so far; the server's children and the client's ssh processes included.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.server.tree_cpu_seconds() + self.client.tree_cpu_seconds()
    }
}

impl Drop for Sshfs {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.point));
    }
}

/// A command whose complaints nobody needs.
trait Quiet {
    fn stderr_null(self) -> Command;
}

impl Quiet for Command {
    fn stderr_null(mut self) -> Command {
        self.stderr(std::process::Stdio::null());
        self
    }
}
