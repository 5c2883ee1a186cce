//! Makes the man pages and the completions of both programs, for their packages: `manuals DIRECTORY`.
//!
//! What a command takes comes from its command line; when and why one types it is written by hand, in `man/PAGE.roff` of its
//! crate: paragraphs, then sections of their own. `common.roff` ends every page. The programs themselves know nothing of it.

use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

/// One program's handbook.
struct Handbook {
    /// Where the parts are that are written by hand.
    by_hand: &'static Path,
    section: &'static str,
}

fn main() -> Result<()> {
    let out = std::env::args_os().nth(1).filter(|out| !out.as_encoded_bytes().starts_with(b"-"));
    let out = out.context("usage: manuals DIRECTORY")?;
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"));
    let finalize = crates.join("../finalize/man").leak();
    let image_tools = crates.join("man").leak();
    let programs = [
        (finalize::cli::Cli::command(), Handbook { by_hand: finalize, section: "8" }),
        (image_tools::cli::Cli::command(), Handbook { by_hand: image_tools, section: "1" }),
    ];
    let out = Path::new(&out);
    for dir in ["man", "bash", "zsh", "fish"] {
        fs::create_dir_all(out.join(dir)).with_context(|| format!("making {}", out.join(dir).display()))?;
    }
    for (mut command, handbook) in programs {
        complete(&mut command.clone(), out)?;
        command.build();
        handbook.write(&command, &out.join("man"))?;
    }
    Ok(())
}

/// Completions, by the names under which each shell looks for them.
fn complete(command: &mut Command, out: &Path) -> Result<()> {
    let name = command.get_name().to_owned();
    let files = [
        (Shell::Bash, format!("bash/{name}")),
        (Shell::Zsh, format!("zsh/_{name}")),
        (Shell::Fish, format!("fish/{name}.fish")),
    ];
    for (shell, file) in files {
        let (file, mut script) = (out.join(file), vec![]);
        generate(shell, command, &name, &mut script);
        // Of a program with a hyphen, bash would complete no command (clap issue 6421).
        let script = String::from_utf8(script)?.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"));
        fs::write(&file, script).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

impl Handbook {
    /// Writes the page of `command` and those of its commands.
    fn write(&self, command: &Command, dir: &Path) -> Result<()> {
        let page = command.get_display_name().unwrap_or_else(|| command.get_name());
        let file = dir.join(format!("{page}.{}", self.section));
        self.page(command, page)
            .and_then(|text| fs::write(&file, text))
            .with_context(|| format!("writing {}", file.display()))?;
        let mut others = command.get_subcommands().filter(|other| !other.is_hide_set() && other.get_name() != "help");
        others.try_for_each(|other| self.write(other, dir))
    }

    fn page(&self, command: &Command, page: &str) -> io::Result<Vec<u8>> {
        let text = self.text(page)?;
        let (why, more) = match text.find(".SH ") {
            Some(at) => text.split_at(at),
            None => (&*text, ""),
        };
        let man = Man::new(command.clone())
            .title(page.to_uppercase())
            .section(self.section)
            .source(format!("composefs-finalize {}", env!("CARGO_PKG_VERSION")))
            .manual("composefs-finalize");
        let mut to = vec![];
        man.render_title(&mut to)?;
        man.render_name_section(&mut to)?;
        man.render_synopsis_section(&mut to)?;
        match why {
            "" => man.render_description_section(&mut to)?,
            why => to.extend(format!(".SH DESCRIPTION\n{why}").bytes()),
        }
        man.render_options_section(&mut to)?;
        if command.has_subcommands() {
            man.render_subcommands_section(&mut to)?;
        }
        to.extend(more.bytes());
        to.extend(self.text("common")?.bytes());
        Ok(to)
    }

    /// What is written by hand; nothing where nobody has.
    fn text(&self, page: &str) -> io::Result<String> {
        match fs::read_to_string(self.by_hand.join(format!("{page}.roff"))) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            text => text,
        }
    }
}
