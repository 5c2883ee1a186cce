//! Account files of real machines: odd lines, names that stand twice, numbers that move. And random ones, which the
//! checkers of the shadow suite, pwck(8) and grpck(8), judge.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    process::Command,
};

use proptest::prelude::*;

use crate::etc_traps::Trap;

fn is_root(trap: &Trap) -> bool {
    let root = fs::metadata(trap.at("p")).unwrap().uid() == 0;
    if !root {
        println!("SKIPPED: not root");
    }
    root
}

#[test]
fn a_group_that_stands_twice_keeps_its_members_and_the_image_its_new_groups() {
    let trap = Trap::new();
    trap.file("p", "group", b"root:x:0:\ndocker:x:990:\n");
    trap.file("c", "group", b"root:x:0:\ndocker:x:990:\ndocker:x:990:ada\nada:x:1000:\n");
    trap.file("n", "group", b"root:x:0:\ndocker:x:990:\nnewsvc:x:985:\n");
    let plan = trap.merge();
    assert_eq!(trap.merged("group"), "root:x:0:\ndocker:x:990:ada\nnewsvc:x:985:\nada:x:1000:\n");
    assert_eq!(plan.notes, ["group: docker stood twice; it is one line now, with the members of both"]);
    assert_eq!((plan.counts().conflicts, plan.counts().merged), (0, 1));
}

#[test]
fn comments_and_lines_of_directory_services_survive_beside_new_users() {
    let trap = Trap::new();
    trap.file("p", "passwd", b"root:x:0:0::/root:/bin/sh\n");
    let local = "root:x:0:0::/root:/bin/sh\n# site\n\nada:x:1000:1000:::\n+@admins\n-guest\n+::::::\n";
    trap.file("c", "passwd", local.as_bytes());
    trap.file("n", "passwd", b"root:x:0:0::/root:/bin/sh\nsvc:x:990:990:::\n");
    trap.file("pn", "group", b"root:x:0:\n");
    trap.file("n", "group", b"root:x:0:\nsvc:x:990:\n");
    trap.file("c", "group", b"root:x:0:\nada:x:1000:\n+");
    trap.file("p", "shadow", b"root:*:::::::\n");
    trap.file("c", "shadow", b"root:$y$secret:::::::\n+::::::::\n");
    trap.file("n", "shadow", b"root:*:::::::\nsvc:!:::::::\n");
    let plan = trap.merge();
    let (root, rest) = local.split_once('\n').unwrap();
    assert_eq!(trap.merged("passwd"), format!("{root}\nsvc:x:990:990:::\n{rest}"));
    assert_eq!(trap.merged("group"), "root:x:0:\nsvc:x:990:\nada:x:1000:\n+\n");
    assert_eq!(trap.merged("shadow"), "root:$y$secret:::::::\nsvc:!:::::::\n+::::::::\n");
    assert!(plan.notes.is_empty(), "{:?}", plan.notes);
}

#[test]
fn a_file_that_is_no_text_is_local_and_it_is_said_what_it_lacks() {
    let trap = Trap::new();
    trap.file("p", "passwd", b"root:x:0:0:::\n");
    trap.file("c", "passwd", b"root:x:0:0:::\n\0\0\0\n");
    trap.file("n", "passwd", b"root:x:0:0:::\nsvc:x:990:990:::\n");
    let plan = trap.merge();
    assert_eq!(trap.merged("passwd"), "root:x:0:0:::\n\0\0\0\n");
    let want = "passwd: the local file is no text, or larger than 16 MiB; the local file stays as it is, without the \
                image's svc";
    assert_eq!(
        (plan.notes, plan.steps.values().filter(|step| step.reason.is_conflict()).count()),
        (vec![want.into()], 1)
    );
}

