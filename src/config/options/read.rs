//! The options that set something, a family a function.

use std::path::PathBuf;
use std::time::Duration;

use super::{Accounts, CacheMode, IdMapKind, LocalLocks, MountOptions, Visibility};
use crate::config::option_list::Word;
use crate::config::units::{self, Size};
use crate::config::{Environment, OptionError};
use crate::fs::DedupWish;
use crate::proto::CompressionWish;

/// Connections beyond this add handshakes, not speed; NFS has the same limit.
const CONNECTIONS_MAX: u8 = 16;

const SECONDS_WHOLE: &str = "whole seconds";
const SECONDS: &str = "seconds, with a fraction if need be";
const TENTHS: &str = "tenths of a second, at least 1";
const MINUTES: &str = "whole minutes";
const PATH: &str = "an absolute path";

impl MountOptions {
    /// Takes `word` in; `false` if it sets nothing.
    pub(super) fn read(
        &mut self,
        word: &Word,
        environment: &Environment,
        accounts: &dyn Accounts,
    ) -> Result<bool, OptionError> {
        Ok(self.read_kernel(word, environment)?
            || self.read_ownership(word, accounts)?
            || self.read_locks(word)?
            || self.read_host(word)?
            || self.read_patience(word)?
            || self.read_attributes(word)?
            || self.read_cache(word)?
            || self.read_transfer(word)?
            || self.read_start(word)?)
    }

    fn read_kernel(&mut self, word: &Word, environment: &Environment) -> Result<bool, OptionError> {
        let kernel = &mut self.kernel;
        match word.name.as_str() {
            "ro" | "rw" => kernel.read_only = word.name == "ro",
            "exec" | "noexec" => kernel.no_exec = word.name == "noexec",
            "nosuid" => kernel.suid = false,
            "nodev" => kernel.dev = false,
            "suid" | "dev" if !environment.is_root() => {
                return Err(OptionError::OnlyRoot(word.typed.clone()));
            }
            "suid" => kernel.suid = true,
            "dev" => kernel.dev = true,
            "allow_other" => kernel.visibility = Visibility::Everyone,
            "allow_root" => kernel.visibility = Visibility::OwnerAndRoot,
            "default_permissions" => kernel.default_permissions = true,
            _ => return Ok(false),
        }
        word.flag().map(|()| true)
    }

