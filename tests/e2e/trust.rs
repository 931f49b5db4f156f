//! Who is let in, who is not, and that both sides say why.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use wormhole::transport::Ticket;

use crate::world::{WORMHOLE, World, plain_users_can_mount, printed_by, run, words, wormhole};

/// Mounts with `source` and expects a refusal; gives its words.
fn refusal(world: &World, source: &str, options: &str) -> String {
    let (mount, output) = world.try_mount_as("refused", source, options);
    assert_eq!(output.status.code(), Some(32), "{}", words(&output));
    assert!(!mount.is_mounted());
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert_eq!(words.lines().count(), 1, "an error is one line: {words}");
    words
}

#[test]
fn strangers_are_refused_in_words() {
    let world = World::new();
    let host = world.host();
    let port = format!("port={}", host.listening.port());
    let unknown_host = refusal(&world, "127.0.0.1:/export", &port);
    assert!(unknown_host.contains("known_hosts") || unknown_host.contains("ticket"), "{unknown_host}");
    world.mount(&host.ticket, "").umount();
    let unknown_export = refusal(&world, "127.0.0.1:/other", &port);
    assert!(unknown_export.contains("other"), "{unknown_export}");
    fs::remove_dir_all(world.path("client-state/..").join("client-state")).unwrap();
    let second_key = refusal(&world, &host.ticket, "");
    assert!(second_key.contains("ticket"), "one key a ticket: {second_key}");
}

