//! Tables and random lists of options.

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::transport::TransportKind;

struct TestAccounts;

impl Accounts for TestAccounts {
    fn user(&self, name: &str) -> Option<u32> {
        (name == "ann").then_some(1001)
    }

    fn group(&self, name: &str) -> Option<u32> {
        (name == "media").then_some(2001)
    }
}

fn plain_user() -> Environment {
    Environment { uid: 1000, ..Environment::default() }
}

fn parse(list: &str) -> Result<MountOptions, OptionError> {
    MountOptions::parse([list], false, &plain_user(), &TestAccounts).map(|parsed| parsed.options)
}

/// Checks that a list sets the options that `expect` changes in the defaults.
#[track_caller]
fn sets(list: &str, expect: impl FnOnce(&mut MountOptions)) {
    let mut expected = MountOptions::default();
    expect(&mut expected);
    assert_eq!(parse(list).as_ref(), Ok(&expected), "{list}");
}

#[test]
fn an_empty_list_is_the_default() {
    for list in
        ["", "rw", "defaults,rw", "ro,rw", ",,", "_netdev,nofail,noauto,user,x-systemd.automount,comment=a b"]
    {
        sets(list, |_| {});
    }
}

#[test]
fn kernel_options_reach_their_fields() {
    sets("noexec", |o| o.kernel.no_exec = true);
    sets("noexec,exec", |_| {});
    sets("nosuid,nodev", |_| {});
    sets("allow_other", |o| o.kernel.visibility = Visibility::Everyone);
    sets("allow-root", |o| o.kernel.visibility = Visibility::OwnerAndRoot);
    sets("ro", |o| o.kernel.read_only = true);
    sets("default_permissions", |o| o.kernel.default_permissions = true);
}

#[test]
fn suid_and_dev_are_for_root() {
    let root = Environment::default();
    let parsed = MountOptions::parse(["suid,dev"], false, &root, &TestAccounts).unwrap();
    assert!(parsed.options.kernel.suid && parsed.options.kernel.dev);
    for list in ["suid", "dev"] {
        assert_eq!(parse(list), Err(OptionError::OnlyRoot(list.to_owned())));
    }
}

#[test]
fn the_kernel_checks_permissions_if_others_have_access() {
    for (list, checks) in
        [("", false), ("default_permissions", true), ("allow_other", true), ("allow_root", true)]
    {
        assert_eq!(parse(list).unwrap().kernel.checks_permissions(), checks, "{list}");
    }
}

#[test]
fn ownership_options_reach_their_fields() {
    sets("uid=1000", |o| o.ownership.uid = Some(1000));
    sets("uid=ann,gid=media", |o| {
        o.ownership.uid = Some(1001);
        o.ownership.gid = Some(2001);
    });
    sets("umask=022,fmask=0133", |o| {
        o.ownership.file_mask = Some(0o133);
        o.ownership.directory_mask = Some(0o022);
    });
    sets("idmap=user,idmap=none", |_| {});
    sets("idmap=user", |o| o.ownership.id_map = IdMapKind::User);
    sets("idmap=file,uidfile=/u,gidfile=/g,nomap=ignore", |o| {
        o.ownership.id_map = IdMapKind::File;
        o.ownership.uid_file = Some(PathBuf::from("/u"));
        o.ownership.gid_file = Some(PathBuf::from("/g"));
        o.ownership.keeps_unmapped = true;
    });
    sets("nomap=ignore,nomap=error", |_| {});
    sets("dmask=7", |o| o.ownership.directory_mask = Some(7));
}

#[test]
fn host_options_reach_their_fields() {
    sets("port=4434", |o| o.host.port = Some(4434));
    sets("identity=/k", |o| o.host.identity = Some(PathBuf::from("/k")));
    sets("known-hosts=/h", |o| o.host.known_hosts = Some(PathBuf::from("/h")));
    sets("credentials=/c", |o| o.host.credentials = Some(PathBuf::from("/c")));
    sets("transport=tcp,transport=auto", |_| {});
    sets("transport=quic", |o| o.transfer.transport = TransportChoice::Only(TransportKind::Quic));
    sets("transport=tcp", |o| o.transfer.transport = TransportChoice::Only(TransportKind::Tcp));
}

#[test]
fn the_deadline_is_timeo_times_retrans() {
    for (list, seconds) in [
        ("", Some(60)),
        ("soft", Some(60)),
        ("timeo=50", Some(10)),
        ("timeo=600,retrans=2", Some(120)),
        ("timeo=50,retrans=0", Some(5)),
        ("hard", None),
        ("hard,soft", Some(60)),
    ] {
        assert_eq!(parse(list).unwrap().timeouts.deadline(), seconds.map(Duration::from_secs), "{list}");
    }
    sets("softreval", |_| {});
    sets("nosoftreval,softreval", |_| {});
    sets("nosoftreval", |o| o.timeouts.never_stale = true);
}

