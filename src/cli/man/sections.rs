//! What the manual says beyond the definitions of the command line, most of it from the tables that the program itself goes by.

use clap_mangen::roff::{Roff, bold, roman};

use crate::config::{OPTION_FAMILIES, OPTIONS_FOR_OTHERS, options_not_yet, options_without_effect};
use crate::metrics::Metric;

/// Lines of fstab(5) that work, with what they are for.
const FSTAB: &str = include_str!("../../../packaging/examples/fstab");

/// What stands behind the options on the page of a command.
pub(super) fn of_command(page: &str) -> Roff {
    let mut roff = Roff::new();
    match page {
        "wormhole" => {
            environment(&mut roff);
            files(&mut roff);
            exit_status(&mut roff);
            see_also(&mut roff, "mount.wormhole(8), wormhole-host(1), wormhole-mount(1), fstab(5), mount(8)");
        }
        "wormhole-mount" => {
            mount_options(&mut roff);
            exit_status(&mut roff);
            see_also(&mut roff, "mount.wormhole(8), wormhole(1), wormhole-umount(1), wormhole-status(1)");
        }
        "wormhole-host" => {
            heading(&mut roff, "NETWORK");
            roff.text([roman(
                "Clients come to the port over UDP and over TCP: a firewall must let both through. With UDP alone short ways cost \
                 more processor time, with TCP alone far ones are slower.",
            )]);
            authorized_keys(&mut roff);
            see_also(&mut roff, "wormhole(1), wormhole-pair(1), wormhole-key(1)");
        }
        "wormhole-key" => {
            authorized_keys(&mut roff);
            see_also(&mut roff, "wormhole(1), wormhole-host(1), wormhole-pair(1)");
        }
        "wormhole-status" => {
            heading(&mut roff, "NUMBERS IN THE JSON");
            for metric in Metric::ALL {
                item(&mut roff, metric.name(), metric.meaning());
            }
            see_also(&mut roff, "wormhole(1)");
        }
        _ => see_also(&mut roff, "wormhole(1)"),
    }
    roff
}

fn authorized_keys(roff: &mut Roff) {
    heading(roff, "AUTHORISED KEYS");
    roff.text([roman(
        "The file authorized_keys in the host's folder of state has a line for each key that may connect: the key, then options with blanks \
         between them, then # and a comment. A change counts within two seconds, also for those who are connected, and at once when the \
         host gets SIGHUP. A line that is not understood lets nobody in; of several lines for a key the narrowest holds.",
    )]);
    for (option, meaning) in [
        ("ro", "the key may only read"),
        (
            "exports=NAME,...",
            "it may mount these exports; without this option all. What separates is written %XX",
        ),
        (
            "user=USER",
            "on a host that runs as root it acts as this user, by name, by number or as UID:GID, with this user's rights and supplementary \
             groups; without this option as the owner of the exported folder",
        ),
        ("name=NAME", "what wormhole-key(1) and wormhole-status(1) call it"),
        (
            "owners",
            "on a host that runs as root it may choose owners, set set-user-id bits and make devices: as much as being root. Not \
             together with user=",
        ),
    ] {
        item(roff, option, meaning);
    }
}

