//! Every mount option that does something, with what it does: the help, the manual page and the reader go by this one table.
//!
//! Pure. [`super::read`] takes only what stands here, so that no option works without being told of.

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionEntry {
    /// Its name, with `_`.
    pub name: &'static str,
    /// What stands behind `=`; empty if nothing does.
    pub value: &'static str,
    /// What it does, for people.
    pub meaning: &'static str,
}

impl OptionEntry {
    /// As it is typed: `port=PORT`.
    pub fn typed(&self) -> String {
        if self.value.is_empty() { self.name.to_owned() } else { format!("{}={}", self.name, self.value) }
    }
}

/// Options that are about one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionFamily {
    /// What they are about.
    pub title: &'static str,
    /// The options.
    pub entries: &'static [OptionEntry],
}

const fn option(name: &'static str, value: &'static str, meaning: &'static str) -> OptionEntry {
    OptionEntry { name, value, meaning }
}

/// All of them, in the order to show them.
pub const OPTION_FAMILIES: &[OptionFamily] = &[
    OptionFamily { title: "How the kernel treats the mount", entries: KERNEL },
    OptionFamily { title: "Who appears to own what", entries: OWNERSHIP },
    OptionFamily { title: "Whom a file lock keeps out", entries: LOCKS },
    OptionFamily { title: "Which host, and as whom", entries: HOST },
    OptionFamily { title: "How long an answer is waited for", entries: TIMEOUTS },
    OptionFamily { title: "How long attributes and names are believed", entries: ATTRIBUTES },
    OptionFamily { title: "What is kept", entries: CACHE },
    OptionFamily { title: "How content travels", entries: TRANSFER },
    OptionFamily { title: "While the host does not answer the first time", entries: START },
];

const KERNEL: &[OptionEntry] = &[
    option("ro", "", "mount read-only"),
    option("rw", "", "mount for writing, where the host allows it (default)"),
    option("exec", "", "programs on the mount can be run (default)"),
    option("noexec", "", "they cannot"),
    option("nosuid", "", "set-user-id bits do not count (default)"),
    option("suid", "", "they do; for root only"),
    option("nodev", "", "device files do not work (default)"),
    option("dev", "", "they do; for root only"),
    option("allow_other", "", "everybody may use the mount, as permission bits allow"),
    option("allow_root", "", "root may use it, too"),
    option("default_permissions", "", "the kernel checks permission bits itself"),
];

const OWNERSHIP: &[OptionEntry] = &[
    option("uid", "USER", "show this owner of everything, by name or number, whatever idmap says"),
    option("gid", "GROUP", "show this group of everything, by name or number, whatever idmap says"),
    option("umask", "MASK", "take these permission bits away, in octal"),
    option("fmask", "MASK", "the same for files alone"),
    option("dmask", "MASK", "the same for directories alone"),
    option(
        "idmap",
        "none|user|file",
        "numbers of users and groups: the host's; the mounting user's for the one as whom the host acts; by files (none)",
    ),
    option(
        "uidfile",
        "FILE",
        "for idmap=file: lines NAME:NUMBER, a user here and the user's number on the host",
    ),
    option("gidfile", "FILE", "the same for groups"),
    option(
        "nomap",
        "ignore|error",
        "for idmap=file: numbers without a line are shown as they are, or whoever meets them gets EPERM (error)",
    ),
];

const LOCKS: &[OptionEntry] = &[
    option("lock", "", "programs on this mount, on other mounts and on the host (default)"),
    option("nolock", "", "programs on this mount alone"),
    option("local_lock", "none|all|flock|posix", "which kinds keep out programs on this mount alone (none)"),
    option("locallocks", "", "nolock, by another name"),
    option("nobrl", "", "nolock, as cifs calls it"),
    option("brl", "", "lock, as cifs calls it"),
];

const HOST: &[OptionEntry] = &[
    option("port", "PORT", "the host's port, for UDP and TCP, where the source names none (4433)"),
    option("identity", "FILE", "this machine's key; made if there is none"),
    option("identityfile", "FILE", "the same, as sshfs calls it"),
    option("known_hosts", "FILE", "the keys of hosts"),
    option("credentials", "FILE", "a join ticket that vouches for the host"),
];

const TIMEOUTS: &[OptionEntry] = &[
    option("soft", "", "operations fail after timeo x retrans, 60 s (default)"),
    option("softerr", "", "the same"),
    option("hard", "", "operations wait until the host is back"),
    option("timeo", "TENTHS", "tenths of a second (300)"),
    option("retrans", "N", "how many times timeo (2)"),
    option("softreval", "", "what is known is served while the host is away (default)"),
    option("nosoftreval", "", "it is not: operations wait for the host"),
];

const ATTRIBUTES: &[OptionEntry] = &[
    option("actimeo", "SECONDS", "attributes and names, files and directories (1)"),
    option("attr_timeout", "SECONDS", "the same, with a fraction if need be"),
    option("acregmin", "SECONDS", "attributes of files, at least"),
    option("acregmax", "SECONDS", "attributes of files, at most"),
    option("acdirmin", "SECONDS", "attributes of directories, at least"),
    option("acdirmax", "SECONDS", "attributes of directories, at most"),
    option("entry_timeout", "SECONDS", "that a name leads where it led"),
    option("negative_timeout", "SECONDS", "that there is no such name"),
    option("noac", "", "nothing is believed: every look asks the host"),
];

const CACHE: &[OptionEntry] = &[
    option("cache", "none|strict|loose", "none: nothing on disk; loose: attributes hold for 60 s (strict)"),
    option("cache_dir", "DIR", "where (/var/cache/wormhole, or ~/.cache/wormhole)"),
    option("cache_size", "SIZE", "how much, such as 50G or 10% (10% of the disk, at most 20G)"),
    option("cache_min_free", "SIZE", "how much of the disk stays free (5%)"),
    option("memory_target", "SIZE", "memory for content (128M)"),
];

const TRANSFER: &[OptionEntry] = &[
    option("read_ahead", "BYTES", "most that is asked for ahead of a reader; 0 for nothing"),
    option("nconnect", "N", "connections to the host, 1 to 16 (1)"),
    option(
        "transport",
        "auto|quic|tcp",
        "QUIC, or TLS over TCP; auto: TCP on short ways and where UDP is blocked (auto)",
    ),
    option(
        "compress",
        "auto|on|off",
        "zstd on the way: auto where it is faster, on wherever it is smaller (auto)",
    ),
    option(
        "dedup",
        "auto|on|off",
        "what is written and the host has already is not sent: auto where it is faster, on wherever it spares bytes (auto)",
    ),
    option(
        "cc",
        "delivery|cubic|bbr|newreno",
        "congestion control (delivery; over TCP the kernel's bbr on long ways)",
    ),
];

const START: &[OptionEntry] = &[
    option("fg", "", "wait for it (default)"),
    option("bg", "", "return, and go on trying in the background"),
    option("offline", "", "ask no host: show what the cache knows; the rest fails at once"),
    option("retry", "MINUTES", "for how long to try (0; with bg a week)"),
];

/// The option of that name.
pub(super) fn entry(name: &str) -> Option<&'static OptionEntry> {
    OPTION_FAMILIES.iter().flat_map(|family| family.entries).find(|entry| entry.name == name)
}
