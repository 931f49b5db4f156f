//! Parsers of the options that set a field, one function for each family.

use std::path::PathBuf;
use std::time::Duration;

use super::{Accounts, CacheMode, IdMapKind, LocalLocks, MountOptions, Visibility};
use crate::config::option_list::RawOption;
use crate::config::units::{self, Size};
use crate::config::{Environment, OptionError};
use crate::fs::DedupWish;
use crate::proto::CompressionWish;

/// Largest number of connections, as in NFS. More of them add handshakes, not speed.
const CONNECTIONS_MAX: u8 = 16;

const SECONDS_WHOLE: &str = "whole seconds";
const SECONDS: &str = "seconds, also with a fraction";
const TENTHS: &str = "tenths of a second, at least 1";
const MINUTES: &str = "whole minutes";
const PATH: &str = "an absolute path";

impl MountOptions {
    /// Applies `word`. Returns `false` if it sets no field.
    pub(super) fn read(
        &mut self,
        option: &RawOption,
        environment: &Environment,
        accounts: &dyn Accounts,
    ) -> Result<bool, OptionError> {
        Ok(self.read_kernel(option, environment)?
            || self.read_ownership(option, accounts)?
            || self.read_locks(option)?
            || self.read_host(option)?
            || self.read_timeouts(option)?
            || self.read_attributes(option)?
            || self.read_cache(option)?
            || self.read_transfer(option)?
            || self.read_start(option)?)
    }

    fn read_kernel(&mut self, option: &RawOption, environment: &Environment) -> Result<bool, OptionError> {
        let kernel = &mut self.kernel;
        match option.name.as_str() {
            "ro" | "rw" => kernel.read_only = option.name == "ro",
            "exec" | "noexec" => kernel.no_exec = option.name == "noexec",
            "nosuid" => kernel.suid = false,
            "nodev" => kernel.dev = false,
            "suid" | "dev" if !environment.is_root() => {
                return Err(OptionError::OnlyRoot(option.typed.clone()));
            }
            "suid" => kernel.suid = true,
            "dev" => kernel.dev = true,
            "allow_other" => kernel.visibility = Visibility::Everyone,
            "allow_root" => kernel.visibility = Visibility::OwnerAndRoot,
            "default_permissions" => kernel.default_permissions = true,
            _ => return Ok(false),
        }
        option.flag().map(|()| true)
    }