#[test]
fn attribute_times_reach_their_fields() {
    let seconds = |count| Some(Duration::from_secs(count));
    sets("acregmin=3,acregmax=60,acdirmin=30,acdirmax=90", |o| {
        o.attributes.regular_min = seconds(3);
        o.attributes.regular_max = seconds(60);
        o.attributes.directory_min = seconds(30);
        o.attributes.directory_max = seconds(90);
    });
    for list in ["actimeo=5", "attr_timeout=5"] {
        sets(list, |o| o.attributes.set_all_attributes(Duration::from_secs(5)));
    }
    sets("entry_timeout=0.5,negative_timeout=2", |o| {
        o.attributes.entry = Some(Duration::from_millis(500));
        o.attributes.negative = seconds(2);
    });
    sets("noac", |o| {
        o.attributes.set_all_attributes(Duration::ZERO);
        o.attributes.entry = seconds(0);
        o.attributes.negative = seconds(0);
    });
}

#[test]
fn cache_options_reach_their_fields() {
    sets("cache=none", |o| o.cache.mode = CacheMode::None);
    sets("cache=loose", |o| o.cache.mode = CacheMode::Loose);
    sets("cache=loose,cache=strict", |_| {});
    sets("cache_dir=/c,cache_size=50G,cache_min_free=10%,memory_target=256M", |o| {
        o.cache.directory = Some(PathBuf::from("/c"));
        o.cache.size = Some(Size::Bytes(50 << 30));
        o.cache.min_free = Some(Size::Percent(10));
        o.cache.memory = Some(Size::Bytes(256 << 20));
    });
}

#[test]
fn transfer_options_reach_their_fields() {
    sets("read_ahead=64M", |o| o.transfer.read_ahead_bytes = Some(64 << 20));
    sets("read-ahead=0", |o| o.transfer.read_ahead_bytes = Some(0));
    sets("nconnect=4", |o| o.transfer.connections = Some(4));
    sets("cc=cubic", |o| o.transfer.congestion = Some(CongestionKind::Cubic));
}

#[test]
fn lock_options_reach_their_field() {
    for list in ["lock", "brl", "local_lock=none", "nolock,lock"] {
        sets(list, |_| {});
    }
    for list in ["nolock", "locallocks", "nobrl", "local_lock=all", "lock,nolock"] {
        sets(list, |o| o.local_locks = LocalLocks::All);
    }
    sets("local_lock=flock", |o| o.local_locks = LocalLocks::Flock);
    sets("nolock,local_lock=posix", |o| o.local_locks = LocalLocks::Posix);
    for list in ["local_lock=some", "local_lock", "nolock=1"] {
        assert!(parse(list).is_err(), "{list}");
    }
}

#[test]
fn starting_options_reach_their_fields() {
    sets("bg", |o| o.start.background = true);
    sets("bg,fg", |_| {});
    sets("retry=3", |o| o.start.retry = Some(Duration::from_secs(180)));
    for (list, minutes) in [("", 0), ("bg", 10_000), ("bg,retry=2", 2), ("retry=1", 1)] {
        assert_eq!(parse(list).unwrap().start.retry_for(), Duration::from_secs(minutes * 60), "{list}");
    }
}

#[test]
fn options_without_effect_are_accepted_with_a_remark() {
    for list in ["noatime", "rsize=1048576", "wsize=4096", "mand", "intr"] {
        let parsed = MountOptions::parse([list], false, &plain_user(), &TestAccounts).unwrap();
        assert_eq!(parsed.options, MountOptions::default(), "{list}");
        assert_eq!(parsed.remarks.len(), 1, "{list}");
    }
}

#[test]
fn planned_options_are_refused_with_an_alternative() {
    for list in ["remount", "bwlimit=1M:2M", "sync", "dirsync"] {
        let error = parse(list).unwrap_err();
        assert!(matches!(error, OptionError::NotAvailable { .. }), "{list}: {error}");
        assert!(error.to_string().contains(list.split('=').next().unwrap()), "{list}: {error}");
    }
}

#[test]
fn wrong_values_are_refused_with_the_name_and_the_allowed_values() {
    for list in [
        "port=0",
        "port=65536",
        "port=x",
        "port",
        "uid=",
        "uid=4294967295",
        "umask=9",
        "umask=1777",
        "timeo=0",
        "timeo=-1",
        "retrans=101",
        "acregmin=1.5",
        "attr_timeout=x",
        "cache=full",
        "cache_size=0%",
        "cache_size=lots",
        "cache_dir=here",
        "read_ahead=-1",
        "nconnect=0",
        "nconnect=17",
        "cc=vegas",
        "retry=x",
        "transport=udp",
        "transport",
        "idmap=all",
        "uidfile=here",
        "nomap=maybe",
        "compress=max",
        "dedup=yes",
        "compress",
        "rsize=big",
        "ro=1",
        "hard=yes",
        "bg=1",
        "noac=1",
        "noatime=1",
    ] {
        let error = parse(list).unwrap_err().to_string();
        assert!(error.contains(list.split('=').next().unwrap()), "{list}: {error}");
        assert!(!error.contains('\n') && !error.contains("unknown"), "{list}: {error}");
    }
    assert!(parse("uid=bob").unwrap_err().to_string().contains("no such user"));
    assert!(parse("gid=ann").unwrap_err().to_string().contains("no such group"));
}