/// The page of `mount.wormhole`.
pub(super) fn mount_helper(version: &str) -> Roff {
    let mut roff = Roff::new();
    let source = format!("wormhole {version}");
    roff.control("TH", ["mount.wormhole", "8", "", source.as_str(), "wormhole"]);
    heading(&mut roff, "NAME");
    roff.text([roman("mount.wormhole - lets mount(8) and fstab(5) mount wormhole folders")]);
    heading(&mut roff, "SYNOPSIS");
    roff.text([bold("mount -t wormhole"), roman(" SOURCE DIRECTORY [-sfnv] [-o OPTIONS]")]);
    heading(&mut roff, "DESCRIPTION");
    roff.text([roman(
        "mount(8) runs this program for file systems of type wormhole. It becomes wormhole-mount(1), without the options that \
         are for mount(8) alone. The source is what wormhole-mount(1) takes; for fstab(5) that is HOST:/EXPORT/PATH, once this \
         machine was let in by a ticket.",
    )]);
    heading(&mut roff, "OPTIONS");
    for (flag, meaning) in [
        ("-o OPTIONS", "Mount options, separated by commas: see below"),
        ("-s", "Ignore unknown mount options instead of refusing them"),
        ("-f", "Do everything but mount"),
        ("-v", "Log more"),
        ("-n", "Nothing: there is no /etc/mtab to leave alone"),
        ("-t TYPE", "wormhole, or nothing is mounted"),
    ] {
        item(&mut roff, flag, meaning);
    }
    mount_options(&mut roff);
    heading(&mut roff, "EXAMPLES");
    roff.text([roman("In /etc/fstab:")]);
    roff.control("PP", []);
    roff.control("nf", []);
    for line in FSTAB.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    exit_status(&mut roff);
    see_also(&mut roff, "wormhole(1), wormhole-mount(1), fstab(5), mount(8), systemd.automount(5)");
    roff
}

fn mount_options(roff: &mut Roff) {
    heading(roff, "MOUNT OPTIONS");
    roff.text([roman(
        "In names, _ and - are the same. Of an option that is given twice the last one counts. What holds when nobody says is \
         in parentheses.",
    )]);
    for family in OPTION_FAMILIES {
        roff.control("SS", [family.title]);
        for entry in family.entries {
            item(roff, &entry.typed(), entry.meaning);
        }
    }
    roff.control("SS", ["For mount(8), systemd and desktops"]);
    roff.text([roman(format!("{}, x-*", OPTIONS_FOR_OTHERS.join(", ")))]);
    roff.control("SS", ["Accepted without effect"]);
    for (reason, names) in options_without_effect() {
        item(roff, &names.join(", "), reason);
    }
    roff.control("SS", ["Refused in this version"]);
    for (typed, instead) in options_not_yet() {
        item(roff, &typed, instead);
    }
}

fn environment(roff: &mut Roff) {
    heading(roff, "ENVIRONMENT");
    item(roff, "WORMHOLE_TICKET", "a ticket for `wormhole mount`, where no source is given");
    let places = "where plain users have keys and cache, in place of ~/.local/state and ~/.cache; mount(8) drops both \
                  variables where a user mounts a line of fstab, which names `identity=`, `known_hosts=` and `cache_dir=` then";
    item(roff, "XDG_STATE_HOME, XDG_CACHE_HOME", places);
    item(roff, "WORMHOLE_LOG", "what is logged, such as debug or wormhole=info; counts for more than -v");
}

fn files(roff: &mut Roff) {
    heading(roff, "FILES");
    for (path, meaning) in [
        ("/var/lib/wormhole", "root's keys, known hosts, authorised keys and tickets"),
        ("~/.local/state/wormhole", "the same of other users"),
        ("/var/cache/wormhole, ~/.cache/wormhole", "what was read"),
        ("/run/wormhole, $XDG_RUNTIME_DIR/wormhole", "control sockets of what runs"),
    ] {
        item(roff, path, meaning);
    }
}

fn exit_status(roff: &mut Roff) {
    heading(roff, "EXIT STATUS");
    for (code, meaning) in [
        ("0", "it is done"),
        ("1", "the command line is wrong"),
        ("2", "the system refuses"),
        ("32", "mounting or unmounting failed"),
    ] {
        item(roff, code, meaning);
    }
}

fn see_also(roff: &mut Roff, pages: &str) {
    heading(roff, "SEE ALSO");
    roff.text([roman(pages)]);
}

fn heading(roff: &mut Roff, title: &str) {
    roff.control("SH", [title]);
}

fn item(roff: &mut Roff, term: &str, meaning: &str) {
    roff.control("TP", []);
    roff.text([bold(term)]);
    roff.text([roman(meaning)]);
}
