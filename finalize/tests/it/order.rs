//! What starts next: a table of cases, and the boot loaders' own tools on the same files, so that the table is not just
//! our opinion: bootctl reads entries as systemd-boot does, and grub-emu is GRUB with its menu in a terminal.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Command, Stdio},
};

use finalize::boot::{
    Loader,
    order::{Decision, Environment, Item, Pin, Settings, Variables, compare_versions, titles},
};
use proptest::{prelude::*, test_runner::TestRunner};

struct Case {
    name: &'static str,
    loader: Loader,
    /// Name without `.conf`, and lines beside the kernel's, separated by `;`.
    files: &'static [(&'static str, &'static str)],
    /// `conf`, `one-shot`, `default`, `last`, `version`; `env` and `cfg` for GRUB.
    set: &'static [(&'static str, &'static str)],
    order: &'static str,
    next: &'static str,
    pin: Option<Pin>,
}

const MKCONFIG: &str = "load_env\nif [ \"${next_entry}\" ]; then\n  set default=\"${next_entry}\"\nelse\n  \
                        set default=\"${saved_entry}\"\nfi";
const SAVED: (&str, &str) = ("cfg", MKCONFIG);
const ROLES: &[(&str, &str)] = &[("bootc_x-1-1", "sort-key bootc-x-0"), ("bootc_x-1-0", "sort-key bootc-x-1")];

/// A case for one boot loader.
macro_rules! case {
    ($loader:ident $name:literal $files:expr, $set:expr => $order:literal $next:literal $($pin:ident)?) => {
        Case {
            name: $name,
            loader: Loader::$loader,
            files: $files,
            set: $set,
            order: $order,
            next: $next,
            pin: [$(Some(Pin::$pin),)? None][0],
        }
    };
}

