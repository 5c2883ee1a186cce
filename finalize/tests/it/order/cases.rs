//! What starts next: a table of cases. Two tests include it: the one compares it with the boot loaders' own tools, the other
//! with the boot loaders themselves.

use std::{fs, path::Path};

use finalize::boot::{
    Loader,
    loader::{Version, version},
    order::{Decision, Environment, Item, Pin, Settings, Variables},
};

pub struct Case {
    pub name: &'static str,
    pub loader: Loader,
    /// Name without `.conf`, and lines beside the kernel's, separated by `;`.
    pub files: &'static [(&'static str, &'static str)],
    /// `conf`, `one-shot`, `preferred`, `default`, `last`; `version`, the ones that this is about; `env` and `cfg` for GRUB.
    pub set: &'static [(&'static str, &'static str)],
    pub order: &'static str,
    pub next: &'static str,
    pub pin: Option<Pin>,
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

pub const CASES: &[Case] = &[
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
    case!(SystemdBoot "a pattern in loader.conf, in any case" ROLES, &[("conf", "timeout 0\ndefault BOOTC_*-0.conf")]
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
    case!(SystemdBoot "252 compares names with their counters" &[("a+3", ""), ("b", "")],
        &[("default", "a.conf"), ("version", "252")] => "b a+3" "b"),
    case!(SystemdBoot "later ones compare them without" &[("a+3", ""), ("b", "")],
        &[("default", "a.conf"), ("version", "257 262")] => "b a+3" "a+3" DefaultVariable),
    case!(SystemdBoot "GRUB's settings are nothing to it" ROLES, &[SAVED, ("env", "saved_entry=bootc_x-1-0\n")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
    case!(SystemdBoot "quotes around a value are no part of it" &[("d", "sort-key #d"), ("a", "sort-key \"a\""), ("q", "sort-key \"0")],
        &[] => "q d a" "q"),
    case!(SystemdBoot "nor are single ones, but for 252" &[("d", "sort-key (d"), ("a", "sort-key 'a'"), ("q", "sort-key '0")],
        &[("version", "257 262")] => "q d a" "q"),
    case!(SystemdBoot "quotes around a version" &[("a", "sort-key k;version \"1.9\""), ("b", "sort-key k;version \"1.10\""),
        ("c", "sort-key k;version 1.9.5")], &[] => "b c a" "b"),
    case!(SystemdBoot "names that begin with a dot are not shown" &[(".a", "sort-key a"), ("b", "")], &[] => "b" "b"),
    case!(SystemdBoot "an empty key is the first, and none in older ones" &[("e", "sort-key \"\""), ("a", "sort-key a"), ("z", "sort-key")],
        &[("version", "262")] => "e a z" "e"),
    case!(SystemdBoot "the first of two keys" &[("a", "sort-key z;sort-key a"), ("b", "sort-key b")], &[] => "a b" "a"),
    case!(SystemdBoot "keys have small letters" &[("a", "SORT-KEY a"), ("b", "sort-key b")], &[] => "b a" "b"),
    case!(SystemdBoot "a tab is a space" &[("a", "sort-key\tz"), ("b", "  sort-key \t b  ")], &[] => "b a" "b"),
    case!(SystemdBoot "keys are compared by bytes" &[("a", "sort-key a"), ("b", "sort-key B"), ("c", "sort-key b10"),
        ("d", "sort-key b9")], &[] => "b a c d" "b"),
    case!(SystemdBoot "names in any case" &[("B", ""), ("a", ""), ("c", "")], &[] => "c B a" "c"),
    case!(SystemdBoot "equal keys: the name" &[("a", "sort-key k"), ("b", "sort-key k"), ("b.1", "sort-key k")],
        &[] => "b.1 b a" "b.1"),
    case!(SystemdBoot "a default without tries" &[("a+0-3", ""), ("b", "")], &[("conf", "default a*.conf")]
        => "b a+0-3" "a+0-3" LoaderConf),
    case!(SystemdBoot "a variable that names one without tries" &[("a+0-3", ""), ("b", "")], &[("default", "a*.conf")]
        => "b a+0-3" "a+0-3" DefaultVariable),
    case!(SystemdBoot "quotes in loader.conf" ROLES, &[("conf", "default 'bootc_x-1-0.conf'"), ("version", "257 262")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" LoaderConf),
    case!(SystemdBoot "the last default of two" ROLES, &[("conf", "default bootc_x-1-0.conf\ndefault bootc_x-1-1.conf")]
        => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1" LoaderConf),
    case!(SystemdBoot "older ones know nothing preferred" ROLES, &[("conf", "preferred *-0.conf"), ("preferred", "*-0.conf"),
        ("version", "252 257")] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
    case!(SystemdBoot "preferred is before default" ROLES, &[("conf", "preferred *-0.conf"), ("default", "*-1.conf"),
        ("version", "262")] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" PreferredByConf),
    case!(SystemdBoot "preferred by the variable" ROLES, &[("conf", "preferred *-1.conf"), ("preferred", "*-0.conf"),
        ("version", "262")] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" PreferredVariable),
    case!(SystemdBoot "nothing preferred is without tries" &[("a+0-3", ""), ("b", "")], &[("conf", "preferred a*.conf"),
        ("preferred", "a.conf"), ("version", "262")] => "b a+0-3" "b"),
    case!(SystemdBoot "one shot is before the preferred" ROLES, &[("preferred", "*-1.conf"), ("one-shot", "*-0.conf"),
        ("version", "262")] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-0" OneShotVariable),
    case!(SystemdBoot "another architecture" &[("a", "architecture aa64"), ("b", "architecture X64"), ("c", "architecture \"x64\"")],
        &[] => "c b" "c"),
    case!(SystemdBoot "257 knows no uki" &[("a", "linux;uki /k/v"), ("b", "")], &[("version", "257")] => "b" "b"),
    case!(SystemdBoot "258 knows uki" &[("c", "linux;uki /k/v"), ("b", "")], &[("version", "262")] => "c b" "c"),
    case!(SystemdBoot "an efi program" &[("c", "linux;efi /k/v"), ("b", "")], &[] => "c b" "c"),
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
    case!(Grub "names that begin with a dot are shown, last" &[(".a", ""), ("1", ""), ("b", "")], &[] => "b 1 .a" "b"),
    case!(Grub "letters before digits" &[("a1", ""), ("aa", ""), ("1a", ""), ("B", ""), ("a", "")], &[] => "aa a1 a B 1a" "aa"),
    case!(Grub "other characters before letters" &[("a-1", ""), ("aa1", ""), ("a_1", ""), ("a.1", ""), ("a+1", ""), ("a~1", ""),
        ("a1", "")], &[] => "a_1 a.1 a-1 a+1 aa1 a1 a~1" "a_1"),
    case!(Grub "zeros before a number are nothing" &[("a-01-1", ""), ("a-1-0", ""), ("a-010", "")],
        &[] => "a-010 a-01-1 a-1-0" "a-010"),
    case!(Grub "longer names" &[("a", ""), ("a-1", ""), ("a.b", ""), ("a.b.c", ""), ("a.1", "")],
        &[] => "a.1 a-1 a a.b.c a.b" "a.1"),
    case!(Grub "a version with a tilde" &[("x-1~rc1-1", ""), ("x-1-0", ""), ("x-1-1", "")], &[] => "x-1-1 x-1-0 x-1~rc1-1" "x-1-1"),
    case!(Grub "another architecture is nothing to it" &[("a", "architecture aa64"), ("b", "")], &[] => "b a" "b"),
    case!(GrubCc "GRUB's order on an ESP" &[("bootc_x-1-1", "sort-key b"), ("bootc_x-1-0", "sort-key a")],
        &[("default", "bootc_x-1-0.conf")] => "bootc_x-1-1 bootc_x-1-0" "bootc_x-1-1"),
];

fn version_of(text: &str) -> Option<Version> {
    version(&format!("systemd-boot {text}"))
}

impl Case {
    pub fn texts(&self) -> Vec<(String, String)> {
        let text = |(name, text): &(&str, &str)| {
            let kernel = if text.starts_with("linux") { "" } else { "linux /k/v\n" };
            let title = if text.contains("title ") { String::new() } else { format!("title T-{name}\n") };
            // No empty line: GRUB 2.14 reads nothing behind one.
            let lines = text.split(';').filter(|line| !line.is_empty()).map(|line| format!("{line}\n"));
            (format!("{name}.conf"), format!("{title}{}{kernel}", lines.collect::<String>()))
        };
        self.files.iter().map(text).collect()
    }

    pub fn setting(&self, key: &str) -> Option<String> {
        self.set.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned())
    }

    pub fn settings(&self) -> Settings {
        Settings {
            version: self.setting("version").and_then(|versions| version_of(versions.rsplit(' ').next()?)),
            loader_conf: self.setting("conf").unwrap_or_default(),
            variables: Variables {
                one_shot: self.setting("one-shot"),
                preferred: self.setting("preferred"),
                default: self.setting("default"),
                last_booted: self.setting("last"),
            },
            environment: Environment::parse(self.environment().as_bytes()),
            grub_cfg: self.setting("cfg").unwrap_or_default(),
        }
    }

    pub fn environment(&self) -> String {
        format!("# GRUB Environment Block\n{:#<900}", self.setting("env").unwrap_or_default())
    }

    /// What happens, with the version of the case.
    pub fn decision(&self) -> Decision {
        self.decision_in(&self.settings())
    }

    /// What happens with another version of the boot loader.
    pub fn decision_of(&self, version: &str) -> Decision {
        self.decision_in(&Settings { version: version_of(version), ..self.settings() })
    }

    /// Whether it is about this version too.
    pub fn is_about(&self, version: &str) -> bool {
        let major = version.split('.').next();
        self.setting("version").is_none_or(|versions| versions.split(' ').any(|one| Some(one) == major))
    }

    fn decision_in(&self, settings: &Settings) -> Decision {
        let items =
            self.texts().iter().map(|(name, text)| Item::of_entry_on("x64", name, &text.parse().unwrap())).collect();
        Decision::of(self.loader, items, settings)
    }

    /// The entries as files, and the kernel that they boot.
    pub fn write(&self, dir: &Path) {
        fs::create_dir_all(dir.join("loader/entries")).unwrap();
        fs::create_dir_all(dir.join("k")).unwrap();
        fs::write(dir.join("k/v"), "kernel").unwrap();
        fs::write(dir.join("loader/loader.conf"), self.settings().loader_conf).unwrap();
        self.texts().iter().for_each(|(name, text)| fs::write(dir.join("loader/entries").join(name), text).unwrap());
    }
}
