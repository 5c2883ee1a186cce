//! GRUB's own menu: what its reader of entries (`blscfg`, since 2.14) and our generated menu make of the same files.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Command, Stdio},
};

use finalize::boot::{
    Loader,
    count::Trial,
    entries::Entries,
    grub::{counting, menuentries, user_cfg},
    order::{Environment, Item},
    user_cfg::UserCfg,
};
use xshell::cmd;

use super::{
    cases::{CASES, Case},
    tools,
};
use crate::programs::shell;

/// What makes a menu of the entries.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reader {
    Blscfg,
    Generated,
}

/// A menu as it is shown: its lines, and the one that is highlighted, which starts.
#[derive(Debug, PartialEq)]
struct Menu {
    lines: Vec<String>,
    chosen: String,
}

/// A directory with GRUB's files, inside the directory in which its programs run.
struct Scene<'a> {
    root: &'a Path,
    dir: tempfile::TempDir,
    /// Where the directory is for GRUB.
    at: String,
}

impl<'a> Scene<'a> {
    fn new(root: &'a Path) -> Self {
        let dir = tempfile::tempdir_in(root.join("tmp")).unwrap();
        let at = format!("/tmp/{}", dir.path().file_name().unwrap().to_str().unwrap());
        std::os::unix::fs::symlink("/usr/lib/grub/x86_64-emu", dir.path().join("x86_64-emu")).unwrap();
        Self { root, dir, at }
    }

    /// Runs grub-emu with this grub.cfg until its whole menu is there: the row behind the last line is empty.
    fn show(&self, grub_cfg: &str) -> Menu {
        fs::write(self.dir.path().join("grub.cfg"), grub_cfg).unwrap();
        // It wants a terminal that has a size, and this ends with its standard input.
        let program = format!("chroot {} grub-emu-lite -r host -d {}", self.root.display(), self.at);
        let run = format!("stty rows 60 cols 80; TERM=vt100 exec timeout --foreground --signal KILL 30 {program}");
        let mut script = Command::from(cmd!(shell("."), "script -qfc {run} /dev/null"));
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut screen, mut buffer) = (Vec::new(), [0; 4096]);
        let mut stdout = child.stdout.take().unwrap();
        let mut found = vec![];
        while found.len() < 2 || found.last().is_some_and(|row: &String| !row.is_empty()) {
            let got = stdout.read(&mut buffer).unwrap();
            assert!(got > 0, "{}", String::from_utf8_lossy(&screen));
            screen.extend_from_slice(&buffer[..got]);
            found = rows(&String::from_utf8_lossy(&screen));
        }
        // The end of the terminal is the end of GRUB.
        child.kill().unwrap();
        child.wait().unwrap();
        let chosen = found.iter().find_map(|row| row.strip_prefix('*')).unwrap().to_owned();
        let lines = found.iter().take_while(|row| !row.is_empty());
        Menu { lines: lines.map(|row| row[1..].to_owned()).collect(), chosen }
    }
}

/// The menu that GRUB shows of `case`.
fn menu(root: &Path, case: &Case, reader: Reader) -> Menu {
    let scene = Scene::new(root);
    let at = &scene.at;
    case.write(scene.dir.path());
    fs::write(scene.dir.path().join("grubenv"), case.environment()).unwrap();
    let settings = case.setting("cfg").unwrap_or_default().replace("load_env", &format!("load_env -f {at}/grubenv"));
    let read = match reader {
        Reader::Blscfg => format!("insmod blsuki\nblscfg --path {at}/loader/entries\n"),
        Reader::Generated => menuentries(&case.texts().into_iter().collect::<Entries>()),
    };
    scene.show(&format!("{settings}\nset timeout=-1\n{read}"))
}

/// The rows inside the frame of a menu, each behind the code that moves the cursor there.
fn rows(screen: &str) -> Vec<String> {
    let pieces = screen.split('\u{1b}').map(|piece| piece.trim_start_matches(|c: char| "[0123456789;".contains(c)));
    let pieces = pieces.filter_map(|piece| piece.strip_prefix('H')).filter(|row| row.chars().count() == 76);
    pieces.filter(|row| row.starts_with([' ', '*'])).map(|row| row.trim_end().to_owned()).collect()
}