#[test]
fn unknown_options_are_an_error_unless_sloppy() {
    let error = parse("ro,turbo=1").unwrap_err();
    assert_eq!(error, OptionError::Unknown("turbo".to_owned()));
    let parsed = MountOptions::parse(["turbo=1,port=1"], true, &plain_user(), &TestAccounts).unwrap();
    assert_eq!(parsed.options.host.port, Some(1));
    assert_eq!(parsed.remarks, ["mount option `turbo` is unknown and ignored"]);
}

#[test]
fn the_fstab_line_of_the_manual() {
    let list = "ro,_netdev,nofail,noauto,x-systemd.automount,x-systemd.idle-timeout=10min,allow_other,cache_size=50G";
    sets(list, |o| {
        o.kernel.read_only = true;
        o.kernel.visibility = Visibility::Everyone;
        o.cache.size = Some(Size::Bytes(50 << 30));
    });
}

#[test]
fn lists_add_up_and_the_last_value_counts() {
    let parsed =
        MountOptions::parse(["port=1,cache_dir=/a", "port=2"], false, &plain_user(), &TestAccounts).unwrap();
    assert_eq!(parsed.options.host.port, Some(2));
    assert_eq!(parsed.options.cache.directory.as_deref(), Some(Path::new("/a")));
}

/// Every option of the documentation, with an allowed value.
const CONTRACT: &str = "ro rw noexec nosuid nodev noatime allow_other allow_root default_permissions uid=1 gid=1 umask=0 fmask=0 \
    dmask=0 idmap=none uidfile=/a gidfile=/a port=1 identity=/a known_hosts=/a credentials=/a hard soft softreval nosoftreval timeo=1 retrans=1 actimeo=1 \
    acregmin=1 acregmax=1 acdirmin=1 acdirmax=1 noac attr_timeout=1 entry_timeout=1 negative_timeout=1 cache=none \
    cache_dir=/a cache_size=1 cache_min_free=1 memory_target=1 read_ahead=1 nconnect=1 rsize=1 wsize=1 nolock locallocks \
    transport=auto cc=bbr compress=auto dedup=off bg fg retry=1 _netdev nofail noauto user x-y";

/// Further accepted options that are common elsewhere.
const BEYOND: &str =
    "exec suid dev identityfile=/a softerr offline nomap=error lock local_lock=none brl nobrl";

#[test]
fn the_table_has_exactly_the_options_that_are_read() {
    let samples: Vec<&str> = CONTRACT.split_whitespace().chain(BEYOND.split_whitespace()).collect();
    for entry in OPTION_FAMILIES.iter().flat_map(|family| family.entries) {
        let sample = samples.iter().find(|sample| sample.split('=').next() == Some(entry.name));
        let sample = sample.unwrap_or_else(|| panic!("{} has no sample here", entry.name));
        assert_eq!(sample.contains('='), !entry.value.is_empty(), "{}", entry.typed());
        let mut options = MountOptions::default();
        for word in option_list::split(sample).unwrap() {
            let taken = options.read(&word, &Environment::default(), &TestAccounts).unwrap();
            assert!(taken, "{sample} is in the table, but is not read");
        }
        for word in entry.value.split('|').filter(|_| entry.value.contains('|')) {
            assert!(parse(&format!("{}={word}", entry.name)).is_ok(), "{}={word}", entry.name);
        }
    }
    for sample in samples {
        let name = sample.split('=').next().unwrap();
        let ignored =
            option_list::split(sample).unwrap().iter().all(|word| compat::ignored(word).unwrap().is_some());
        assert!(ignored || table::entry(name).is_some(), "{name} is not in the table");
    }
}

#[test]
fn every_option_is_accepted_with_hyphen_or_underscore() {
    let names: BTreeSet<_> = CONTRACT.split_whitespace().collect();
    assert_eq!(names.len(), CONTRACT.split_whitespace().count());
    for option in names {
        assert!(parse(option).is_ok(), "{option}");
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if !name.starts_with('_') {
            let hyphens = option.replacen(name, &name.replace('_', "-"), 1);
            assert_eq!(parse(&hyphens), parse(option), "{hyphens} {value}");
        }
    }
}

fn some_option() -> impl Strategy<Value = String> {
    let words: Vec<String> = CONTRACT.split_whitespace().map(str::to_owned).collect();
    prop_oneof![proptest::sample::select(words), "[a-z_-]{0,9}(=[a-z0-9%/\"]{0,6})?"]
}

proptest! {
    #[test]
    fn any_list_is_accepted_or_refused_in_one_line(list in proptest::collection::vec(some_option(), 0..8)) {
        if let Err(error) = parse(&list.join(",")) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn one_list_means_the_same_as_many(list in proptest::collection::vec(some_option(), 0..8)) {
        prop_assume!(list.iter().all(|option| !option.contains('"')));
        let many = MountOptions::parse(list.iter().map(String::as_str), false, &plain_user(), &TestAccounts);
        prop_assert_eq!(MountOptions::parse([list.join(",").as_str()], false, &plain_user(), &TestAccounts), many);
    }
}
