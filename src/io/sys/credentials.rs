//! Acting as another user, for one thread and a limited time.
//!
//! The kernel checks file access by a thread's `fsuid`, `fsgid`, supplementary groups and capabilities.
//! Only these are switched. The real and effective users of the thread stay, so the assumed user can
//! neither signal nor trace it. libc's `setgroups` would switch all threads of the process, so the system
//! call is made directly.
//!
//! A new thread inherits the state of its parent. Do not call anything that may start a thread meanwhile,
//! such as `spawn_blocking`.

use std::marker::PhantomData;

use nix::errno::Errno;

/// Identity for file access, without capabilities: even user 0 is bound by the permission bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// Guard of an assumed identity. Dropping it, also in a panic, restores the thread. It cannot leave the
/// thread.
#[derive(Debug)]
#[must_use = "it ends as soon as this is dropped"]
pub struct Assumed {
    before: Before,
    _stays_on_its_thread: PhantomData<*const ()>,
}

/// Original state of a thread.
#[derive(Debug)]
struct Before {
    uid: u32,
    gid: u32,
    groups: Vec<libc::gid_t>,
    capabilities: [CapabilitySet; 2],
}

impl Credentials {
    /// Switches the calling thread to this identity. Returns EPERM without any change if the process lacks
    /// `CAP_SETUID` or `CAP_SETGID`.
    pub fn assume(&self) -> Result<Assumed, Errno> {
        let before = Before {
            // An invalid id changes nothing, and both calls return the current id.
            uid: set_fsuid(u32::MAX),
            gid: set_fsgid(u32::MAX),
            groups: groups()?,
            capabilities: capabilities()?,
        };
        set_groups(&self.groups)?;
        // From here on, dropping the guard restores the thread.
        let assumed = Assumed { before, _stays_on_its_thread: PhantomData };
        set_fsgid(self.gid);
        set_fsuid(self.uid);
        // Neither call reports failure.
        if set_fsgid(u32::MAX) != self.gid || set_fsuid(u32::MAX) != self.uid {
            return Err(Errno::EPERM);
        }
        let none = assumed.before.capabilities.map(|set| CapabilitySet { effective: 0, ..set });
        set_capabilities(&none)?;
        Ok(assumed)
    }
}

impl Drop for Assumed {
    /// Aborts the process if the thread cannot be restored, because it would continue with wrong rights.
    fn drop(&mut self) {
        let Before { uid, gid, groups, capabilities } = &self.before;
        set_fsuid(*uid);
        set_fsgid(*gid);
        // The user was restored first, because that resets the capabilities. The groups need a capability,
        // so they come last.
        let restored = set_capabilities(capabilities).and_then(|()| set_groups(groups));
        if restored.is_err() || set_fsuid(u32::MAX) != *uid || set_fsgid(u32::MAX) != *gid {
            tracing::error!("a thread cannot return to its own credentials ({restored:?}): ending");
            std::process::abort();
        }
    }
}

/// Sets the file-system user and returns the previous one.
fn set_fsuid(uid: u32) -> u32 {
    // SAFETY: takes and returns numbers, and concerns the calling thread only.
    unsafe { libc::setfsuid(uid) }.cast_unsigned()
}

/// Sets the file-system group and returns the previous one.
fn set_fsgid(gid: u32) -> u32 {
    // SAFETY: takes and returns numbers, and concerns the calling thread only.
    unsafe { libc::setfsgid(gid) }.cast_unsigned()
}

/// Returns the supplementary groups of the calling thread.
fn groups() -> Result<Vec<libc::gid_t>, Errno> {
    // SAFETY: with a size of zero the kernel writes nothing.
    let count = Errno::result(unsafe { libc::getgroups(0, std::ptr::null_mut()) })?;
    let mut groups = vec![0; count as usize];
    // SAFETY: there is room for `count` numbers, and the kernel writes no more.
    let count = Errno::result(unsafe { libc::getgroups(count, groups.as_mut_ptr()) })?;
    groups.truncate(count as usize);
    Ok(groups)
}

/// Number of the `setgroups` call with 32-bit groups.
#[cfg(any(target_arch = "x86", target_arch = "arm"))]
const SYS_SETGROUPS: libc::c_long = libc::SYS_setgroups32;
#[cfg(not(any(target_arch = "x86", target_arch = "arm")))]
const SYS_SETGROUPS: libc::c_long = libc::SYS_setgroups;

/// Sets the supplementary groups of the calling thread alone.
fn set_groups(groups: &[libc::gid_t]) -> Result<(), Errno> {
    // SAFETY: the pointer is to that many live numbers, which the kernel only reads.
    let code = unsafe { libc::syscall(SYS_SETGROUPS, groups.len(), groups.as_ptr()) };
    Errno::result(code).map(drop)
}