const CASES: &[Case] = &[
    case!(SystemdBoot "the key sorts" ROLES, &[] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
    case!(SystemdBoot "without tries an entry is last" &[("b+0-3", "sort-key bootc-x-0"), ("a", "sort-key bootc-x-1"),
        ("z", "")], &[] => "a z b+0-3" "a"),
    case!(SystemdBoot "with tries left it is where it belongs" &[("b+1-2", "sort-key bootc-x-0"),
        ("a", "sort-key bootc-x-1")], &[] => "b+1-2 a" "b+1-2"),
    case!(SystemdBoot "all without tries" &[("b+0", "sort-key k"), ("a+0-1", "sort-key j")], &[] => "a+0-1 b+0" "a+0-1"),
    case!(SystemdBoot "a key comes before none" &[("z", ""), ("a", "sort-key z")], &[] => "a z" "a"),
    case!(SystemdBoot "newer versions first" &[("a", "sort-key k;version 1.10"), ("b", "sort-key k;version 1.9"),
        ("c", "sort-key k;version 1.10~rc1"), ("d", "sort-key k")], &[] => "a c b d" "a"),
    case!(SystemdBoot "machines stay together" &[("a", "sort-key k;version 1;machine-id 11"),
        ("b", "sort-key k;version 2;machine-id 22"), ("c", "sort-key k;version 3;machine-id 11")], &[] => "c a b" "c"),
    case!(SystemdBoot "names, descending" &[("a-9", ""), ("a-10", ""), ("b", "")],
        &[] => "b a-10 a-9" "b"),
    case!(SystemdBoot "os-release ids in the keys" &[("bootc_zzz-1-1", "sort-key bootc-zzz-0"),
        ("bootc_aaa-44-0", "sort-key bootc-aaa-1")], &[] => "bootc_aaa-44-0 bootc_zzz-1-1" "bootc_aaa-44-0"),
    case!(SystemdBoot "what has no kernel or begins with auto- is not shown" &[("auto-x", ""), ("n", "linux"), ("a", "")],
        &[] => "a" "a"),
    case!(SystemdBoot "default in loader.conf" ROLES, &[("conf", "default bootc_x-1-0.conf")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" LoaderConf),
    case!(SystemdBoot "a pattern in loader.conf, in any case" ROLES, &[("conf", "timeout 3\ndefault BOOTC_*-0.conf")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" LoaderConf),
    case!(SystemdBoot "a pattern takes the first that fits" ROLES, &[("conf", "default bootc_*")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1" LoaderConf),
    case!(SystemdBoot "a default without its suffix fits nothing" ROLES, &[("conf", "default bootc_x-1-0")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
    case!(SystemdBoot "the variable is before loader.conf" ROLES, &[("conf", "default bootc_x-1-1.conf"),
        ("default", "bootc_x-1-0.conf")] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" DefaultVariable),
    case!(SystemdBoot "one that fits nothing leaves it to loader.conf" ROLES, &[("conf", "default *-0.conf"),
        ("default", "gone.conf")] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" LoaderConf),
    case!(SystemdBoot "one shot is before all" ROLES, &[("default", "bootc_x-1-1.conf"), ("one-shot", "bootc_x-1-0.conf")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" OneShotVariable),
    case!(SystemdBoot "@saved is what was booted last" ROLES, &[("conf", "default @saved"), ("last", "bootc_x-1-0.conf")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" SavedByConf),
    case!(SystemdBoot "@saved in the variable" ROLES, &[("default", "@saved"), ("last", "bootc_x-1-0.conf")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" SavedByVariable),
    case!(SystemdBoot "the last booted one without @saved is nothing" ROLES, &[("last", "bootc_x-1-0.conf")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
    case!(SystemdBoot "257 compares names with their counters" &[("a+3", ""), ("b", "")],
        &[("default", "a.conf"), ("version", "257")] => "b a+3" "b"),
    case!(SystemdBoot "258 compares them without" &[("a+3", ""), ("b", "")],
        &[("default", "a.conf"), ("version", "258")] => "b a+3" "a+3" DefaultVariable),
    case!(SystemdBoot "GRUB's settings are nothing to it" ROLES, &[SAVED, ("env", "saved_entry=bootc_x-1-0\n")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
    case!(Grub "names, descending" ROLES, &[] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
    case!(Grub "keys are not looked at" &[("bootc_x-1-1", "sort-key b"), ("bootc_x-1-0", "sort-key a")],
        &[] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
    case!(Grub "numbers count as numbers" &[("x-9-0", ""), ("x-10-1", ""), ("x-10-0", ""), ("x-13.1-1", ""), ("x-13-1", "")],
        &[] => "x-13.1-1 x-13-1 x-10-1 x-10-0 x-9-0" "x-13.1-1"),
    case!(Grub "a downgrade's name is first" &[("bootc_x-14-0", ""), ("bootc_zz-bootc_x-13-1", "")],
        &[] => "bootc_zz-bootc_x-13-1 bootc_x-14-0" "bootc_zz-bootc_x-13-1"),
    case!(Grub "a saved entry pins" ROLES, &[SAVED, ("env", "saved_entry=bootc_x-1-0\n")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" SavedEntry),
    case!(Grub "a saved title pins" &[("b", "title B"), ("a", "title Old one")], &[SAVED, ("env", "saved_entry=Old one\n")]
        => "b a" "a" SavedEntry),
    case!(Grub "a saved number is an index" ROLES, &[SAVED, ("env", "saved_entry=1\n")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" SavedEntry),
    case!(Grub "a name that begins with a digit is an index too" &[("1a", ""), ("0z", "")],
        &[SAVED, ("env", "saved_entry=0z\n")] => "1a 0z" "1a" SavedEntry),
    case!(Grub "the next entry is before the saved one" ROLES, &[SAVED, ("env", "saved_entry=0\nnext_entry=bootc_x-1-0\n")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" NextEntry),
    case!(Grub "what fits nothing means the first" ROLES, &[SAVED, ("env", "saved_entry=gone\n")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
    case!(Grub "an index past the end too" ROLES, &[SAVED, ("env", "saved_entry=7\n")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
    case!(Grub "without load_env nothing is saved" ROLES, &[("cfg", "set default=\"${saved_entry}\""),
        ("env", "saved_entry=bootc_x-1-0\n")] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
    case!(Grub "a fixed default" ROLES, &[("cfg", "set default=1")] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" GrubCfg),
    case!(Grub "counters are parts of names" &[("a+0-3", ""), ("a", "")], &[] => "a+0-3 a" "a+0-3"),
    case!(GrubCc "GRUB's order on an ESP" &[("bootc_x-1-1", "sort-key b"), ("bootc_x-1-0", "sort-key a")],
        &[("default", "bootc_x-1-0.conf")] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
];

impl Case {
    fn texts(&self) -> Vec<(String, String)> {
        let text = |(name, text): &(&str, &str)| {
            let kernel = if *text == "linux" { "" } else { "linux /k/v\n" };
            let title = if text.contains("title ") { String::new() } else { format!("title T-{name}\n") };
            // No empty line: GRUB 2.14 reads nothing behind one.
            let lines = text.split(';').filter(|line| !line.is_empty()).map(|line| format!("{line}\n"));
            (format!("{name}.conf"), format!("{title}{}{kernel}", lines.collect::<String>()))
        };
        self.files.iter().map(text).collect()
    }

    fn setting(&self, key: &str) -> Option<String> {
        self.set.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned())
    }

    fn settings(&self) -> Settings {
        Settings {
            version: self.setting("version").map(|version| version.parse().unwrap()),
            loader_conf: self.setting("conf").unwrap_or_default(),
            variables: Variables {
                one_shot: self.setting("one-shot"),
                default: self.setting("default"),
                last_booted: self.setting("last"),
            },
            environment: Environment::parse(self.environment().as_bytes()),
            grub_cfg: self.setting("cfg").unwrap_or_default(),
        }
    }

    fn environment(&self) -> String {
        format!("# GRUB Environment Block\n{:#<900}", self.setting("env").unwrap_or_default())
    }

    fn decision(&self) -> Decision {
        let items = self.texts().iter().map(|(name, text)| Item::of_entry(name, &text.parse().unwrap())).collect();
        Decision::of(self.loader, items, &self.settings())
    }

    /// The entries as files, and the kernel that they boot.
    fn write(&self, dir: &Path) {
        fs::create_dir_all(dir.join("loader/entries")).unwrap();
        fs::create_dir_all(dir.join("k")).unwrap();
        fs::write(dir.join("k/v"), "kernel").unwrap();
        fs::write(dir.join("loader/loader.conf"), self.settings().loader_conf).unwrap();
        self.texts().iter().for_each(|(name, text)| fs::write(dir.join("loader/entries").join(name), text).unwrap());
    }
}

#[test]
fn the_table_holds() {
    for case in CASES {
        let decision = case.decision();
        let order: Vec<_> = decision.order.iter().map(Item::stem).collect();
        assert_eq!(order.join(" "), case.order, "{}", case.name);
        assert_eq!(decision.next().unwrap().stem(), case.next, "{}", case.name);
        assert_eq!(decision.pinned.as_ref().map(|pinned| pinned.pin), case.pin, "{}", case.name);
    }
}

/// Whether the program answers; says so where it does not.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("SKIPPED: no {program} on this machine");
    }
    found
}

/// What bootctl says of the files: the name, its title in the menu, whether it is the default.
fn bootctl(dir: &Path) -> Vec<(String, String, bool)> {
    // It wants the root of a file system, which nobody else sees.
    let script = "mount -t tmpfs esp \"$2\" && cp -r \"$1/.\" \"$2\" && bootctl --esp-path=\"$2\" list --json=short";
    let at = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(dir).arg(at.path());
    let output = command.env("SYSTEMD_RELAX_ESP_CHECKS", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap().to_owned();
    let name = |entry: &serde_json::Value| text(entry, "path").rsplit('/').next().unwrap().to_owned();
    let one = |entry: &serde_json::Value| (name(entry), text(entry, "showTitle"), entry["isDefault"] == true);
    list.as_array().unwrap().iter().map(one).collect()
}

#[test]
fn bootctl_agrees_with_the_table() {
    if !has("bootctl") || !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: this needs bootctl and root");
    }
    // It reads no variables where there is no firmware.
    let by_files = |case: &&Case| {
        let variables = ["default", "one-shot", "last", "version"];
        case.loader == Loader::SystemdBoot && variables.iter().all(|key| case.setting(key).is_none())
    };
    let mut seen = 0;
    for case in CASES.iter().filter(by_files) {
        let dir = tempfile::tempdir().unwrap();
        case.write(dir.path());
        let said = bootctl(dir.path());
        let decision = case.decision();
        // bootctl lists some that the boot loader does not show, and never fewer.
        let shown = |name: &str| decision.order.iter().any(|item| item.name == name);
        let (said, more): (Vec<_>, Vec<_>) = said.into_iter().partition(|(name, ..)| shown(name));
        let ours: Vec<_> = decision.order.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(said.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ours, "{}", case.name);
        let default = said.iter().find(|(.., default)| *default).map(|(name, ..)| name.as_str());
        let next = decision.next().map(|item| item.name.as_str());
        assert!(default == next || !more.is_empty(), "{}: {default:?}, not {next:?}", case.name);
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn bootctl_tells_equal_titles_apart_in_the_same_way() {
    if !has("bootctl") || !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: this needs bootctl and root");
    }
    let [one, two] = ["1234567890abcdef1234567890abcdef", "abcdef1234567890abcdef1234567890"];
    let keys = ["version 1", "version 2", "version 1", &format!("machine-id {one}"), &format!("machine-id {two}"), ""];
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("loader/entries")).unwrap();
    fs::create_dir_all(dir.path().join("k")).unwrap();
    fs::write(dir.path().join("k/v"), "kernel").unwrap();
    let texts = keys.map(|key| format!("title T\n{key}\nlinux /k/v\n"));
    let entries: Vec<_> =
        ["a.conf", "b.conf", "c.conf", "d.conf", "e.conf", "f.conf"].into_iter().zip(&texts).collect();
    for (name, text) in &entries {
        fs::write(dir.path().join("loader/entries").join(name), text).unwrap();
    }
    let entries: Vec<_> = entries.into_iter().map(|(name, text)| (name, text.parse().unwrap())).collect();
    // bootctl shows the whole machine id, the boot loader its beginning.
    let short = |title: String| title.replace(&one[8..], "").replace(&two[8..], "");
    let mut said: Vec<_> = bootctl(dir.path()).into_iter().map(|(name, title, _)| (name, short(title))).collect();
    said.sort();
    assert_eq!(said.into_iter().map(|(_, title)| title).collect::<Vec<_>>(), titles(&entries));
}

#[test]
fn systemd_analyze_compares_versions_in_the_same_way() {
    if !has("systemd-analyze") {
        return;
    }
    let part = "[a-c]{1,2}|[0-2]{1,2}|[-.~^_+]";
    let text = || prop::collection::vec(part, 0..5).prop_map(|parts| parts.concat());
    let config = ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() };
    let check = |(one, other): (String, String)| {
        let mut command = Command::new("systemd-analyze");
        let output = command.args(["compare-versions", "--", &one, &other]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let sign = match compare_versions(&one, &other) {
            std::cmp::Ordering::Less => " < ",
            std::cmp::Ordering::Equal => " == ",
            std::cmp::Ordering::Greater => " > ",
        };
        prop_assert!(said.contains(sign), "{said:?}, not {sign:?}");
        Ok(())
    };
    TestRunner::new(config).run(&(text(), text()), check).unwrap();
}

/// The lines of GRUB's menu, in their order, and the one that is highlighted: that one starts.
fn grub_menu(case: &Case, dir: &Path) -> (Vec<String>, String) {
    case.write(dir);
    fs::write(dir.join("grubenv"), case.environment()).unwrap();
    let cfg =
        case.setting("cfg").unwrap_or_default().replace("load_env", &format!("load_env -f {}/grubenv", dir.display()));
    let read = format!("set timeout=-1\ninsmod blsuki\nblscfg --path {}/loader/entries\n", dir.display());
    fs::write(dir.join("grub.cfg"), format!("{cfg}\n{read}")).unwrap();
    let run = format!("TERM=vt100 exec grub-emu -r host -d {}", dir.display());
    // A terminal is what it wants, and this ends with its standard input.
    let mut command = Command::new("script");
    command.args(["-qfc", &run, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut screen, mut buffer) = (Vec::new(), [0; 4096]);
    let titles: Vec<_> = case.texts().iter().map(|(_, text)| text.lines().next().unwrap()[6..].to_owned()).collect();
    let mut stdout = child.stdout.take().unwrap();
    // What a line of the menu looks like behind the codes that move the cursor.
    let lines = |screen: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(screen).into_owned();
        let pieces = text.split('\u{1b}').map(|piece| piece.trim_start_matches(|c: char| "[0123456789;?".contains(c)));
        let pieces = pieces.filter_map(|piece| piece.get(1..)).map(|piece| piece.trim_end().to_owned());
        let is_line = |piece: &String| titles.iter().any(|title| piece.get(1..) == Some(title));
        pieces.filter(is_line).collect()
    };
    while lines(&screen).len() < titles.len() {
        let got = stdout.read(&mut buffer).unwrap();
        assert!(got > 0, "{}: {}", case.name, String::from_utf8_lossy(&screen));
        screen.extend_from_slice(&buffer[..got]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let lines = lines(&screen);
    let chosen = lines.iter().find(|line| line.starts_with('*')).unwrap()[1..].to_owned();
    (lines.into_iter().map(|line| line[1..].to_owned()).collect(), chosen)
}

#[test]
fn grub_agrees_with_the_table() {
    if !has("grub-emu") || !has("script") {
        return;
    }
    for case in CASES.iter().filter(|case| case.loader == Loader::Grub) {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let (lines, chosen) = grub_menu(case, dir.path());
        let decision = case.decision();
        let title = |item: &Item| item.title.clone().unwrap();
        assert_eq!(lines, decision.order.iter().map(title).collect::<Vec<_>>(), "{}", case.name);
        assert_eq!(chosen, title(decision.next().unwrap()), "{}", case.name);
    }
}
