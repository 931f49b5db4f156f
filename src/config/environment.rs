//! Default places of files: by the file-system hierarchy standard for root, by XDG for users.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Name of all our directories.
const NAME: &str = "wormhole";

/// Daemon to which files belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The mount daemon.
    Client,
    /// The host daemon.
    Host,
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Host => "host",
        }
    }
}

/// Error: no place is known for the files of this user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no place for the {what}: HOME is not set; set it, or give `{option}`")]
pub struct NoHome {
    what: &'static str,
    option: &'static str,
}

/// Inputs that decide the default places: the user and a few environment variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub state_home: Option<PathBuf>,
    /// `XDG_CACHE_HOME`.
    pub cache_home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
}

impl Environment {
    /// Returns the environment of this process. mount(8) runs mounts of plain users from fstab without `HOME`
    /// and `XDG_RUNTIME_DIR`. Then the home comes from the user database. The runtime directory is that of
    /// systemd, if it exists and belongs to the user.
    pub fn of_process() -> Self {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid().as_raw());
        let mut environment = Self { gid, ..Self::new(uid.as_raw(), |name| std::env::var_os(name)) };
        if environment.is_root() {
            return environment;
        }
        if environment.home.is_none() {
            let user = nix::unistd::User::from_uid(uid).ok().flatten();
            environment.home = user.map(|user| user.dir).filter(|home| home.is_absolute());
        }
        if environment.runtime_dir.is_none() {
            let usual = PathBuf::from(format!("/run/user/{uid}"));
            let is_own = std::fs::symlink_metadata(&usual).is_ok_and(|found| {
                found.is_dir() && found.uid() == uid.as_raw() && found.mode() & 0o777 == 0o700
            });
            environment.runtime_dir = is_own.then_some(usual);
        }
        environment
    }

    /// Returns an environment with the variables of `variable`, in group 0. Relative paths are ignored, as
    /// XDG demands.
    pub fn new(uid: u32, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let directory = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Self {
            uid,
            gid: 0,
            home: directory("HOME"),
            state_home: directory("XDG_STATE_HOME"),
            cache_home: directory("XDG_CACHE_HOME"),
            runtime_dir: directory("XDG_RUNTIME_DIR"),
        }
    }

    /// Returns true for root.
    pub const fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Returns the directory of keys, known hosts and tickets: `/var/lib/wormhole/client`, or
    /// `~/.local/state/wormhole/client`.
    pub fn state_dir(&self, side: Side) -> Result<PathBuf, NoHome> {
        let base = if self.is_root() {
            PathBuf::from("/var/lib")
        } else {
            self.below_home(self.state_home.as_ref(), ".local/state")
                .ok_or(NoHome { what: "keys", option: "--state-dir" })?
        };
        Ok(base.join(NAME).join(side.name()))
    }

    /// Returns the directory of the chunk cache: `/var/cache/wormhole`, or `~/.cache/wormhole`.
    pub fn cache_dir(&self) -> Result<PathBuf, NoHome> {
        let base = if self.is_root() {
            PathBuf::from("/var/cache")
        } else {
            self.below_home(self.cache_home.as_ref(), ".cache")
                .ok_or(NoHome { what: "cache", option: "--cache-dir" })?
        };
        Ok(base.join(NAME))
    }

    /// Returns the directory of control sockets: `/run/wormhole`, `$XDG_RUNTIME_DIR/wormhole`, or
    /// `/tmp/wormhole-UID` without a login session.
    pub fn control_dir(&self) -> PathBuf {
        if self.is_root() {
            return PathBuf::from("/run").join(NAME);
        }
        match &self.runtime_dir {
            Some(runtime) => runtime.join(NAME),
            None => PathBuf::from(format!("/tmp/{NAME}-{}", self.uid)),
        }
    }

    fn below_home(&self, chosen: Option<&PathBuf>, usual: &str) -> Option<PathBuf> {
        chosen.cloned().or_else(|| self.home.as_ref().map(|home| home.join(usual)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn with(uid: u32, variables: &[(&str, &str)]) -> Environment {
        Environment::new(uid, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn root_uses_the_system_directories_in_any_environment() {
        for root in [with(0, &[]), with(0, &[("HOME", "/root"), ("XDG_STATE_HOME", "/elsewhere")])] {
            assert_eq!(root.state_dir(Side::Client).unwrap(), Path::new("/var/lib/wormhole/client"));
            assert_eq!(root.state_dir(Side::Host).unwrap(), Path::new("/var/lib/wormhole/host"));
            assert_eq!(root.cache_dir().unwrap(), Path::new("/var/cache/wormhole"));
            assert_eq!(root.control_dir(), Path::new("/run/wormhole"));
        }
    }

    #[test]
    fn users_use_their_home() {
        let ann = with(1000, &[("HOME", "/home/ann")]);
        assert_eq!(ann.state_dir(Side::Client).unwrap(), Path::new("/home/ann/.local/state/wormhole/client"));
        assert_eq!(ann.cache_dir().unwrap(), Path::new("/home/ann/.cache/wormhole"));
        assert_eq!(ann.control_dir(), Path::new("/tmp/wormhole-1000"));
    }

    #[test]
    fn xdg_directories_win_unless_they_are_relative() {
        let variables = [
            ("HOME", "/home/ann"),
            ("XDG_STATE_HOME", "/s"),
            ("XDG_CACHE_HOME", "c"),
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
        ];
        let ann = with(1000, &variables);
        assert_eq!(ann.state_dir(Side::Client).unwrap(), Path::new("/s/wormhole/client"));
        assert_eq!(ann.cache_dir().unwrap(), Path::new("/home/ann/.cache/wormhole"));
        assert_eq!(ann.control_dir(), Path::new("/run/user/1000/wormhole"));
    }

    #[test]
    fn without_a_home_the_option_is_named() {
        let daemon = with(1000, &[]);
        assert!(daemon.state_dir(Side::Client).unwrap_err().to_string().contains("--state-dir"));
        assert!(daemon.cache_dir().unwrap_err().to_string().contains("--cache-dir"));
    }
}
