//! Table of all mount options with an effect. The help, the manual page and the parser use it.
//!
//! Pure. [`super::read`] accepts only options of this table, so every option is documented.

/// A mount option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionEntry {
    /// Name, with `_`.
    pub name: &'static str,
    /// Value after `=`, empty if there is none.
    pub value: &'static str,
    /// Description for users.
    pub meaning: &'static str,
}

impl OptionEntry {
    /// Returns the option as it is typed: `port=PORT`.
    pub fn typed(&self) -> String {
        if self.value.is_empty() { self.name.to_owned() } else { format!("{}={}", self.name, self.value) }
    }
}

/// A family of options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionFamily {
    /// Title of the family.
    pub title: &'static str,
    /// The options.
    pub entries: &'static [OptionEntry],
}

const fn option(name: &'static str, value: &'static str, meaning: &'static str) -> OptionEntry {
    OptionEntry { name, value, meaning }
}

/// All families, in the order of listings.
pub const OPTION_FAMILIES: &[OptionFamily] = &[
    OptionFamily { title: "Kernel behaviour", entries: KERNEL },
    OptionFamily { title: "Owners and permissions", entries: OWNERSHIP },
    OptionFamily { title: "Programs with which file locks conflict", entries: LOCKS },
    OptionFamily { title: "Host and identity", entries: HOST },
    OptionFamily { title: "Timeouts of operations", entries: TIMEOUTS },
    OptionFamily { title: "Times for which attributes and names are cached", entries: ATTRIBUTES },
    OptionFamily { title: "Disk and memory cache", entries: CACHE },
    OptionFamily { title: "Transfer of content", entries: TRANSFER },
    OptionFamily { title: "If the host does not answer at the start", entries: START },
];

const KERNEL: &[OptionEntry] = &[
    option("ro", "", "mount read-only"),
    option("rw", "", "mount read-write if the host allows it (default)"),
    option("exec", "", "programs on the mount can be executed (default)"),
    option("noexec", "", "programs on the mount cannot be executed"),
    option("nosuid", "", "set-user-id bits have no effect (default)"),
    option("suid", "", "set-user-id bits have effect; for root only"),
    option("nodev", "", "device files do not work (default)"),
    option("dev", "", "device files work; for root only"),
    option("allow_other", "", "all users may access the mount, within permission bits"),
    option("allow_root", "", "root may access the mount, too"),
    option("default_permissions", "", "the kernel checks permission bits itself"),
];

const OWNERSHIP: &[OptionEntry] = &[
    option("uid", "USER", "show this user as the owner of all files, by name or number; overrides idmap"),
    option("gid", "GROUP", "show this group for all files, by name or number; overrides idmap"),
    option("umask", "MASK", "remove these permission bits, in octal"),
    option("fmask", "MASK", "the same for files only"),
    option("dmask", "MASK", "the same for directories only"),
    option(
        "idmap",
        "none|user|file",
        "how numeric ids map: none: as on the host; user: the host account appears as you; file: uidfile= and gidfile= (none)",
    ),
    option(
        "uidfile",
        "FILE",
        "for idmap=file: lines NAME:NUMBER with a local user and its number on the host",
    ),
    option("gidfile", "FILE", "the same for groups"),
    option(
        "nomap",
        "ignore|error",
        "for idmap=file: ids without a line: ignore shows them unchanged, error fails with EPERM (error)",
    ),
];

const LOCKS: &[OptionEntry] = &[
    option("lock", "", "programs on this mount, on other mounts and on the host (default)"),
    option("nolock", "", "only programs on this mount"),
    option("local_lock", "none|all|flock|posix", "kinds of locks that hold only on this mount (none)"),
    option("locallocks", "", "the same as nolock"),
    option("nobrl", "", "the same as nolock, the name in cifs"),
    option("brl", "", "the same as lock, the name in cifs"),
];

const HOST: &[OptionEntry] = &[
    option("port", "PORT", "port of the host, for UDP and TCP, if the source has none (4433)"),
    option("identity", "FILE", "file with the key of this machine; created if missing"),
    option("identityfile", "FILE", "the same, the name in sshfs"),
    option("known_hosts", "FILE", "file with the keys of known hosts"),
    option("credentials", "FILE", "file with a ticket of the host"),
];

const TIMEOUTS: &[OptionEntry] = &[
    option("soft", "", "operations fail after timeo x retrans, 60 s (default)"),
    option("softerr", "", "the same as soft"),
    option("hard", "", "operations wait until the host is back"),
    option("timeo", "TENTHS", "tenths of a second (300)"),
    option("retrans", "N", "number of timeo periods (2)"),
    option("softreval", "", "cached data is served while the host is away (default)"),
    option("nosoftreval", "", "cached data is not served; operations wait for the host"),
];

const ATTRIBUTES: &[OptionEntry] = &[
    option("actimeo", "SECONDS", "attributes and names, files and directories (1)"),
    option("attr_timeout", "SECONDS", "the same, also with a fraction"),
    option("acregmin", "SECONDS", "attributes of files, minimum"),
    option("acregmax", "SECONDS", "attributes of files, maximum"),
    option("acdirmin", "SECONDS", "attributes of directories, minimum"),
    option("acdirmax", "SECONDS", "attributes of directories, maximum"),
    option("entry_timeout", "SECONDS", "names that exist"),
    option("negative_timeout", "SECONDS", "names that do not exist"),
    option("noac", "", "no caching: every access asks the host"),
];

const CACHE: &[OptionEntry] = &[
    option("cache", "none|strict|loose", "none: no disk cache; loose: attributes hold for 60 s (strict)"),
    option("cache_dir", "DIR", "directory of the disk cache (/var/cache/wormhole, or ~/.cache/wormhole)"),
    option("cache_size", "SIZE", "size of the disk cache, such as 50G or 10% (10% of the disk, at most 20G)"),
    option("cache_min_free", "SIZE", "space that stays free on the disk (5%)"),
    option("memory_target", "SIZE", "memory for content (128M)"),
];

const TRANSFER: &[OptionEntry] = &[
    option("read_ahead", "BYTES", "bytes requested ahead of a reader; 0 disables it"),
    option("nconnect", "N", "connections to the host, 1 to 16 (1)"),
    option(
        "transport",
        "auto|quic|tcp",
        "QUIC, or TLS over TCP; auto: TCP on short routes and where UDP is blocked (auto)",
    ),
    option("compress", "auto|on|off", "zstd in transit: auto if it is faster, on if it is smaller (auto)"),
    option(
        "dedup",
        "auto|on|off",
        "do not send written content that the host has: auto if it is faster, on if it saves bytes (auto)",
    ),
    option(
        "cc",
        "delivery|cubic|bbr|newreno",
        "congestion control (delivery; over TCP the kernel's bbr on long routes)",
    ),
];

const START: &[OptionEntry] = &[
    option("fg", "", "wait for the host (default)"),
    option("bg", "", "return, and keep trying in the background"),
    option("offline", "", "never ask the host: show cached data, the rest fails at once"),
    option("retry", "MINUTES", "minutes for which to try (0; with bg a week)"),
];

/// Returns the option of that name.
pub(super) fn entry(name: &str) -> Option<&'static OptionEntry> {
    OPTION_FAMILIES.iter().flat_map(|family| family.entries).find(|entry| entry.name == name)
}