/// An image that tightens the mode wins where nobody changed the mode here, also when a password was changed.
#[test]
fn owner_and_mode_of_a_merged_file_are_merged_by_themselves() {
    let check = |[p, c, n]: [u32; 3], want, notes| {
        let trap = Trap::new();
        trap.file("p", "shadow", b"root:*:1::::::\n");
        trap.file("c", "shadow", b"root:$y$:2::::::\n");
        trap.file("n", "shadow", b"root:*:1::::::\nsvc:!:::::::\n");
        for (side, mode) in [("p", p), ("c", c), ("n", n)] {
            fs::set_permissions(trap.at(&format!("{side}/shadow")), Permissions::from_mode(mode)).unwrap();
        }
        let plan = trap.merge();
        assert_eq!(trap.merged("shadow"), "root:$y$:2::::::\nsvc:!:::::::\n");
        assert_eq!(fs::metadata(trap.at("m/shadow")).unwrap().mode() & 0o7777, want);
        assert_eq!(plan.notes.len(), notes, "{:?}", plan.notes);
    };
    check([0o644, 0o644, 0o640], 0o640, 0);
    check([0o644, 0o600, 0o644], 0o600, 0);
    check([0o644, 0o600, 0o640], 0o600, 1);
    check([0o644, 0o600, 0o600], 0o600, 0);
}

#[test]
fn a_file_that_a_rule_names_is_left_alone() {
    let trap = Trap::new();
    trap.file("pc", "passwd", b"root:x:0:0:::\ng:x:5:5:::\n");
    trap.file("n", "passwd", b"root:x:0:0:::\n");
    trap.file("pc", "group", b"root:x:0:\na:x:29:g\ng:x:5:\n");
    trap.file("n", "group", b"root:x:0:\na:x:29:\n");
    trap.merge_with("[[etc.rule]]\npath = \"group\"\nkeep = \"local\"\n");
    assert_eq!(trap.merged("group"), "root:x:0:\na:x:29:g\ng:x:5:\n");
    assert_eq!(trap.merged("passwd"), "root:x:0:0:::\n");
}

/// Two services swap their numbers: a local file of one would be the other's.
fn swapped() -> Trap {
    let trap = Trap::new();
    trap.file("pc", "passwd", b"dm:x:114:116:::\nlp:x:125:127:::\n");
    trap.file("c", "passwd", b"dm:x:114:116:::\nlp:x:125:127:::\nada:x:1000:1000:::\n");
    trap.file("n", "passwd", b"dm:x:125:127:::\nlp:x:114:116:::\n");
    trap.file("pc", "group", b"dm:x:116:\nlp:x:127:\n");
    trap.file("n", "group", b"dm:x:127:\nlp:x:116:\n");
    trap.file("c", "dm/custom.conf", b"1");
    trap.file("c", "print.conf", b"1");
    trap.file("c", "clash/mine", b"1");
    trap.file("pn", "clash", b"1");
    trap.file("n", "clash", b"2");
    trap
}

#[test]
fn files_of_a_number_that_moves_are_listed_with_both_and_follow_if_told_to() {
    for follow in [false, true] {
        let trap = swapped();
        if !is_root(&trap) {
            return;
        }
        chown(trap.at("c/dm/custom.conf"), Some(114), Some(116)).unwrap();
        chown(trap.at("c/print.conf"), Some(125), Some(0)).unwrap();
        chown(trap.at("c/clash/mine"), Some(114), Some(0)).unwrap();
        let plan = trap.merge_with(&format!("[etc]\nfollow-ids = {follow}\n"));
        let owner = |path: &str| fs::metadata(trap.at(path)).map(|m| (m.uid(), m.gid())).unwrap();
        let [dm, lp] = if follow { [(125, 127), (114, 0)] } else { [(114, 116), (125, 0)] };
        assert_eq!((owner("m/dm/custom.conf"), owner("m/print.conf")), (dm, lp));
        assert_eq!(owner("x/clash/mine"), (dm.0, 0));
        let said = plan.notes.join("\n");
        for want in [
            "passwd: dm has uid 125 in the image, and 114 here; files in /var keep 114, which is lp then",
            "group: lp has gid 116 in the image, and 127 here; files in /var keep 127, which is dm then",
            "/etc/dm/custom.conf belongs to uid 114, which is dm",
            "/etc/dm/custom.conf belongs to gid 116, which is dm",
            "/etc/print.conf belongs to uid 125, which is lp",
            "/etc/clash/mine belongs to uid 114, which is dm",
        ] {
            assert!(said.contains(want), "{want}\n{said}");
        }
        assert_eq!(said.contains("no longer, but lp; dm has 125"), !follow, "{said}");
        assert_eq!(said.contains(": it gets 125"), follow, "{said}");
    }
}

