//! The programs that people use, on a mount: cp, pv, find, tar, b3sum, ffprobe, mpv.

use std::fs;
use std::path::Path;

use crate::world::{WORMHOLE, World, noise, printed_by, run, words};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn cp_tar_find_and_pv_read_equal_bytes() {
    let world = World::new();
    for folder in 0..20 {
        let path = world.source().join(format!("folder {folder}"));
        fs::create_dir(&path).unwrap();
        for file in 0..20 {
            fs::write(path.join(format!("file {file}")), noise(folder * 1000 + file, file as u64)).unwrap();
        }
    }
    fs::write(world.source().join("large"), noise(20_000_000, 1)).unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let (source, copy) = (world.source(), world.path("copy"));
    printed_by("cp", &["-a", text(&mount.point), text(&copy)]);
    printed_by("diff", &["-r", text(&source), text(&copy)]);
    let archive = world.path("archive.tar");
    printed_by("tar", &["-C", text(&mount.point), "-cf", text(&archive), "."]);
    printed_by("tar", &["-C", text(&source), "-df", text(&archive)]);
    let count = |root: &Path| printed_by("find", &[text(root), "-type", "f", "-size", "+1"]).lines().count();
    assert_eq!(count(&mount.point), count(&source));
    let piped = run("pv", &["-q", text(&mount.path("large"))]);
    assert!(piped.stdout == noise(20_000_000, 1), "pv read other bytes: {}", words(&piped));
}

#[test]
fn sums_are_those_of_b3sum_and_move_no_content() {
    let world = World::new();
    for len in [0, 1, 262_144, 5_000_000] {
        fs::write(world.source().join(format!("{len} bytes")), noise(len, 5)).unwrap();
    }
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    for len in [0, 1, 262_144, 5_000_000] {
        let name = format!("{len} bytes");
        let ours = printed_by(WORMHOLE, &["sum", text(&mount.path(&name))]);
        let theirs = printed_by("b3sum", &[text(&world.source().join(&name))]);
        assert_eq!(ours.split(' ').next(), theirs.split(' ').next());
    }
    let received = mount.status()["wire_received_bytes"].as_u64().unwrap();
    assert!(received < 1_000_000, "{received} bytes came over the wire for four sums");
    let elsewhere = run(WORMHOLE, &["sum", text(&world.source().join("1 bytes"))]);
    assert_eq!(elsewhere.status.code(), Some(2), "a file that is on no mount has no sum to ask for");
}

#[test]
fn media_players_find_their_way() {
    let world = World::new();
    let film = world.source().join("film.mp4");
    // The index of an mp4 lies at its end unless asked otherwise: a player reads the tail first.
    let source = "testsrc=duration=20:size=640x360:rate=25";
    printed_by(
        "ffmpeg",
        &["-loglevel", "error", "-f", "lavfi", "-i", source, "-c:v", "mpeg4", "-b:v", "2M", text(&film)],
    );
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let probe = |path: &Path| {
        printed_by("ffprobe", &["-v", "error", "-show_streams", "-show_format", text(path)])
            .replace(text(path), "FILM")
    };
    assert_eq!(probe(&mount.path("film.mp4")), probe(&film));
    let played = run(
        "mpv",
        &[
            "--no-config",
            "--vo=null",
            "--ao=null",
            "--frames=50",
            "--start=15",
            text(&mount.path("film.mp4")),
        ],
    );
    assert!(played.status.success(), "mpv: {}", words(&played));
}
