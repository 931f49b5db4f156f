//! `wormhole man`: the manual pages, made from the definitions of the command line, so that they cannot tell another story.
//!
//! For packagers; hidden from the help of people who have the pages installed.

mod sections;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_mangen::Man;

use super::{Cli, CliError};

/// What was typed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Write all pages into this directory, which is made if need be
    #[arg(long, value_name = "DIR", conflicts_with = "page")]
    out: Option<PathBuf>,

    /// Print this page, such as `wormhole-mount` or `mount.wormhole`
    #[arg(default_value = "wormhole")]
    page: String,
}

/// One manual page.
struct Page {
    name: String,
    section: u8,
    text: Vec<u8>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let pages = pages().map_err(CliError::system)?;
    if let Some(directory) = &arguments.out {
        return write_all(&pages, directory)
            .map_err(|error| CliError::system(format!("{}: {error}", directory.display())));
    }
    let Some(page) = pages.iter().find(|page| page.name == arguments.page) else {
        let names: Vec<_> = pages.iter().map(|page| page.name.as_str()).collect();
        let text = format!("there is no page {:?}; there are {}", arguments.page, names.join(", "));
        return Err(CliError::usage(text));
    };
    // A reader that is gone has seen enough.
    let _ = io::stdout().write_all(&page.text);
    Ok(())
}

fn write_all(pages: &[Page], directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    pages
        .iter()
        .try_for_each(|page| fs::write(directory.join(format!("{}.{}", page.name, page.section)), &page.text))
}

/// A page for every command that is not hidden, and the one of the mount helper.
fn pages() -> io::Result<Vec<Page>> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut pages = Vec::new();
    add_pages(&root, &mut pages)?;
    let mut text = Vec::new();
    sections::mount_helper(env!("CARGO_PKG_VERSION")).to_writer(&mut text)?;
    pages.push(Page { name: "mount.wormhole".to_owned(), section: 8, text });
    Ok(pages)
}

fn add_pages(command: &clap::Command, pages: &mut Vec<Page>) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let source = format!("wormhole {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(source).manual("wormhole");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    let shown = || command.get_subcommands().filter(|command| !command.is_hide_set());
    if shown().next().is_some() {
        man.render_subcommands_section(&mut text)?;
    }
    sections::of_command(&name).to_writer(&mut text)?;
    pages.push(Page { name, section: 1, text });
    shown().try_for_each(|command| add_pages(command, pages))
}