#[test]
fn ranges_that_overlap_and_users_within_them_are_reported() {
    let trap = Trap::new();
    for file in ["subuid", "subgid"] {
        trap.file("p", file, b"");
        trap.file("c", file, b"ada:100000:65536\n");
        trap.file("n", file, b"builder:100000:65536\n");
    }
    trap.file("pn", "passwd", b"root:x:0:0:::\n");
    trap.file("n", "passwd", b"root:x:0:0:::\nbig:x:100500:0:::\n");
    trap.file("c", "passwd", b"root:x:0:0:::\nada:x:1000:0:::\n");
    let plan = trap.merge();
    for file in ["subuid", "subgid"] {
        assert_eq!(trap.merged(file), "builder:100000:65536\nada:100000:65536\n");
    }
    let said = plan.notes.join("\n");
    for want in [
        "subuid: the ranges of ada and builder overlap",
        "subgid: the ranges of ada and builder overlap",
        "passwd: big has the number 100500, which is in the subordinate range of",
    ] {
        assert!(said.contains(want), "{want}\n{said}");
    }
}

const FILES: [&str; 4] = ["passwd", "group", "shadow", "gshadow"];
const ODD: [&str; 7] = ["# site", "", "+@admins", "-guest", "+", "broken:x", "nothing"];

/// One side: users by number with the number of their group; groups by number with members; odd lines, by place; lines
/// that stand twice.
#[derive(Debug, Clone)]
struct Accounts {
    users: Vec<(u8, u8, u8)>,
    groups: Vec<(u8, Vec<u8>)>,
    odd: Vec<(usize, usize, usize)>,
    twice: Option<usize>,
}

fn accounts() -> impl Strategy<Value = Accounts> {
    let users = proptest::collection::btree_map(0..6u8, (0..6u8, 0..3u8), 0..6);
    let groups = proptest::collection::btree_map(0..6u8, proptest::collection::vec(0..6u8, 0..3), 0..6);
    let odd = proptest::collection::vec((0..4usize, 0..8usize, 0..ODD.len()), 0..5);
    (users, groups, odd, proptest::option::of(0..6usize)).prop_map(|(users, groups, odd, twice)| Accounts {
        users: users.into_iter().map(|(user, (group, shell))| (user, group, shell)).collect(),
        groups: groups.into_iter().collect(),
        odd,
        twice,
    })
}

impl Accounts {
    /// Lines of passwd, group, shadow and gshadow.
    fn files(&self) -> [Vec<String>; 4] {
        let name = |prefix: &str, number: &u8| format!("{prefix}{number}");
        let members = |all: &Vec<u8>| {
            let all: BTreeSet<_> = all.iter().map(|user| name("u", user)).collect();
            all.into_iter().collect::<Vec<_>>().join(",")
        };
        let user = |(user, group, shell): &(u8, u8, u8)| format!("u{user}:x:10{user}:20{group}:{shell}:/:/bin/sh");
        let mut files = [
            self.users.iter().map(user).collect::<Vec<_>>(),
            self.groups.iter().map(|(group, all)| format!("g{group}:x:20{group}:{}", members(all))).collect(),
            self.users.iter().map(|(user, _, shell)| format!("u{user}:!{shell}:1::::::")).collect(),
            self.groups.iter().map(|(group, all)| format!("g{group}:!::{}", members(all))).collect(),
        ];
        if let Some(at) = self.twice {
            let again = files[1].get(at).cloned();
            files[1].extend(again);
        }
        for (file, at, odd) in &self.odd {
            let lines = &mut files[*file];
            lines.insert((*at).min(lines.len()), ODD[*odd].to_owned());
        }
        files
    }
}

fn names<'a>(lines: impl IntoIterator<Item = &'a String>) -> BTreeSet<&'a str> {
    lines.into_iter().filter(|line| line.split(':').count() > 3).map(|line| line.split(':').next().unwrap()).collect()
}

/// What a checker says of the files of one side, without which line it would remove.
fn complaints(trap: &Trap, checker: &str, side: &str) -> BTreeSet<String> {
    let output = Command::new(checker).arg("-r").arg("-R").arg(trap.at(side)).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    let about = |line: &&str| !line.starts_with("delete line") && !line.ends_with(": no changes");
    text.lines().filter(about).map(ToOwned::to_owned).collect()
}

