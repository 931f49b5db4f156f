//! Locks of files that lose their names meanwhile.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::locking::{Actor, stage};
use crate::world::wait_until;

/// Programs that remove their lock files look, once they have the lock, whether it still is the file of that name.
#[test]
fn whoever_is_given_a_lock_sees_what_became_of_the_name() {
    let (world, _host, one, other) = stage("");
    let source = world.source().join("file");
    let places = [source.clone(), other.path("file")];
    let remove = "os.unlink(PATH)";
    let replace = "[open(PATH + '.new', 'w').close(), os.rename(PATH + '.new', PATH)][1]";
    let away = "os.rename(PATH, PATH + '.away')";
    for waits in [true, false] {
        for (number, change) in [remove, replace, away].into_iter().cycle().take(9).enumerate() {
            let path = &places[number % 2];
            let change = change.replace("PATH", &format!("'{}'", path.display()));
            fs::write(&source, "1").unwrap();
            let name = one.path("file");
            wait_until("the mount has seen the new file", || {
                let (shown, there) = (fs::metadata(&name), fs::metadata(&source).unwrap());
                shown.is_ok_and(|shown| shown.ino() == there.ino())
            });
            let mut holder = Actor::with(path);
            let mut waiter = Actor::with(&name);
            let look = format!(
                "[os.fstat(f).st_nlink, os.path.exists('{0}'), os.path.exists('{0}') and os.stat('{0}').st_ino == os.fstat(f).st_ino]",
                name.display()
            );
            waiter.is(&look, "[1, True, True]");
            holder.is("fl(f, EX)", "None");
            if waits {
                waiter.begin("fl(f, EX)");
                waiter.waits();
            }
            holder.is(&change, "None");
            holder.is("fl(f, UN)", "None");
            if waits {
                assert_eq!(waiter.answer(), "None");
            } else {
                waiter.is("fl(f, EX|NB)", "None");
            }
            let expected = match number % 3 {
                0 => "[0, False, False]",
                1 => "[0, True, False]",
                _ => "[1, False, False]",
            };
            waiter.is(&look, expected);
            let _ = fs::remove_file(world.source().join("file.away"));
        }
    }
}
