//! The README and the packaged examples, line by line: what they say is typed is run, on a machine where everything is where they
//! say it is.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::world::{Lan, WORMHOLE, World, errors, plain_users_can_mount, wait_until, words};

/// Where the machine's programs of ours are, and what else it needs.
const PATH: &str = "/usr/sbin:/usr/bin:/bin";

/// The user of the machine.
const USER: &str = "1234";

/// A machine called `nas` with `wormhole` installed, films in `/srv/media`, and nothing of the real machine in the folders of ours.
struct Machine {
    world: World,
    lan: Lan,
}

impl Machine {
    /// `None` where a plain user runs the tests.
    fn new(tag: &str, address: &str) -> Option<Self> {
        let world = World::new();
        fs::set_permissions(world.path(""), PermissionsExt::from_mode(0o755)).unwrap();
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let passwd = format!("{passwd}ann:x:{USER}:{USER}::/home/ann:/bin/sh\n");
        let files = [("fstab", String::new()), ("passwd", passwd)];
        let lan = Lan::with_files(tag, &[&format!("{address}/32")], &format!("{address} nas\n"), &files)?;
        let machine = Self { world, lan };
        machine.put_programs();
        let media = machine.folder("/srv").join("media");
        for folder in ["docs/letters", "films", "other"] {
            fs::create_dir_all(media.join(folder)).unwrap();
        }
        fs::write(media.join("docs/letters/one.txt"), "dear\n").unwrap();
        fs::write(media.join("films/one.mkv"), crate::world::noise(3_000_000, 7)).unwrap();
        symlink("letters/one.txt", media.join("docs/latest")).unwrap();
        fs::create_dir(machine.folder("/mnt").join("wormhole")).unwrap();
        for folder in ["/var/lib", "/run"] {
            machine.folder(folder);
        }
        // The cache leaves a share of its disk free, and that of the tests may be fuller.
        machine.succeeds("mount -t tmpfs none /var/cache");
        let home = machine.folder("/home").join("ann");
        fs::create_dir_all(home.join("m")).unwrap();
        for folder in [&home, &home.join("m")] {
            std::os::unix::fs::chown(folder, Some(1234), Some(1234)).unwrap();
        }
        // A file must have lain still for two seconds to be kept.
        std::thread::sleep(std::time::Duration::from_millis(2100));
        Some(machine)
    }

    /// As the package does.
    fn put_programs(&self) {
        let programs = self.folder("/usr/sbin");
        let helper = Path::new(WORMHOLE).with_file_name("mount-wormhole");
        if !helper.exists() {
            let build = ["build", "--locked", "--package", "mount-helper"];
            assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success());
        }
        for (from, name) in [(Path::new(WORMHOLE), "wormhole"), (&helper, "mount.wormhole")] {
            fs::copy(from, programs.join(name)).unwrap();
            fs::set_permissions(programs.join(name), PermissionsExt::from_mode(0o755)).unwrap();
        }
    }

    /// Puts an empty folder in place of one of the machine's.
    fn folder(&self, place: &str) -> std::path::PathBuf {
        let folder = self.world.path(place.trim_start_matches('/'));
        fs::create_dir_all(&folder).unwrap();
        let bound = self.lan.run("mount", &["--bind", folder.to_str().unwrap(), place]);
        assert!(bound.status.success(), "{place}: {}", words(&bound));
        folder
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = self.lan.command("env");
        shell.args(["-i", &format!("PATH={PATH}"), "sh", "-c", command]);
        shell
    }

    /// Runs what is typed at a prompt of root.
    fn types(&self, command: &str) -> Output {
        self.shell(command).output().unwrap()
    }

    #[track_caller]
    fn succeeds(&self, command: &str) -> String {
        let output = self.types(command);
        assert!(output.status.success(), "{command}: {}", words(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs what the user types after a login.
    #[track_caller]
    fn user_succeeds(&self, command: &str) -> String {
        let mut login = self.lan.command("setpriv");
        login.args(["--reuid", USER, "--regid", USER, "--clear-groups", "env", "-i", "HOME=/home/ann"]);
        login.args([&format!("PATH={PATH}"), "sh", "-c", command]);
        let output = login.output().unwrap();
        assert!(output.status.success(), "{command}: {}", words(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts a daemon and waits for the lines that it is to print, `…` standing for anything. Gives what it printed.
    fn serves(&self, command: &str, expected: &[String]) -> (Daemon, Vec<String>) {
        let mut child = self.shell(&format!("exec {command}")).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let daemon = Daemon(child);
        let printed: Vec<String> = expected
            .iter()
            .map(|pattern| {
                let line = lines.next().expect("it ended before it had printed all").unwrap();
                let fits = match pattern.split_once('…') {
                    Some((before, after)) => line.starts_with(before) && line.ends_with(after),
                    None => line == *pattern,
                };
                // What is made up differs from its first letter on.
                let name = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
                assert!(
                    fits || pattern.contains('…') && name(&line) == name(pattern),
                    "{line:?} for {pattern:?}"
                );
                line
            })
            .collect();
        (daemon, printed)
    }
}

/// Killed when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The contents of the fenced blocks of a text, each with the word behind its fence.
fn blocks(text: &str) -> Vec<(String, Vec<String>)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, Vec<String>)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), open.as_mut()) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(kind), None) => open = Some((kind.to_owned(), Vec::new())),
            (None, Some((_, lines))) => lines.push(line.to_owned()),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block does not end");
    blocks
}