/// Compares the menus that a reader makes with the model.
fn check(reader: Reader) {
    // That of trixie, 2.12, loads none of its own modules.
    let Some(root) = tools("forky") else { return };
    let mut wrong = vec![];
    for case in CASES.iter().filter(|case| case.loader == Loader::Grub) {
        let found = menu(&root, case, reader);
        let decision = case.decision();
        let title = |item: &Item| item.title.clone().unwrap();
        let model = Menu { lines: decision.order.iter().map(title).collect(), chosen: title(decision.next().unwrap()) };
        if found != model {
            wrong.push(format!("{}:\n  shown {found:?}\n  model {model:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn blscfg_agrees_with_the_table() {
    check(Reader::Blscfg);
}

#[test]
fn a_generated_menu_agrees_with_the_table() {
    check(Reader::Generated);
}

/// The main grub.cfg of our images, where somebody has exchanged the entries for a directory without the generated menu.
#[test]
fn entries_without_a_generated_menu_are_shown_by_the_main_menu() {
    let Some(root) = tools("forky") else { return };
    let fallback = include_str!("../../../../image-tools/src/deployment/grub-fallback.cfg");
    let entry = |name: &str, id: &str, spelling: &str| {
        (format!("{name}.conf"), format!("title Debian\nversion {id}\nlinux /k/v\noptions {spelling}{id} rw\n"))
    };
    let one = entry("bootc_x-1-1", "aaaa", "composefs=");
    let two = entry("bootc_x-1-0", "bbbb", "composefs.digest=?v1-sha512-12:");
    let others = ("rescue.conf".to_owned(), "title Rescue\nlinux /k/v\n".to_owned());
    for (entries, lines) in [
        (vec![one.clone(), two.clone(), others], ["Debian (aaaa)", "Debian (bbbb)"]),
        (
            vec![("grub.cfg".to_owned(), "menuentry A {\ntrue\n}\nmenuentry B {\ntrue\n}\n".to_owned()), one, two],
            ["A", "B"],
        ),
    ] {
        let scene = Scene::new(&root);
        fs::create_dir_all(scene.dir.path().join("loader/entries")).unwrap();
        for (name, text) in entries {
            fs::write(scene.dir.path().join("loader/entries").join(name), text).unwrap();
        }
        let menu = scene.show(&format!("set timeout=-1\n{}", fallback.replace("@BOOT@", &scene.at)));
        assert_eq!(menu.lines, lines);
        assert_eq!(menu.chosen, lines[0]);
    }
}

/// A menu that counts: what GRUB highlights, by what its environment block says and what else chooses.
#[test]
fn a_menu_that_counts_goes_back_when_no_try_is_left() {
    let Some(root) = tools("forky") else { return };
    let id = |letter: &str| letter.repeat(64).parse::<finalize::digest::DeploymentId>().unwrap();
    let entry = |place: u8, letter: &str| {
        let text = format!("title {letter}\nlinux /k/v\noptions composefs={}\n", id(letter));
        (format!("bootc_x-1-{place}.conf"), text)
    };
    let entries: Entries = [entry(1, "b"), entry(0, "a")].into_iter().collect();
    let trial = Trial::new(id("b"), 2, Some("boot"));
    let ukis = UserCfg::from_bytes(user_cfg(&[("b's", &id("b")), ("a > x", &id("a"))]).as_bytes());
    let ukis = String::from_utf8(ukis.counting(&trial).unwrap().to_bytes()).unwrap();
    let of = |left: &str| format!("composefs_trial={}\ncomposefs_left={left}\n", trial.token);
    for (block, before, chosen) in [
        (String::new(), "", "b"),
        (of("2"), "", "b"),
        (of("1"), "", "b"),
        (of("0"), "", "a"),
        (of("good"), "", "b"),
        ("composefs_trial=older\ncomposefs_left=0\n".to_owned(), "", "b"),
        (of("0"), "set default=0", "a"),
        (of("0"), "set default=bootc_x-1-1", "a"),
        (of("0"), "set default=bootc_x-1-0", "a"),
        (of("1"), "set default=1", "a"),
    ] {
        for (menu, is_uki) in [(counting(&entries, Some(&trial)).unwrap(), false), (ukis.clone(), true)] {
            if is_uki && before.contains("bootc") {
                continue;
            }
            let scene = Scene::new(&root);
            let block = format!("# GRUB Environment Block\n{block}");
            assert_eq!(
                trial.counter(&Environment::parse(block.as_bytes())).is_some_and(|c| c.left == 0),
                block.contains("left=0") && !block.contains("older")
            );
            fs::write(scene.dir.path().join("grubenv"), format!("{block:#<1024}")).unwrap();
            let found = scene.show(&format!("set prefix={}\nset timeout=-1\n{before}\n{menu}", scene.at));
            assert_eq!(found.lines.len(), 2);
            assert_eq!(&found.chosen.trim()[..1], chosen, "{block} {before}: {found:?}");
        }
    }
}
