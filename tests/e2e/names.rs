//! Trust follows a host's key: under which names it is accepted, and when another key is an alarm.

use std::fs;
use std::process::Output;

use wormhole::transport::Ticket;

use crate::world::{Host, Lan, World, errors, words};

/// A client in a network, its state and its cache.
struct Client<'a> {
    lan: &'a Lan,
    world: &'a World,
}

impl Client<'_> {
    /// Tries to mount a source and takes the mount down again.
    fn mount(&self, source: &str, options: &[&str]) -> Output {
        let point = self.world.path("mnt");
        fs::create_dir_all(&point).unwrap();
        let mut command = self.lan.wormhole();
        command.arg("mount").args(options).arg("--state-dir").arg(self.world.path("client-state"));
        command.arg("--cache-dir").arg(self.world.path("cache")).arg(source).arg(&point);
        let output = command.output().unwrap();
        if output.status.success() {
            let point = point.to_str().unwrap();
            let content = self.lan.run("cat", &[&format!("{point}/whose")]);
            assert!(content.status.success(), "{}", words(&content));
            let ended = self.lan.run(crate::world::WORMHOLE, &["umount", point]);
            assert!(ended.status.success(), "{}", words(&ended));
            return Output { stdout: content.stdout, ..output };
        }
        assert_eq!(output.status.code(), Some(32), "{}", words(&output));
        output
    }

    /// Mounts, without a word, and gives what the host's file says.
    #[track_caller]
    fn sees(&self, source: &str, options: &[&str]) -> String {
        let output = self.mount(source, options);
        assert!(output.status.success() && output.stderr.is_empty(), "{source}: {}", words(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Is refused, in one line.
    #[track_caller]
    fn refusal(&self, source: &str) -> String {
        let output = self.mount(source, &[]);
        assert!(!output.status.success(), "{source}");
        let words = errors(&output).trim().to_owned();
        assert_eq!(words.lines().count(), 1, "{words}");
        words
    }

    fn known_hosts(&self) -> String {
        fs::read_to_string(self.world.path("client-state/known_hosts")).unwrap()
    }
}

/// A host of its own in a network, on the usual port; its file `whose` says its name.
fn host(lan: &Lan, name: &str, listen: &str, arguments: &[&str]) -> (World, Host) {
    let world = World::new();
    fs::write(world.source().join("whose"), name).unwrap();
    let host = world.host_by(lan.wormhole(), listen, arguments);
    (world, host)
}

const ALARM: &str = "the connection is intercepted";

#[test]
fn a_known_host_is_accepted_under_every_name_and_a_name_is_one_hosts() {
    let hosts = "10.9.9.1 nas nas.lan other\n";
    let Some(lan) = Lan::new("names", &["10.9.9.1/32", "10.9.9.2/32"], hosts) else { return };
    let world = World::new();
    let client = Client { lan: &lan, world: &world };
    let (first_world, mut first) = host(&lan, "first", "[::]:4433", &[]);
    let unknown = client.refusal("nas:/export");
    assert!(unknown.contains("not known here") && unknown.contains("ticket"), "{unknown}");
    assert_eq!(client.sees(&first.ticket, &[]), "first");
    for source in ["nas:/export", "nas.lan:/export", "10.9.9.1:/export", "wormhole://localhost/export"] {
        assert_eq!(client.sees(source, &[]), "first", "{source}");
    }
    let known = client.known_hosts();
    for name in ["nas:4433 ", "nas.lan:4433 ", "10.9.9.1:4433/export "] {
        assert!(known.lines().any(|line| line.starts_with(name)), "{name}: {known}");
    }
    assert!(!known.contains("127.0.0.1") && !known.contains("localhost"), "they identify nobody: {known}");
    // The same host elsewhere: after a new lease, or with a second card.
    lan.set_hosts("10.9.9.2 nas other\n");
    for source in ["nas:/export", "10.9.9.2:/export"] {
        assert_eq!(client.sees(source, &[]), "first", "{source}");
    }

    // Another machine has its addresses.
    first.kill();
    let (_second_world, second) = host(&lan, "second", "[::]:4433", &[]);
    for source in ["nas:/export", "10.9.9.1:/export"] {
        let alarm = client.refusal(source);
        for part in [ALARM, first.identity.trim(), second.identity.trim(), "credentials="] {
            assert!(alarm.contains(part), "{source}, {part}: {alarm}");
        }
    }
    let stranger = client.refusal("other:/export");
    assert!(stranger.contains("not known here") && !stranger.contains(ALARM), "{stranger}");
    // By its ticket it is no alarm, and it cannot pose as the first one from then on either.
    assert_eq!(client.sees(&second.ticket, &[]), "second");
    assert!(client.refusal("nas:/export").contains(ALARM));
    assert_eq!(client.sees("other:/export", &[]), "second");
    let moved = client.refusal("10.9.9.1:/export");
    assert!(moved.contains("now belongs to") && !moved.contains(ALARM), "{moved}");
    // The cure that the words name.
    let ticket = world.path("ticket");
    fs::write(&ticket, &second.ticket).unwrap();
    let vouched = ["-o", &format!("credentials={}", ticket.display())];
    assert_eq!(client.sees("nas:/export", &vouched), "second");
    assert_eq!(client.sees("nas:/export", &[]), "second");
    drop(second);
    let back = first_world.host_by(lan.wormhole(), "[::]:4433", &[]);
    assert_eq!(back.identity, first.identity);
    assert!(client.refusal("nas:/export").contains(ALARM), "the name is the second one's now");
    assert_eq!(client.sees("10.9.9.1:/export", &[]), "first");
}

#[test]
fn advertised_names_are_in_tickets_and_are_known_where_the_host_answers_to_them() {
    let Some(lan) = Lan::new("advertise", &["10.9.8.1/32"], "10.9.8.1 nas box\n") else { return };
    let world = World::new();
    let client = Client { lan: &lan, world: &world };
    let names = ["--advertise", "nas", "--advertise", "box:4433", "--advertise", "elsewhere.invalid"];
    let (host_world, host) = host(&lan, "nas", "10.9.8.1:4433", &names);
    let shown = |ticket: &str| -> Vec<String> {
        let ticket: Ticket = ticket.parse().unwrap();
        ticket.addresses().iter().map(ToString::to_string).collect()
    };
    let expected = ["nas:4433", "box:4433", "elsewhere.invalid:4433", "10.9.8.1:4433"];
    assert_eq!(shown(&host.ticket), expected);
    let state = host_world.path("host-state");
    let made = lan.run(crate::world::WORMHOLE, &["pair", "new", "--state-dir", state.to_str().unwrap()]);
    let made = String::from_utf8_lossy(&made.stdout).into_owned();
    let made = made.split_ascii_whitespace().find(|word| word.starts_with("whm1")).unwrap();
    assert_eq!(shown(made), expected, "those of the running host");

    assert_eq!(client.sees(&host.ticket, &[]), "nas");
    let known = client.known_hosts();
    assert!(known.contains("nas:4433 ") && known.contains("box:4433 "), "{known}");
    assert!(!known.contains("elsewhere"), "nobody answered there: {known}");
}
