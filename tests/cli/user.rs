//! The same as a plain user, by `fusermount3`, where root runs the tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::stage::{can_mount, code, errors};

/// What a user types; the first failure ends it. `/dev/fuse` belongs to everybody, as udev sets it up.
const SCRIPT: &str = r#"
set -eu
mount -t tmpfs none dev
mknod -m 666 dev/fuse c 10 229
mount --bind dev/fuse /dev/fuse
exec setpriv --reuid 65534 --regid 65534 --clear-groups env HOME="$PWD/home" sh -eu -c '
    unset XDG_RUNTIME_DIR XDG_STATE_HOME XDG_CACHE_HOME
    mkdir -p export/a,b home mnt
    echo hello > export/file
    ./wormhole host --json --listen 127.0.0.1:0 export="$PWD/export" > greeting &
    trap "kill $!" EXIT
    while ! grep -q ticket greeting; do sleep 0.01; done
    sed "s/.*\"ticket\":\"\([^\"]*\)\".*/\1/" greeting > ticket
    echo == by our own command
    # What only root can change is not told at each mount, but where one looks for it.
    ./wormhole mount @ticket mnt 2> said
    cat said
    test ! -s said
    if test "$(cat /proc/sys/net/core/rmem_max)" -lt 16777216; then ./wormhole status | grep "socket buffers"; fi
    grep " $PWD/mnt .* fuse.wormhole .*user_id=65534" /proc/self/mountinfo
    cmp export/file mnt/file
    ./wormhole status | grep "^$PWD/mnt"
    ./wormhole umount mnt
    ls home/.local/state/wormhole/client/known_hosts home/.cache/wormhole
    echo == with a comma in the source
    port=$(sed "s/.*\"listening\":\"[^\"]*:\([0-9]*\)\".*/\1/" greeting)
    ./wormhole mount 127.0.0.1:/export/a,b mnt -o port=$port
    grep "fuse.wormhole wormhole://127.0.0.1:$port/export/a,b " /proc/self/mountinfo
    ./wormhole umount mnt
    echo == by fusermount3
    ./wormhole mount @ticket mnt
    fusermount3 -u mnt
    echo == by force
    ./wormhole mount @ticket mnt
    ./wormhole umount -f mnt
    if grep " $PWD/mnt " /proc/self/mountinfo; then exit 1; fi
    echo == what is for root
    if ./wormhole mount @ticket mnt -o suid; then exit 1; fi
    while ls /tmp/wormhole-65534 | grep mount; do sleep 0.01; done
'
"#;

/// As in a container where nobody set the device up.
const ROOT_S_OWN: &str = r"
set -eu
mount -t tmpfs none dev
mknod -m 600 dev/fuse c 10 229
mount --bind dev/fuse /dev/fuse
exec setpriv --reuid 65534 --regid 65534 --clear-groups ./wormhole mount nas:/m mnt
";

#[test]
fn a_device_that_only_root_may_open_is_named_with_its_cure() {
    if !can_mount() || !nix::unistd::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    for name in ["dev", "mnt"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    fs::copy(env!("CARGO_BIN_EXE_wormhole"), folder.path().join("wormhole")).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", ROOT_S_OWN])
        .env_remove("WORMHOLE_TICKET")
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = errors(&output);
    assert_eq!(code(&output), 2, "{said}");
    for part in ["/dev/fuse", "mode 0600", "chmod 666 /dev/fuse", "udev"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!said.contains("install"), "no package is missing: {said}");
}

#[test]
fn a_plain_user_mounts_and_unmounts() {
    if !can_mount() || !nix::unistd::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    fs::create_dir(folder.path().join("dev")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_wormhole"), folder.path().join("wormhole")).unwrap();
    let output = Command::new("timeout")
        .args(["60", "unshare", "--mount", "sh", "-c", SCRIPT])
        .current_dir(folder.path().canonicalize().unwrap())
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}{}", String::from_utf8_lossy(&output.stdout), errors(&output));
}
