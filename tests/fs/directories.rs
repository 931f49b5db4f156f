//! Listings: complete, seekable, and what follows them without a round trip.

use std::collections::BTreeSet;
use std::time::Duration;

use wormhole::client::memory::{MemoryHost, Stage};
use wormhole::fs::{DirectoryItem, Freshness, FsConfig, Inode, Lookup};
use wormhole::proto::{Errno, Request};

use super::{FLEETING, LASTING, World};

fn many(count: u32) -> MemoryHost {
    let host = MemoryHost::new();
    for number in 0..count {
        host.create_file(format!("d/{number:06}"), "");
    }
    host
}

#[tokio::test]
async fn a_hundred_thousand_entries_are_complete_and_seekable() {
    let host = many(100_000);
    let world = World::new(host, LASTING);
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    let all = world.list_from(handle, 0).await;
    assert_eq!(all.len(), 100_002);
    assert_eq!((all[0].0.as_slice(), all[1].0.as_slice()), (b".".as_slice(), b"..".as_slice()));
    let names: BTreeSet<_> = all.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names.len(), all.len());
    for place in [0, 1, 2, 77, 50_000, 100_000, 100_001] {
        let behind = world.list_from(handle, all[place].1).await;
        assert_eq!(behind, all[place + 1..]);
    }
    world.fs.releasedir(handle).unwrap();
    world.fs.forget(folder.inode, 1);
    world.assert_idle();
}

#[tokio::test]
async fn listings_take_no_more_memory_than_they_may_together() {
    let host = many(20_000);
    host.create_file("small/file", "");
    let config = FsConfig { freshness: FLEETING, listings_bytes_max: 3 << 20, ..FsConfig::default() };
    let world = World::with_config(host, config);
    let (large, small) = (world.walk("d").await.unwrap(), world.walk("small").await.unwrap());
    let list = async |inode| {
        let handle = world.fs.opendir(inode).unwrap();
        let mut at = 0;
        let ended = loop {
            let before = at;
            let take = |item: &DirectoryItem<'_>| {
                at = item.next_offset;
                true
            };
            match world.fs.readdir(handle, before, false, take).await {
                Ok(()) if at == before => break Ok(at),
                Ok(()) => {}
                Err(error) => break Err(error),
            }
        };
        world.fs.releasedir(handle).unwrap();
        ended
    };
    for _ in 0..3 {
        let error = list(large.inode).await.unwrap_err();
        assert_eq!(error.errno(), Errno::ENOMEM, "{error}");
        // What it took is free again when nobody holds it.
        assert_eq!(list(small.inode).await.unwrap(), 3);
    }
}

/// `ls -l` of a large directory takes longer than its listing holds.
#[tokio::test]
async fn a_listing_that_has_aged_is_renewed_ahead_of_who_goes_through_it() {
    const FILES: u32 = 3_000;
    let holds = Duration::from_millis(700);
    let freshness = Freshness { attributes: holds, entries: holds, absence: holds };
    let host = many(FILES);
    let world = World::new(host.clone(), freshness);
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    let names: Vec<Vec<u8>> =
        world.list_from(handle, 0).await.into_iter().skip(2).map(|(name, _)| name).collect();
    tokio::time::sleep(holds).await;
    // What changes meanwhile is seen.
    host.append("d/002000", "longer");
    host.unlink("d/002500");
    host.reset_counters();
    for name in &names {
        let found = world.fs.lookup(folder.inode, name).await.unwrap();
        match (name.as_slice(), found) {
            (b"002500", Lookup::Absent { .. }) => {}
            (b"002000", Lookup::Found(entry)) => assert_eq!(entry.attributes.size, 6),
            (name, Lookup::Found(entry)) => {
                assert_eq!((entry.attributes.size, name == b"002500"), (0, false));
            }
            (name, Lookup::Absent { .. }) => panic!("{} is gone", String::from_utf8_lossy(name)),
        }
    }
    let counters = host.counters();
    assert!(counters.lookups < 50 && (4..50).contains(&counters.lookups_many), "{counters:?}");
}

#[tokio::test]
async fn who_jumps_about_in_a_listing_that_has_aged_asks_for_what_he_wants() {
    let holds = Duration::from_millis(1);
    let freshness = Freshness { attributes: holds, entries: holds, absence: holds };
    let host = many(100);
    let world = World::new(host.clone(), freshness);
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    world.list_from(handle, 0).await;
    tokio::time::sleep(holds).await;
    for number in [50, 10, 90, 30] {
        assert!(matches!(
            world.fs.lookup(folder.inode, format!("{number:06}").as_bytes()).await,
            Ok(Lookup::Found(_))
        ));
    }
    assert_eq!(host.counters().lookups_many, 0);
}

