//! The manual pages and the completions say all there is, and other programs can read them.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use wormhole::cli::Cli;
use wormhole::config::{OPTION_FAMILIES, OPTIONS_FOR_OTHERS, options_without_effect};

use super::stage::{code, errors, succeeds, wormhole};

/// A page as it reads: roff writes hyphens as `\-`.
fn page(folder: &Path, name: &str) -> String {
    let path = folder.join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}")).replace("\\-", "-")
}

fn shown(command: &clap::Command) -> impl Iterator<Item = &clap::Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

/// Every command that is shown has its page `NAME.1`, with each of its flags.
fn check_pages(command: &clap::Command, name: &str, folder: &Path) {
    let text = page(folder, &format!("{name}.1"));
    for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
        if let Some(long) = argument.get_long() {
            assert!(text.contains(&format!("--{long}")), "--{long} is not in {name}.1");
        }
    }
    for below in shown(command) {
        let below_name = format!("{name}-{}", below.get_name());
        assert!(text.contains(&below_name), "{below_name} is not in {name}.1");
        check_pages(below, &below_name, folder);
    }
}

#[test]
fn every_command_flag_and_mount_option_stands_in_the_manual() {
    let folder = tempfile::tempdir().unwrap();
    succeeds(wormhole().args(["man", "--out"]).arg(folder.path()));
    let mut command = Cli::command();
    command.build();
    check_pages(&command, "wormhole", folder.path());
    for name in ["mount.wormhole.8", "wormhole-mount.1"] {
        let text = page(folder.path(), name);
        for entry in OPTION_FAMILIES.iter().flat_map(|family| family.entries) {
            assert!(
                text.contains(&format!("\\fB{}\\fR\n", entry.typed())),
                "{} is not in {name}",
                entry.name
            );
        }
        let names = options_without_effect().into_iter().flat_map(|(_, names)| names);
        for other in names.chain(OPTIONS_FOR_OTHERS.iter().map(|&name| name.to_owned())) {
            assert!(text.contains(&other), "{other} is not in {name}");
        }
    }
    let printed = succeeds(wormhole().args(["man", "mount.wormhole"]));
    assert_eq!(printed, fs::read_to_string(folder.path().join("mount.wormhole.8")).unwrap());
    assert_eq!(code(&wormhole().args(["man", "nonsense"]).output().unwrap()), 1);
}

#[test]
fn man_reads_the_pages_without_a_complaint() {
    let folder = tempfile::tempdir().unwrap();
    succeeds(wormhole().args(["man", "--out"]).arg(folder.path()));
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let Ok(output) = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(&path).output()
        else {
            eprintln!("LEFT OUT: groff is not installed, the manual pages are not checked by it");
            return;
        };
        assert_eq!((code(&output), errors(&output).as_str()), (0, ""), "{}", path.display());
    }
}

#[test]
fn shells_take_the_completions() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let text = succeeds(wormhole().args(["completions", shell]));
        for word in ["umount", "completions", "cache-size"] {
            assert!(text.contains(word), "{word} is not completed by {shell}");
        }
        assert!(!text.contains("mount-daemon"), "{shell} completes what is not for people");
        let file = folder.path().join(shell);
        fs::write(&file, text).unwrap();
        match Command::new(shell).arg("-n").arg(&file).output() {
            Ok(output) => assert_eq!((code(&output), errors(&output).as_str()), (0, ""), "{shell}"),
            Err(error) => {
                eprintln!("LEFT OUT: {shell} cannot be run ({error}), its completions are not checked");
            }
        }
    }
    assert_eq!(code(&wormhole().args(["completions", "tcsh"]).output().unwrap()), 1);
}

#[test]
fn packages_hold_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let (_, packages) = manifest.split_once("[package.metadata.deb]").unwrap();
    let (deb, rpm) = packages.split_once("[package.metadata.generate-rpm]").unwrap();
    let sources = |text: &str, mark: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(mark)?.split('"').next());
        lines.map(str::to_owned).collect()
    };
    let listed = sources(deb, "[\"");
    assert_eq!(listed, sources(rpm, "{ source = \""), "both kinds of package hold the same");
    assert!(listed.len() > 10, "{listed:?}");
    for source in listed.iter().filter(|source| !source.starts_with("target/")) {
        let (folder, name) = source.rsplit_once('/').unwrap_or(("", source));
        let beginning = name.trim_end_matches('*');
        let found = fs::read_dir(root.join(folder)).unwrap().any(|entry| {
            let name_found = entry.unwrap().file_name().into_string().unwrap();
            name_found == name || (name.ends_with('*') && name_found.starts_with(beginning))
        });
        assert!(found, "{source} does not exist");
    }
}