    fn read_ownership(&mut self, word: &Word, accounts: &dyn Accounts) -> Result<bool, OptionError> {
        let mask = || word.value("permission bits in octal, such as 022", units::mask);
        let ownership = &mut self.ownership;
        match word.name.as_str() {
            "uid" => ownership.uid = Some(account(word, "user", |name| accounts.user(name))?),
            "gid" => ownership.gid = Some(account(word, "group", |name| accounts.group(name))?),
            "fmask" => ownership.file_mask = Some(mask()?),
            "dmask" => ownership.directory_mask = Some(mask()?),
            "umask" => {
                let mask = mask()?;
                ownership.file_mask = Some(mask);
                ownership.directory_mask = Some(mask);
            }
            "idmap" => {
                ownership.id_map = word.value("none, user, file", |text| match text {
                    "none" => Some(IdMapKind::None),
                    "user" => Some(IdMapKind::User),
                    "file" => Some(IdMapKind::File),
                    _ => None,
                })?;
            }
            "uidfile" => ownership.uid_file = Some(path(word)?),
            "gidfile" => ownership.gid_file = Some(path(word)?),
            "nomap" => {
                ownership.keeps_unmapped = word.value("ignore, error", |text| match text {
                    "ignore" => Some(true),
                    "error" => Some(false),
                    _ => None,
                })?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_locks(&mut self, word: &Word) -> Result<bool, OptionError> {
        self.local_locks = match word.name.as_str() {
            "local_lock" => {
                self.local_locks = word.value("none, all, flock, posix", |text| match text {
                    "none" => Some(LocalLocks::None),
                    "all" => Some(LocalLocks::All),
                    "flock" => Some(LocalLocks::Flock),
                    "posix" => Some(LocalLocks::Posix),
                    _ => None,
                })?;
                return Ok(true);
            }
            "lock" | "brl" => LocalLocks::None,
            "nolock" | "locallocks" | "nobrl" => LocalLocks::All,
            _ => return Ok(false),
        };
        word.flag().map(|()| true)
    }

    fn read_host(&mut self, word: &Word) -> Result<bool, OptionError> {
        let host = &mut self.host;
        match word.name.as_str() {
            "port" => {
                host.port = Some(
                    word.value("a port: 1 to 65535", |text| text.parse().ok().filter(|port| *port > 0))?,
                );
            }
            "identity" | "identityfile" => host.identity = Some(path(word)?),
            "known_hosts" => host.known_hosts = Some(path(word)?),
            "credentials" => host.credentials = Some(path(word)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_patience(&mut self, word: &Word) -> Result<bool, OptionError> {
        let patience = &mut self.patience;
        match word.name.as_str() {
            "timeo" => {
                patience.timeo = word.value(TENTHS, |text| {
                    units::whole(text, Duration::from_millis(100)).filter(|time| !time.is_zero())
                })?;
                return Ok(true);
            }
            "retrans" => {
                patience.retrans = word.value("a number from 0 to 100", |text| {
                    text.parse().ok().filter(|count| *count <= 100)
                })?;
                return Ok(true);
            }
            "hard" => patience.hard = true,
            "soft" | "softerr" => patience.hard = false,
            "softreval" | "nosoftreval" => patience.never_stale = word.name == "nosoftreval",
            _ => return Ok(false),
        }
        word.flag().map(|()| true)
    }

    fn read_attributes(&mut self, word: &Word) -> Result<bool, OptionError> {
        let whole = || word.value(SECONDS_WHOLE, |text| units::whole(text, Duration::from_secs(1)));
        let seconds = || word.value(SECONDS, units::seconds);
        let times = &mut self.attributes;
        match word.name.as_str() {
            "acregmin" => times.regular_min = Some(whole()?),
            "acregmax" => times.regular_max = Some(whole()?),
            "acdirmin" => times.directory_min = Some(whole()?),
            "acdirmax" => times.directory_max = Some(whole()?),
            "actimeo" => times.set_all_attributes(whole()?),
            "attr_timeout" => times.set_all_attributes(seconds()?),
            "entry_timeout" => times.entry = Some(seconds()?),
            "negative_timeout" => times.negative = Some(seconds()?),
            "noac" => {
                word.flag()?;
                times.set_all_attributes(Duration::ZERO);
                times.entry = Some(Duration::ZERO);
                times.negative = Some(Duration::ZERO);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_cache(&mut self, word: &Word) -> Result<bool, OptionError> {
        let size = || word.value(Size::ALLOWED, Size::parse);
        let cache = &mut self.cache;
        match word.name.as_str() {
            "cache" => {
                cache.mode = word.value("none, strict, loose", |text| match text {
                    "none" => Some(CacheMode::None),
                    "strict" => Some(CacheMode::Strict),
                    "loose" => Some(CacheMode::Loose),
                    _ => None,
                })?;
            }
            "cache_dir" => cache.directory = Some(path(word)?),
            "cache_size" => cache.size = Some(size()?),
            "cache_min_free" => cache.min_free = Some(size()?),
            "memory_target" => cache.memory = Some(size()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_transfer(&mut self, word: &Word) -> Result<bool, OptionError> {
        let transfer = &mut self.transfer;
        match word.name.as_str() {
            "read_ahead" => {
                transfer.read_ahead_bytes =
                    Some(word.value("a number of bytes such as 64M, or 0 for none", units::bytes)?);
            }
            "nconnect" => {
                transfer.connections = Some(word.value("a number of connections: 1 to 16", |text| {
                    text.parse().ok().filter(|count| (1..=CONNECTIONS_MAX).contains(count))
                })?);
            }
            "compress" => {
                transfer.compression = Some(word.value("auto, on, off", |text| match text {
                    "auto" => Some(CompressionWish::Worthwhile),
                    "on" => Some(CompressionWish::Always),
                    "off" => Some(CompressionWish::Never),
                    _ => None,
                })?);
            }
            "dedup" => {
                transfer.dedup = word.value("auto, on, off", |text| match text {
                    "auto" => Some(DedupWish::Worthwhile),
                    "on" => Some(DedupWish::Always),
                    "off" => Some(DedupWish::Never),
                    _ => None,
                })?;
            }
            "transport" => transfer.transport = word.value("auto, quic, tcp", |text| text.parse().ok())?,
            "cc" => {
                transfer.congestion =
                    Some(word.value("delivery, cubic, bbr, newreno", |text| text.parse().ok())?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_start(&mut self, word: &Word) -> Result<bool, OptionError> {
        match word.name.as_str() {
            "bg" | "fg" => {
                word.flag()?;
                self.start.background = word.name == "bg";
            }
            "offline" => {
                word.flag()?;
                self.start.offline = true;
            }
            "retry" => {
                self.start.retry =
                    Some(word.value(MINUTES, |text| units::whole(text, Duration::from_secs(60)))?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The daemon works in `/`, so a relative path would lead elsewhere than it was meant.
fn path(word: &Word) -> Result<PathBuf, OptionError> {
    word.value(PATH, |text| Some(PathBuf::from(text)).filter(|path| path.is_absolute()))
}

/// A user or group, by number or by name.
fn account(
    word: &Word,
    kind: &'static str,
    lookup: impl FnOnce(&str) -> Option<u32>,
) -> Result<u32, OptionError> {
    let text = word.value("a name or a number", |text| Some(text.to_owned()))?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return word.value("a number below 4294967295", |text| {
            // The last number means "nobody said" to the kernel.
            text.parse().ok().filter(|id| *id < u32::MAX)
        });
    }
    lookup(&text).ok_or(OptionError::NoSuchName { name: word.typed.clone(), value: text, kind })
}