/// Nothing that only one side has is lost, and the checkers find nothing that they do not find on a side.
fn check(p: &Accounts, c: &Accounts, n: &Accounts, checkers: bool) {
    let trap = Trap::new();
    let sides = [p, c, n].map(Accounts::files);
    for (side, files) in ["p", "c", "n"].iter().zip(&sides) {
        symlink(".", trap.at(&format!("{side}/etc"))).unwrap();
        for (name, lines) in FILES.iter().zip(files) {
            trap.file(side, name, lines.iter().map(|line| format!("{line}\n")).collect::<String>().as_bytes());
        }
    }
    let plan = trap.merge();
    let merged = FILES.map(|name| trap.merged(name).lines().map(ToOwned::to_owned).collect::<Vec<_>>());
    let context =
        || format!("\np {:#?}\nc {:#?}\nn {:#?}\nm {merged:#?}\n{:#?}", sides[0], sides[1], sides[2], plan.notes);
    for at in 0..4 {
        let [p, c, n] = [&sides[0][at], &sides[1][at], &sides[2][at]];
        let m = &merged[at];
        let compat = m.iter().position(|line| line.starts_with(['+', '-']));
        let rest = m.iter().skip(compat.unwrap_or(m.len()));
        // A file that follows one side as a whole has that side's order.
        let as_is = m == c || m == n;
        assert!(
            as_is || rest.clone().all(|line| line.starts_with(['+', '-'])),
            "not last in {}{}",
            FILES[at],
            context()
        );
        for line in c.iter().filter(|line| ODD.contains(&line.as_str()) && !p.contains(line)) {
            assert!(m.contains(line), "the local line {line:?} of {} is lost{}", FILES[at], context());
        }
        if at < 2 {
            let local = |name: &&str| c.iter().any(|line| line.starts_with(&format!("{name}:")) && !p.contains(line));
            for name in names(c).iter().filter(|name| local(name)) {
                assert!(names(m).contains(name), "the local {name} of {} is lost{}", FILES[at], context());
            }
        }
        for name in names(n).difference(&names(p)) {
            assert!(names(m).contains(name), "the image's new {name} of {} is lost{}", FILES[at], context());
        }
    }
    for checker in ["pwck", "grpck"].iter().filter(|_| checkers) {
        let [c, n, m] = ["c", "n", "m"].map(|side| complaints(&trap, checker, side));
        let new: Vec<_> = m.iter().filter(|line| !c.contains(*line) && !n.contains(*line)).collect();
        assert!(new.is_empty(), "{checker} finds {new:#?}{}", context());
    }
    // A second run changes nothing.
    for (name, lines) in FILES.iter().zip(&merged) {
        trap.file("n", name, lines.iter().map(|line| format!("{line}\n")).collect::<String>().as_bytes());
    }
    trap.merge();
    let again = FILES.map(|name| trap.merged(name).lines().map(ToOwned::to_owned).collect::<Vec<_>>());
    assert_eq!(again, merged, "{}", context());
}

fn have_checkers(trap: &Trap) -> bool {
    let found = ["pwck", "grpck"].iter().all(|checker| Command::new(checker).arg("--help").output().is_ok());
    if !found {
        println!("SKIPPED pwck and grpck: not installed");
    }
    found && is_root(trap)
}

#[test]
fn the_checkers_are_awake() {
    let trap = Trap::new();
    if !have_checkers(&trap) {
        return;
    }
    symlink(".", trap.at("c/etc")).unwrap();
    trap.file("c", "passwd", b"u:x:1:77:::/bin/sh\n");
    trap.file("c", "group", b"g:x:1:nobody\n");
    trap.file("c", "shadow", b"");
    trap.file("c", "gshadow", b"");
    let (users, groups) = (complaints(&trap, "pwck", "c"), complaints(&trap, "grpck", "c"));
    assert!(users.iter().any(|line| line.contains("no group 77")), "{users:?}");
    assert!(groups.iter().any(|line| line.contains("no user nobody")), "{groups:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_accounts_lose_nothing_and_the_checkers_find_nothing_new(p in accounts(), c in accounts(), n in accounts()) {
        let checkers = have_checkers(&Trap::new());
        check(&p, &c, &n, checkers);
        check(&p, &p, &n, checkers);
        check(&p, &c, &p, checkers);
    }
}