#[tokio::test]
async fn entries_are_given_as_they_arrive() {
    let host = many(250);
    host.hold(|request, stage| matches!((request, stage), (Request::ReadDirectory { .. }, Stage::Part(1))));
    let world = World::new(host.clone(), LASTING);
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    let mut first = Vec::new();
    let take = |item: &DirectoryItem<'_>| {
        first.push(item.next_offset);
        true
    };
    world.fs.readdir(handle, 2, false, take).await.unwrap();
    assert_eq!(first.len(), 100);
    host.release_all();
    assert_eq!(world.list_from(handle, 0).await.len(), 252);
}

#[tokio::test]
async fn a_listing_is_one_moment_until_rewound() {
    let host = many(3);
    let world = World::new(host.clone(), FLEETING);
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    let before = world.list_from(handle, 0).await;
    host.create_file("d/new", "");
    assert_eq!(world.list_from(handle, before[1].1).await, before[2..]);
    assert_eq!(world.list_from(handle, 0).await.len(), before.len() + 1);
}

#[tokio::test]
async fn readdirplus_counts_a_lookup_for_each_entry_that_was_taken() {
    let world = World::new(many(10), LASTING);
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    let mut taken = Vec::new();
    let take = |item: &DirectoryItem<'_>| {
        let has_room = taken.len() < 6;
        if has_room {
            taken.push(item.entry);
        }
        has_room
    };
    world.fs.readdir(handle, 0, true, take).await.unwrap();
    let entries: Vec<_> = taken.into_iter().flatten().collect();
    assert_eq!(entries.len(), 4, "`.` and `..` are not counted");
    assert_eq!(world.fs.gauges().inodes, 5);
    for entry in &entries {
        world.fs.forget(entry.inode, 1);
    }
    world.fs.releasedir(handle).unwrap();
    world.fs.forget(folder.inode, 1);
    world.assert_idle();
}

#[tokio::test]
async fn lookups_after_a_listing_cost_nothing_while_it_holds() {
    let host = many(50);
    let world = World::new(host.clone(), LASTING);
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    world.list_from(handle, 0).await;
    host.reset_counters();
    for number in 0..50 {
        world.walk(&format!("d/{number:06}")).await.unwrap();
    }
    assert!(matches!(world.fs.lookup(folder.inode, b"absent").await, Ok(Lookup::Absent { .. })));
    // `d` itself, which is in no listing.
    assert_eq!(host.counters().requests(), 50);
    assert_eq!(host.counters().lookups, 50);
}

#[tokio::test]
async fn the_numbers_in_a_listing_are_those_of_the_files() {
    let host = many(3);
    let world = World::new(host, LASTING);
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    let mut numbers = Vec::new();
    let take = |item: &DirectoryItem<'_>| {
        numbers.push((item.name.to_vec(), item.number));
        true
    };
    world.fs.readdir(handle, 0, false, take).await.unwrap();
    world.fs.readdir(handle, 2, false, |_| true).await.unwrap();
    assert_eq!(numbers[0].1, folder.number);
    assert_eq!(numbers[1].1, world.host.root_node().inode, "the root's on the host");
    for (name, number) in &numbers[2..] {
        let name = String::from_utf8(name.clone()).unwrap();
        assert_eq!(world.walk(&format!("d/{name}")).await.unwrap().number, *number);
    }
}

#[tokio::test]
async fn a_listing_that_fails_says_so_and_the_next_one_works() {
    use wormhole::proto::{Errno, WireError};
    let host = many(3);
    host.set_errors(|request| {
        matches!(request, Request::ReadDirectory { .. }).then(|| WireError::system(Errno::EACCES))
    });
    let world = World::new(host.clone(), LASTING);
    let handle = world.fs.opendir(Inode::ROOT).unwrap();
    let error = world.fs.readdir(handle, 0, false, |_| true).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EACCES);
    host.set_errors(|_| None);
    assert_eq!(world.list_from(handle, 0).await.len(), 3);
}

#[tokio::test]
async fn whoever_asks_for_names_one_by_one_gets_a_listing_behind_his_back() {
    let host = many(50);
    let world = World::new(host.clone(), LASTING);
    let folder = world.walk("d").await.unwrap();
    for number in 0..3 {
        world.fs.lookup(folder.inode, format!("{number:06}").as_bytes()).await.unwrap();
    }
    while world.fs.gauges().listings == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(host.counters().listings, 1);
    host.reset_counters();
    for number in 3..50 {
        world.fs.lookup(folder.inode, format!("{number:06}").as_bytes()).await.unwrap();
    }
    assert!(matches!(world.fs.lookup(folder.inode, b"absent").await, Ok(Lookup::Absent { .. })));
    assert_eq!(host.counters().requests(), 0);
}

#[tokio::test]
async fn two_names_do_not_make_a_walk() {
    let host = many(50);
    let world = World::new(host.clone(), LASTING);
    let folder = world.walk("d").await.unwrap();
    for number in 0..2 {
        world.fs.lookup(folder.inode, format!("{number:06}").as_bytes()).await.unwrap();
    }
    assert_eq!(host.counters().listings, 0);
}
