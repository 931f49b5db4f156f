//! A network of its own, in which hosts have names: a network namespace with an `/etc/hosts`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::process::{WORMHOLE, printed_by, wait_until, words};

/// A network namespace, and a mount namespace in which its names hold. Taken down when dropped, with every process in it.
pub(crate) struct Lan {
    name: String,
    holder: Child,
}

impl Lan {
    /// `None` for a plain user, who cannot make one.
    pub(crate) fn new(tag: &str, addresses: &[&str], hosts: &str) -> Option<Self> {
        Self::with_files(tag, addresses, hosts, &[])
    }

    /// The same with other files of `/etc`, which must exist on this machine, too.
    pub(crate) fn with_files(
        tag: &str,
        addresses: &[&str],
        hosts: &str,
        files: &[(&str, String)],
    ) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let name = format!("wormhole-{tag}-{}", std::process::id());
        let etc = Path::new("/etc/netns").join(&name);
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("hosts"), format!("127.0.0.1 localhost\n::1 localhost\n{hosts}")).unwrap();
        for (file, text) in files {
            assert!(Path::new("/etc").join(file).exists(), "this machine has no /etc/{file}");
            fs::write(etc.join(file), text).unwrap();
        }
        let ip = |arguments: &str| printed_by("ip", &arguments.split(' ').collect::<Vec<_>>());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        for address in addresses {
            ip(&format!("-n {name} address add {address} dev lo"));
        }
        let mut holder = Command::new("ip");
        holder.args(["netns", "exec", &name, "sleep", "infinity"]).stdin(Stdio::null());
        let lan = Self { name, holder: holder.spawn().unwrap() };
        let cmdline = format!("/proc/{}/cmdline", lan.holder.id());
        wait_until("the namespace is there", || {
            fs::read(&cmdline).is_ok_and(|arguments| arguments.starts_with(b"sleep"))
        });
        lan.has_names();
        Some(lan)
    }

    /// The names are those of this network and not of the machine.
    fn has_names(&self) {
        let hosts = self.run("cat", &["/etc/hosts"]);
        assert_eq!(hosts.stdout, fs::read(self.etc().join("hosts")).unwrap(), "{}", words(&hosts));
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }

    /// Writes other names into its `/etc/hosts`.
    pub(crate) fn set_hosts(&self, hosts: &str) {
        self.set_file("hosts", hosts);
        self.has_names();
    }

    /// Writes one of its files of `/etc`.
    pub(crate) fn set_file(&self, name: &str, text: &str) {
        fs::write(self.etc().join(name), text).unwrap();
    }

    /// A program in this network. It becomes the process that is started.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.holder.id())).args(["--net", "--mount", "--", program]);
        command.env_remove("WORMHOLE_TICKET").stdin(Stdio::null());
        command
    }

    /// The binary under test in this network.
    pub(crate) fn wormhole(&self) -> Command {
        self.command(WORMHOLE)
    }

    /// Runs a program in this network to its end.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program).args(arguments).output().unwrap()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let mounts = self.run("cat", &["/proc/self/mountinfo"]).stdout;
        for line in String::from_utf8_lossy(&mounts).lines().filter(|line| line.contains(" fuse.wormhole ")) {
            let mountpoint = line.split(' ').nth(4).unwrap_or_default();
            // Those of the machine are seen here, too.
            if super::mount_at(Path::new(mountpoint)).is_none() {
                self.run(WORMHOLE, &["umount", "-f", mountpoint]);
                self.run("umount", &["-l", mountpoint]);
            }
        }
        let processes = self.run("ip", &["netns", "pids", &self.name]).stdout;
        for pid in String::from_utf8_lossy(&processes).split_ascii_whitespace() {
            if pid.parse() != Ok(std::process::id()) {
                let _ = Command::new("kill").arg(pid).stderr(Stdio::null()).status();
            }
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = fs::remove_dir_all(self.etc());
    }
}