    fn read_ownership(&mut self, option: &RawOption, accounts: &dyn Accounts) -> Result<bool, OptionError> {
        let mask = || option.value("permission bits in octal, such as 022", units::mask);
        let ownership = &mut self.ownership;
        match option.name.as_str() {
            "uid" => ownership.uid = Some(account(option, "user", |name| accounts.user(name))?),
            "gid" => ownership.gid = Some(account(option, "group", |name| accounts.group(name))?),
            "fmask" => ownership.file_mask = Some(mask()?),
            "dmask" => ownership.directory_mask = Some(mask()?),
            "umask" => {
                let mask = mask()?;
                ownership.file_mask = Some(mask);
                ownership.directory_mask = Some(mask);
            }
            "idmap" => {
                ownership.id_map = option.value("none, user, file", |text| match text {
                    "none" => Some(IdMapKind::None),
                    "user" => Some(IdMapKind::User),
                    "file" => Some(IdMapKind::File),
                    _ => None,
                })?;
            }
            "uidfile" => ownership.uid_file = Some(path(option)?),
            "gidfile" => ownership.gid_file = Some(path(option)?),
            "nomap" => {
                ownership.keeps_unmapped = option.value("ignore, error", |text| match text {
                    "ignore" => Some(true),
                    "error" => Some(false),
                    _ => None,
                })?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_locks(&mut self, option: &RawOption) -> Result<bool, OptionError> {
        self.local_locks = match option.name.as_str() {
            "local_lock" => {
                self.local_locks = option.value("none, all, flock, posix", |text| match text {
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
        option.flag().map(|()| true)
    }

    fn read_host(&mut self, option: &RawOption) -> Result<bool, OptionError> {
        let host = &mut self.host;
        match option.name.as_str() {
            "port" => {
                host.port = Some(
                    option.value("a port: 1 to 65535", |text| text.parse().ok().filter(|port| *port > 0))?,
                );
            }
            "identity" | "identityfile" => host.identity = Some(path(option)?),
            "known_hosts" => host.known_hosts = Some(path(option)?),
            "credentials" => host.credentials = Some(path(option)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_timeouts(&mut self, option: &RawOption) -> Result<bool, OptionError> {
        let timeouts = &mut self.timeouts;
        match option.name.as_str() {
            "timeo" => {
                timeouts.timeo = option.value(TENTHS, |text| {
                    units::whole(text, Duration::from_millis(100)).filter(|time| !time.is_zero())
                })?;
                return Ok(true);
            }
            "retrans" => {
                timeouts.retrans = option.value("a number from 0 to 100", |text| {
                    text.parse().ok().filter(|count| *count <= 100)
                })?;
                return Ok(true);
            }
            "hard" => timeouts.hard = true,
            "soft" | "softerr" => timeouts.hard = false,
            "softreval" | "nosoftreval" => timeouts.never_stale = option.name == "nosoftreval",
            _ => return Ok(false),
        }
        option.flag().map(|()| true)
    }

    fn read_attributes(&mut self, option: &RawOption) -> Result<bool, OptionError> {
        let whole = || option.value(SECONDS_WHOLE, |text| units::whole(text, Duration::from_secs(1)));
        let seconds = || option.value(SECONDS, units::seconds);
        let times = &mut self.attributes;
        match option.name.as_str() {
            "acregmin" => times.regular_min = Some(whole()?),
            "acregmax" => times.regular_max = Some(whole()?),
            "acdirmin" => times.directory_min = Some(whole()?),
            "acdirmax" => times.directory_max = Some(whole()?),
            "actimeo" => times.set_all_attributes(whole()?),
            "attr_timeout" => times.set_all_attributes(seconds()?),
            "entry_timeout" => times.entry = Some(seconds()?),
            "negative_timeout" => times.negative = Some(seconds()?),
            "noac" => {
                option.flag()?;
                times.set_all_attributes(Duration::ZERO);
                times.entry = Some(Duration::ZERO);
                times.negative = Some(Duration::ZERO);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_cache(&mut self, option: &RawOption) -> Result<bool, OptionError> {
        let size = || option.value(Size::ALLOWED, Size::parse);
        let cache = &mut self.cache;
        match option.name.as_str() {
            "cache" => {
                cache.mode = option.value("none, strict, loose", |text| match text {
                    "none" => Some(CacheMode::None),
                    "strict" => Some(CacheMode::Strict),
                    "loose" => Some(CacheMode::Loose),
                    _ => None,
                })?;
            }
            "cache_dir" => cache.directory = Some(path(option)?),
            "cache_size" => cache.size = Some(size()?),
            "cache_min_free" => cache.min_free = Some(size()?),
            "memory_target" => cache.memory = Some(size()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_transfer(&mut self, option: &RawOption) -> Result<bool, OptionError> {
        let transfer = &mut self.transfer;
        match option.name.as_str() {
            "read_ahead" => {
                transfer.read_ahead_bytes =
                    Some(option.value("a number of bytes such as 64M, or 0 for none", units::bytes)?);
            }
            "nconnect" => {
                transfer.connections = Some(option.value("a number of connections: 1 to 16", |text| {
                    text.parse().ok().filter(|count| (1..=CONNECTIONS_MAX).contains(count))
                })?);
            }
            "compress" => {
                transfer.compression = Some(option.value("auto, on, off", |text| match text {
                    "auto" => Some(CompressionWish::Worthwhile),
                    "on" => Some(CompressionWish::Always),
                    "off" => Some(CompressionWish::Never),
                    _ => None,
                })?);
            }
            "dedup" => {
                transfer.dedup = option.value("auto, on, off", |text| match text {
                    "auto" => Some(DedupWish::Worthwhile),
                    "on" => Some(DedupWish::Always),
                    "off" => Some(DedupWish::Never),
                    _ => None,
                })?;
            }
            "transport" => transfer.transport = option.value("auto, quic, tcp", |text| text.parse().ok())?,
            "cc" => {
                transfer.congestion =
                    Some(option.value("delivery, cubic, bbr, newreno", |text| text.parse().ok())?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_start(&mut self, option: &RawOption) -> Result<bool, OptionError> {
        match option.name.as_str() {
            "bg" | "fg" => {
                option.flag()?;
                self.start.background = option.name == "bg";
            }
            "offline" => {
                option.flag()?;
                self.start.offline = true;
            }
            "retry" => {
                self.start.retry =
                    Some(option.value(MINUTES, |text| units::whole(text, Duration::from_secs(60)))?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Reads an absolute path. The daemon works in `/`, so a relative path would lead elsewhere.
fn path(option: &RawOption) -> Result<PathBuf, OptionError> {
    option.value(PATH, |text| Some(PathBuf::from(text)).filter(|path| path.is_absolute()))
}

/// Reads a user or group, by number or by name.
fn account(
    option: &RawOption,
    kind: &'static str,
    lookup: impl FnOnce(&str) -> Option<u32>,
) -> Result<u32, OptionError> {
    let text = option.value("a name or a number", |text| Some(text.to_owned()))?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return option.value("a number below 4294967295", |text| {
            // The largest number means "unset" to the kernel.
            text.parse().ok().filter(|id| *id < u32::MAX)
        });
    }
    lookup(&text).ok_or(OptionError::NoSuchName { name: option.typed.clone(), value: text, kind })
}