/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits, in two halves.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// The kernel's `__user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

impl CapabilityHeader {
    /// Returns the header for the calling thread.
    const fn own() -> Self {
        Self { version: CAPABILITY_VERSION, pid: 0 }
    }
}

/// One half of a thread's sets: the kernel's `__user_cap_data_struct`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct CapabilitySet {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn capabilities() -> Result<[CapabilitySet; 2], Errno> {
    let mut header = CapabilityHeader::own();
    let mut sets = [CapabilitySet::default(); 2];
    // SAFETY: both point to live values with the kernel's layout; version 3 means two sets.
    let code = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    Errno::result(code).map(|_| sets)
}

fn set_capabilities(sets: &[CapabilitySet; 2]) -> Result<(), Errno> {
    let mut header = CapabilityHeader::own();
    // SAFETY: both point to live values with the kernel's layout; the sets are only read.
    let code = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    Errno::result(code).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread;

    use nix::unistd::geteuid;

    use super::*;

    const OTHER_USER: u32 = 54_321;
    const A_GROUP: u32 = 54_322;
    const OTHER_GROUP: u32 = 54_323;

    fn other_user() -> Credentials {
        Credentials { uid: OTHER_USER, gid: A_GROUP, groups: vec![OTHER_GROUP] }
    }

    /// Returns the users, groups and effective capabilities of the calling thread, as the kernel shows
    /// them.
    fn thread_status() -> Vec<String> {
        let text = fs::read_to_string("/proc/thread-self/status").unwrap();
        let wanted =
            |line: &&str| ["Uid:", "Gid:", "Groups:", "CapEff:"].iter().any(|key| line.starts_with(key));
        text.lines().filter(wanted).map(str::to_owned).collect()
    }

    #[test]
    fn a_thread_assumes_rights_and_gets_its_own_back() {
        if !geteuid().is_root() {
            assert_eq!(other_user().assume().unwrap_err(), Errno::EPERM);
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let (closed, grouped) = (folder.path().join("closed"), folder.path().join("grouped"));
        for path in [&closed, &grouped] {
            fs::write(path, "x").unwrap();
        }
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(&grouped, fs::Permissions::from_mode(0o040)).unwrap();
        chown(&grouped, None, Some(OTHER_GROUP)).unwrap();
        let before = thread_status();
        {
            let _as_somebody = other_user().assume().unwrap();
            assert!(fs::read(&closed).is_err() && chown(&grouped, Some(OTHER_USER), None).is_err());
            assert_eq!(fs::read(&grouped).unwrap(), b"x");
            fs::write(folder.path().join("new"), "").unwrap();
            let status = thread_status();
            assert_eq!(
                status[0],
                format!("Uid:\t0\t0\t0\t{OTHER_USER}"),
                "only the file-system user is another"
            );
            assert_eq!(status[3].trim_start_matches("CapEff:\t").trim_start_matches('0'), "");
            let other_thread = thread::spawn(thread_status).join().unwrap();
            assert_ne!(other_thread, before, "a thread begins as the one that starts it");
        }
        assert_eq!(thread_status(), before);
        let made = fs::metadata(folder.path().join("new")).unwrap();
        assert_eq!((made.uid(), made.gid()), (OTHER_USER, A_GROUP));
    }

    #[test]
    fn other_threads_keep_their_identity() {
        if !geteuid().is_root() {
            return;
        }
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let before = thread_status();
        let other = thread::spawn(move || {
            asked.recv().unwrap();
            tell.send(thread_status()).unwrap();
        });
        let assumed = other_user().assume().unwrap();
        ask.send(()).unwrap();
        assert_eq!(told.recv().unwrap(), before);
        drop(assumed);
        other.join().unwrap();
    }

    #[test]
    fn a_panic_leaves_no_wrong_rights_behind() {
        if !geteuid().is_root() {
            return;
        }
        let before = thread_status();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _as_somebody = other_user().assume().unwrap();
            panic!("in the middle");
        }));
        assert!(panicked.is_err());
        assert_eq!(thread_status(), before);
    }

    #[test]
    fn an_assumed_identity_cannot_assume_another() {
        if !geteuid().is_root() {
            return;
        }
        let before = thread_status();
        let assumed = other_user().assume().unwrap();
        let other = Credentials { uid: OTHER_USER + 1, ..other_user() };
        assert_eq!(other.assume().unwrap_err(), Errno::EPERM);
        drop(assumed);
        assert_eq!(thread_status(), before);
    }
}