/// The blocks of one kind.
fn blocks_of(text: &str, kind: &str) -> Vec<Vec<String>> {
    blocks(text).into_iter().filter(|(found, _)| found == kind).map(|(_, lines)| lines).collect()
}

/// The commands of a console block, each with the lines that it prints.
fn commands(block: &[String]) -> Vec<(String, Vec<String>)> {
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    for line in block {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(typed), _) => {
                let typed = typed.split(" # ").next().unwrap_or_default().trim_end();
                commands.push((typed.to_owned(), Vec::new()));
            }
            (None, Some((_, printed))) => printed.push(line.clone()),
            (None, None) => panic!("{line:?} stands before any command"),
        }
    }
    commands
}

fn text_of(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

#[test]
fn every_line_of_the_readme_works() {
    let readme = text_of("README.md");
    let consoles: Vec<_> = blocks_of(&readme, "console").iter().map(|block| commands(block)).collect();
    let [host, client, journey] = consoles.as_slice() else { panic!("{} console blocks", consoles.len()) };
    let [(host_command, greeting)] = host.as_slice() else { panic!("one command hosts") };
    let fstab = blocks_of(&readme, "");
    assert!(fstab.len() == 1 && blocks(&readme).len() == 5, "every block is run here, or below");
    // These are runs of the whole, and have tests of their own.
    for line in blocks_of(&readme, "sh").iter().flatten() {
        assert!(
            line.starts_with("cargo run --release -- demo") || line.starts_with("cargo test --workspace"),
            "{line}"
        );
    }

    let Some(machine) = Machine::new("readme", "10.9.7.1") else { return };
    let (daemon, printed) = machine.serves(host_command, greeting);
    let ticket = printed.iter().find_map(|line| line.strip_prefix("ticket: ")).unwrap();
    for (command, printed) in client {
        assert!(printed.is_empty(), "no output is promised: {printed:?}");
        machine.succeeds(&command.replace("whm1…", ticket));
    }
    machine.succeeds("diff -r /srv/media /mnt/wormhole");
    machine.succeeds("umount /mnt/wormhole");
    machine.succeeds("rm -r /var/cache/wormhole && wormhole mount nas:/media /mnt/wormhole");

    let mut host = Some(daemon);
    for (command, _) in journey {
        if command.contains("--offline") {
            drop(host.take());
        }
        machine.succeeds(command);
    }
    assert!(host.is_none(), "a journey is without the host");
    assert_eq!(machine.succeeds("ls /mnt/wormhole"), "docs\nfilms\nother\n", "from the root down");
    machine.succeeds("ls -lR /mnt/wormhole/docs /mnt/wormhole/films");
    for folder in ["docs", "films"] {
        machine.succeeds(&format!("diff -r /srv/media/{folder} /mnt/wormhole/{folder}"));
    }
    assert_eq!(machine.succeeds("readlink /mnt/wormhole/docs/latest"), "letters/one.txt\n");
    machine.succeeds("umount /mnt/wormhole");

    let (_daemon, _) = machine.serves(host_command, greeting);
    works_as_fstab(&machine, &fstab[0]);
    let examples: Vec<_> = text_of("packaging/examples/fstab").lines().map(str::to_owned).collect();
    works_as_fstab(&machine, &examples);
}

/// Mounts every line by mount(8) and looks what is there.
fn works_as_fstab(machine: &Machine, lines: &[String]) {
    machine.lan.set_file("fstab", &(lines.join("\n") + "\n"));
    let entries = lines.iter().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let mut count = 0;
    for line in entries {
        let mountpoint = line.split_ascii_whitespace().nth(1).unwrap();
        machine.succeeds(&format!("mkdir -p {mountpoint} && mount {mountpoint}"));
        machine.succeeds(&format!("diff -r /srv/media {mountpoint}"));
        if line.contains("ro,") {
            assert!(!machine.types(&format!("touch {mountpoint}/new")).status.success(), "{line}");
        }
        if line.contains("allow_other") {
            machine.user_succeeds(&format!("cmp /srv/media/docs/latest {mountpoint}/docs/latest"));
        }
        machine.succeeds(&format!("umount {mountpoint}"));
        count += 1;
    }
    assert!(count > 0, "no line mounts anything");
}

#[test]
fn the_packaged_service_and_the_packagers_check_work() {
    let unit = text_of("packaging/systemd/wormhole-host.service");
    let value = |name: &str| {
        let found = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {name}")).to_owned()
    };
    assert_eq!(value("EnvironmentFile"), "/etc/default/wormhole-host");
    let variables = text_of("packaging/systemd/wormhole-host.default");
    let variables: Vec<_> = variables.lines().filter(|line| !line.starts_with('#')).collect();
    let start = value("ExecStart");
    let start = start.strip_prefix("/usr/bin/").expect("the package puts it there");
    let Some(machine) = Machine::new("service", "10.9.7.2") else { return };
    // systemd splits the variable at blanks, as a shell does.
    let service = format!("sh -c '{}; exec {start}'", variables.join("; ").replace('\'', "'\\''"));
    let (service, _) = machine.serves(&service, &["listening: [::]:4433".to_owned()]);
    wait_until("the service answers", || {
        machine.types("wormhole doctor nas:/media").stdout.windows(7).any(|word| word == b"answers")
    });
    drop(service);

    let packaging = text_of("packaging/README.md");
    let checks: Vec<_> = blocks_of(&packaging, "sh").into_iter().flatten().collect();
    let is_ours =
        |line: &&String| !["cargo ", "packaging/", "dpkg "].iter().any(|other| line.starts_with(other));
    let script: Vec<&str> = checks
        .iter()
        .filter(is_ours)
        .map(|line| line.split(" # ").next().unwrap_or_default().trim_end())
        .collect();
    assert!(script.len() >= 4, "{script:?}");
    let mut text = String::from("set -e\n");
    for line in script {
        if line.ends_with('&') {
            text.push_str(line.trim_end_matches('&'));
            text.push_str(
                "> /said & trap \"kill $!\" EXIT; until grep -q identity /said; do sleep 0.1; done\n",
            );
        } else if line.starts_with("wormhole pair new") {
            writeln!(text, "TICKET=$({line} | grep -o 'whm1[a-z2-7]*')").unwrap();
        } else {
            text.push_str(&line.replace("TICKET", "$TICKET"));
            text.push('\n');
        }
    }
    let text = text.replace("/said", "/run/said");
    let listed = machine.succeeds(&text);
    assert!(listed.contains("films"), "{listed}");
}

#[test]
fn a_user_mounts_by_a_line_of_fstab() {
    if !nix::unistd::geteuid().is_root() || !plain_users_can_mount() {
        return;
    }
    let Some(machine) = Machine::new("user", "10.9.7.3") else { return };
    let greeting = ["listening: …", "identity: …", "ticket: …"].map(str::to_owned);
    let (_daemon, printed) = machine.serves("wormhole host media=/srv/media", &greeting);
    let ticket = printed[2].strip_prefix("ticket: ").unwrap();
    machine.lan.set_file("fstab", "nas:/media /home/ann/m wormhole rw,user,noauto 0 0\n");
    machine.user_succeeds(&format!("wormhole mount {ticket} ~/m && umount ~/m"));
    wait_until("the first mount is gone", || {
        !machine.succeeds("wormhole status; cat /proc/self/mountinfo").contains("/home/ann/m")
    });
    // mount(8) runs the helper as the user, and without HOME.
    for end in ["umount ~/m", "fusermount3 -u ~/m", "wormhole umount ~/m"] {
        machine.user_succeeds("mount ~/m");
        machine.user_succeeds("cmp /srv/media/films/one.mkv ~/m/films/one.mkv");
        assert!(machine.user_succeeds("wormhole status").contains("/home/ann/m"), "status sees it");
        machine.user_succeeds(end);
        wait_until("the mount is gone", || !machine.user_succeeds("wormhole status").contains("/home/ann/m"));
    }
    machine.user_succeeds("ls ~/.local/state/wormhole/client/known_hosts ~/.cache/wormhole");
    assert!(errors(&machine.types("ls -A /root/.local/state/wormhole 2>&1")).is_empty());
}
