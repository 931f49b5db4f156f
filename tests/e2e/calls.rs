//! Single system calls on a mount, beside the same ones in a local folder (`calls.py`).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::world::{World, printed_by};

/// What FUSE or its library does not pass on, and what the call gives on a mount.
const NOT_PASSED_ON: [(&str, &str); 7] = [
    ("rename whiteout", "('EINVAL', ['a'])"),
    ("fallocate collapse", "['EOPNOTSUPP', 'EOPNOTSUPP', 'EOPNOTSUPP']"),
    ("fallocate insert", "['EOPNOTSUPP', 'EOPNOTSUPP', 'EOPNOTSUPP']"),
    ("tmpfile", "'EOPNOTSUPP'"),
    ("time of birth", "False"),
    ("attributes of chattr", "('ENOTTY', 'ENOTTY')"),
    ("maps of extents", "'EOPNOTSUPP'"),
];

#[test]
fn system_calls_give_what_they_give_in_a_local_folder() {
    let world = World::new();
    let host = world.host();
    let mount = world.mount_for_all(&host);
    let script = world.path("calls.py");
    fs::write(&script, include_str!("calls.py")).unwrap();
    let local = world.path("local");
    fs::create_dir(&local).unwrap();
    fs::set_permissions(&local, Permissions::from_mode(0o755)).unwrap();
    let lines = |folder: &Path| -> Vec<(String, String)> {
        let printed = printed_by("python3", &[script.to_str().unwrap(), folder.to_str().unwrap()]);
        printed
            .lines()
            .map(|line| line.split_once(": ").unwrap())
            .map(|(a, b)| (a.into(), b.into()))
            .collect()
    };
    let (here, there) = (lines(&local), lines(&mount.point));
    assert!(here.len() > 40 && here.len() == there.len(), "{} and {} cases", here.len(), there.len());
    let mut wrong = Vec::new();
    for ((name, local), (_, mounted)) in here.iter().zip(&there) {
        let known = NOT_PASSED_ON.iter().find(|(known, _)| known == name).map(|(_, given)| *given);
        if mounted != known.unwrap_or(local) {
            wrong.push(format!("{name}:\n  local   {local}\n  mounted {mounted}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.concat());
}
