//! The man pages say when and why one types each command.

use std::{fs, path::Path};

use clap::{Command, CommandFactory};
use image_tools::cli::Cli;

#[test]
fn when_and_why_is_said_of_each_command() {
    fn check(command: &Command) {
        let page = command.get_display_name().unwrap_or_else(|| command.get_name());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("man/{page}.roff"));
        let text = fs::read_to_string(&path).unwrap_or_default();
        assert!(!text.starts_with(".SH") && text.len() > 80, "{page}.roff does not say when and why");
        command.get_subcommands().filter(|other| !other.is_hide_set() && other.get_name() != "help").for_each(check);
    }
    let mut command = Cli::command();
    command.build();
    check(&command);
}