#[test]
fn revoked_tickets_and_keys_stay_out() {
    let world = World::new();
    let host = world.host();
    let state = world.path("host-state");
    let state = state.to_str().unwrap();
    let made = printed_by(WORMHOLE, &["pair", "new", "export", "--state-dir", state, "--json"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    printed_by(WORMHOLE, &["pair", "revoke", made["id"].as_str().unwrap(), "--state-dir", state]);
    let revoked = refusal(&world, made["ticket"].as_str().unwrap(), "");
    assert!(revoked.contains("revoked"), "{revoked}");

    let made =
        printed_by(WORMHOLE, &["pair", "new", "export", "--expires", "1s", "--state-dir", state, "--json"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let expired = refusal(&world, made["ticket"].as_str().unwrap(), "");
    assert!(expired.contains("expired"), "{expired}");

    world.mount(&host.ticket, "").umount();
    let keys: serde_json::Value =
        serde_json::from_str(&printed_by(WORMHOLE, &["key", "list", "--state-dir", state, "--json"]))
            .unwrap();
    printed_by(WORMHOLE, &["key", "revoke", keys[0]["key"].as_str().unwrap(), "--state-dir", state]);
    refusal(&world, "127.0.0.1:/export", &format!("port={}", host.listening.port()));
}

#[test]
fn a_ticket_that_nobody_used_is_shown_again_and_none_where_none_is_wanted() {
    let world = World::new();
    let mut host = world.host();
    let secret = |ticket: &str| ticket.parse::<Ticket>().unwrap().secret();
    let first = secret(&host.ticket);
    host.kill();
    let mut again = world.host();
    assert_eq!(secret(&again.ticket), first, "the same one");
    world.mount(&again.ticket, "").umount();
    again.kill();
    let mut used = world.host();
    assert_ne!(secret(&used.ticket), first, "nobody else comes in by it");
    used.kill();
    let state = world.path("host-state");
    let tickets = || fs::read(state.join("tickets.json")).unwrap();
    let before = tickets();
    for json in [false, true] {
        let mut command = wormhole();
        command.args(["host", "--no-ticket", "--listen", "127.0.0.1:0", "--state-dir"]).arg(&state);
        if json {
            command.arg("--json");
        }
        let mut child = command.arg(world.source()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut said = lines.next().unwrap();
        if !json {
            said.push_str(&lines.next().unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        said.extend(lines);
        assert!(said.contains("identity") && !said.contains("ticket"), "{said}");
    }
    assert_eq!(tickets(), before, "none was made");
    let unit = include_str!("../../packaging/systemd/wormhole-host.service");
    assert!(unit.contains("wormhole host --no-ticket "), "as the service runs");
}

#[test]
fn keys_have_names_and_the_rights_of_their_ticket() {
    let world = World::new();
    fs::write(world.source().join("file"), "content").unwrap();
    let host = world.host();
    let state = world.path("host-state");
    let state = state.to_str().unwrap();
    let new = ["pair", "new", "--read-only", "--name", "living room", "--state-dir", state, "--json"];
    let made: serde_json::Value = serde_json::from_str(&printed_by(WORMHOLE, &new)).unwrap();
    assert_eq!((made["read_only"].as_bool(), made["name"].as_str()), (Some(true), Some("living room")));
    let mount = world.mount(made["ticket"].as_str().unwrap(), "");
    let refused = fs::write(mount.path("file"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    // A line that is not understood is named by all who look at the keys.
    let keys = world.path("host-state/authorized_keys");
    let text = fs::read_to_string(&keys).unwrap();
    fs::write(&keys, format!("{text}nonsense\n")).unwrap();
    let list = run(WORMHOLE, &["key", "list", "--state-dir", state]);
    let (out, said) = (String::from_utf8_lossy(&list.stdout), String::from_utf8_lossy(&list.stderr));
    assert!(out.contains("living room") && out.contains(" ro"), "{out}");
    assert!(said.contains("authorized_keys line 2"), "{said}");
    let as_root = nix::unistd::geteuid().is_root();
    assert_eq!(out.contains("ro,root"), as_root, "root owns the folder and runs the host: {out}");
    let clients = &host.status()["clients_connected"];
    assert_eq!(
        (&clients[0]["name"], &clients[0]["rights"]),
        (&"living room".into(), &"ro".into()),
        "{clients}"
    );
    assert!(printed_by(WORMHOLE, &["status"]).contains("living room"));
    mount.umount();
}

#[test]
fn folders_of_keys_that_others_may_write_to_are_refused_with_the_cure() {
    let world = World::new();
    let host = world.host();
    world.mount(&host.ticket, "").umount();
    let open = |folder: &str, mode| {
        fs::set_permissions(world.path(folder), PermissionsExt::from_mode(mode)).unwrap();
    };
    let port = format!("port={}", host.listening.port());
    open("client-state", 0o777);
    let (mount, output) = world.try_mount_as("mnt", "127.0.0.1:/export", &port);
    assert!(!output.status.success() && !mount.is_mounted());
    assert!(words(&output).contains("chmod go-w"), "{}", words(&output));
    open("client-state", 0o700);
    world.mount("127.0.0.1:/export", &port).umount();
    open("host-state", 0o777);
    let output = run(WORMHOLE, &["key", "list", "--state-dir", world.path("host-state").to_str().unwrap()]);
    assert!(!output.status.success());
    assert!(words(&output).contains("chmod go-w"), "{}", words(&output));
}

#[test]
fn secrets_are_for_their_owner_only() {
    let world = World::new();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    for folder in ["host-state", "client-state", "cache"] {
        let mut folders = vec![world.path(folder)];
        while let Some(folder) = folders.pop() {
            let mode = fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o700, "{}", folder.display());
            for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    assert_eq!(
                        entry.metadata().unwrap().permissions().mode() & 0o077,
                        0,
                        "{}",
                        entry.path().display()
                    );
                }
            }
        }
    }
    let daemon = mount.daemon().unwrap();
    for file in ["cmdline", "environ"] {
        let shown =
            String::from_utf8_lossy(&fs::read(format!("/proc/{daemon}/{file}")).unwrap()).into_owned();
        assert!(!shown.contains(&host.ticket), "the ticket stays visible in {file}");
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&host.ticket));
}

#[test]
fn a_ticket_comes_from_a_file_standard_input_or_the_environment() {
    use std::io::Write;
    let world = World::new();
    fs::write(world.source().join("file"), b"content").unwrap();
    let host = world.host();
    fs::write(world.path("ticket"), format!("{}\n", host.ticket)).unwrap();
    world.mount(&format!("@{}", world.path("ticket").display()), "").umount();
    let point = world.path("mnt");
    for way in ["-", "environment"] {
        let mut command = Command::new(WORMHOLE);
        command.arg("mount");
        if way == "-" {
            command.arg("-").stdin(Stdio::piped());
        } else {
            command.env("WORMHOLE_TICKET", &host.ticket).stdin(Stdio::null());
        }
        command
            .arg(&point)
            .arg("--state-dir")
            .arg(world.path("client-state"))
            .arg("--cache-dir")
            .arg(world.path("cache"));
        let mut child = command.spawn().unwrap();
        if let Some(mut stdin) = child.stdin.take() {
            writeln!(stdin, "{}", host.ticket).unwrap();
        }
        assert!(child.wait().unwrap().success(), "by {way}");
        assert_eq!(fs::read(point.join("file")).unwrap(), b"content");
        assert!(run("umount", &[point.to_str().unwrap()]).status.success());
    }
}

#[test]
fn a_plain_user_mounts_through_fusermount() {
    // Where a plain user runs the tests, every other test here is this one.
    if !nix::unistd::geteuid().is_root() || !plain_users_can_mount() {
        return;
    }
    let world = World::new();
    fs::write(world.source().join("file"), b"content").unwrap();
    let host = world.host();
    fs::set_permissions(world.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let home = world.path("home");
    fs::create_dir(&home).unwrap();
    fs::create_dir(home.join("mnt")).unwrap();
    printed_by("chown", &["-R", "nobody", home.to_str().unwrap()]);
    // The binary may lie where only root may look.
    let binary = world.path("wormhole");
    fs::copy(WORMHOLE, &binary).unwrap();
    let as_nobody = |command: &str| {
        let command = format!("cd {0} && export HOME={0} XDG_RUNTIME_DIR={0} && {command}", home.display());
        run("setpriv", &["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--", "sh", "-c", &command])
    };
    let mounted = as_nobody(&format!("{} mount {} mnt", binary.display(), host.ticket));
    assert!(mounted.status.success(), "{}", words(&mounted));
    assert_eq!(String::from_utf8_lossy(&as_nobody("cat mnt/file").stdout), "content");
    let ended = as_nobody(&format!("{} umount mnt", binary.display()));
    assert!(ended.status.success(), "{}", words(&ended));
}

/// Fails where a text shows a piece of a ticket.
#[track_caller]
fn shows_no_ticket(ticket: &str, text: &str, of: &str) {
    let pieces = ticket.as_bytes().windows(24).map(|piece| std::str::from_utf8(piece).unwrap());
    for piece in pieces {
        assert!(!text.contains(piece) && !text.contains(&piece.to_uppercase()), "{of} shows {piece}: {text}");
    }
}

#[test]
fn a_ticket_is_never_shown_whatever_is_wrong_with_it() {
    let world = World::new();
    let host = world.host();
    let ticket = host.ticket.clone();
    let mistyped = ticket.replacen(&ticket[30..31], if &ticket[30..31] == "a" { "b" } else { "a" }, 1);
    let middle = ticket.len() / 2;
    let wrapped = format!("{} {}", &ticket[..middle], &ticket[middle..]);
    let forms = [
        ticket.clone(),
        mistyped,
        ticket.to_uppercase(),
        ticket[..ticket.len() - 9].to_owned(),
        ticket[1..].to_owned(),
        ticket[4..].to_owned(),
        ticket[40..].to_owned(),
        wrapped,
        format!("ticket:{ticket}"),
        format!("{ticket}:/export"),
        format!("wormhole://{ticket}/export"),
        format!("wormhole://nas:{ticket}/export"),
        format!("{ticket}://nas"),
        format!("@{ticket}"),
        format!("\"{ticket}\""),
    ];
    let file = world.path("ticket");
    for form in &forms {
        fs::write(&file, form).unwrap();
        let from_file = format!("@{}", file.display());
        let options = format!("credentials={form}");
        let nowhere = "/nowhere/at/all";
        for arguments in [
            &["-vv", "mount", form, nowhere][..],
            &["-vv", "mount", &from_file, nowhere],
            &["mount", "nas:/media", form],
            &["mount", "-o", &options, "nas:/media", nowhere],
            &["mount", "-o", form, "nas:/media", nowhere],
            &["mount", form, nowhere, "one", "too many"],
            &["mount", nowhere, nowhere, form],
            &["umount", form],
            &["status", form],
            &[form],
            &["doctor", "--no-such-option", form],
        ] {
            let output = wormhole().args(arguments).output().unwrap();
            assert!(!output.status.success(), "{arguments:?}");
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            shows_no_ticket(&ticket, &said, &format!("{arguments:?}"));
            assert!(!said.trim().is_empty(), "{arguments:?}");
        }
    }
}

#[test]
fn a_ticket_that_was_typed_leaves_the_list_of_processes_at_once() {
    let world = World::new();
    let host = world.host();
    // Somebody who takes connections and says nothing: the mount waits.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ticket = host.ticket_for(silent.local_addr().unwrap());
    let point = world.path("mnt");
    fs::create_dir(&point).unwrap();
    for front in [false, true] {
        let mut command = world.mount_command(&ticket, &point);
        if front {
            command.arg("--foreground");
        }
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let cmdline = |pid: &str| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let (pid, shown) = (child.id().to_string(), |text: &[u8]| String::from_utf8_lossy(text).into_owned());
        crate::world::wait_until("the ticket is out of sight", || {
            let words = shown(&cmdline(&pid));
            words.contains("mnt") && !words.contains(&ticket)
        });
        // Of the daemon, too, which waits for the host.
        crate::world::wait_until("the daemon waits", || {
            fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                let words = shown(&cmdline(&entry.file_name().to_string_lossy()));
                words.contains("mount-daemon") && words.contains(point.to_str().unwrap())
            })
        });
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let words = shown(&cmdline(&entry.file_name().to_string_lossy()));
            assert!(!words.contains(&ticket), "{words}");
        }
        assert!(child.try_wait().unwrap().is_none(), "it waits");
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        )
        .unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn hosts_that_share_their_state_do_not_forget_each_other() {
    let world = World::new();
    let state = world.path("host-state");
    let new_ticket = |export: &[&str]| -> Vec<String> {
        let arguments = [&["pair", "new"][..], export, &["--state-dir", state.to_str().unwrap()]].concat();
        let said = printed_by(WORMHOLE, &arguments);
        let word = said.split_ascii_whitespace().find(|word| word.starts_with("whm1")).unwrap();
        word.parse::<Ticket>().unwrap().addresses().iter().map(ToString::to_string).collect()
    };
    let first = world.host();
    let second = world.host();
    assert_eq!(new_ticket(&[]), [second.listening.to_string()]);
    drop(second);
    assert_eq!(new_ticket(&[]), [first.listening.to_string()]);
    assert_eq!(new_ticket(&["export"]), [first.listening.to_string()]);
}
