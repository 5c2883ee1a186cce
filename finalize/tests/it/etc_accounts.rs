//! Account files of real machines: odd lines, names that stand twice. And random ones, which the
//! checkers of the shadow suite, pwck(8) and grpck(8), judge.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

use proptest::prelude::*;
use xshell::cmd;

use crate::{
    etc_traps::Trap,
    programs::{is_here, output, shell},
};

pub fn is_root(trap: &Trap) -> bool {
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
    let want = "passwd: the local one is no text and stays as it is, without the image's svc";
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

/// Legal, and seen where a directory service is copied into files.
#[test]
fn large_account_files_are_merged_as_small_ones_are() {
    let trap = Trap::new();
    let root = "root:x:0:0:::\n";
    let users: String = (0..100_000).map(|n| format!("u{n}:x:{}:100:::\n", 1000 + n)).collect();
    let members = |name: &str| (0..10_000).map(|n| format!("{name}{n}")).collect::<Vec<_>>().join(",");
    let group = |members: &str| format!("g:x:5:{members}\n");
    let lines: String = (0..10_000).map(|n| format!("g:!::m{n}\n")).collect();
    let large = format!("# {}\nroot:*:2::::::\n", "x".repeat(16 << 20));
    for (file, [p, c, n]) in [
        ("passwd", [root, &format!("{root}{users}"), &format!("{root}svc:x:990:990:::\n")]),
        ("group", [&group("gone"), &group(&members("m")), &group(&format!("gone,{}", members("n")))]),
        ("gshadow", ["g:!::\n", &lines, "g:!::new\n"]),
        ("shadow", ["root:*:1::::::\n", &large, "root:*:1::::::\nsvc:!:1::::::\n"]),
    ] {
        for (side, content) in [("p", p), ("c", c), ("n", n)] {
            trap.file(side, file, content.as_bytes());
        }
    }
    let plan = trap.merge();
    assert_eq!(trap.merged("passwd"), format!("{root}svc:x:990:990:::\n{users}"));
    assert_eq!(trap.merged("group"), group(&format!("{},{}", members("n"), members("m"))));
    assert_eq!(trap.merged("gshadow"), format!("g:!::new,{}\n", members("m")));
    assert!(trap.merged("shadow") == large, "a file that is too large is not as it was");
    let want = [
        "shadow: the local one is larger than 16 MiB and stays as it is, without the image's svc",
        "gshadow: g stood 10000 times; it is one line now, with the members of all",
    ];
    assert!(want.iter().all(|want| plan.notes.iter().any(|note| note == want)), "{:?}", plan.notes);
}

#[test]
fn what_is_empty_or_alike_is_said_where_it_is_new() {
    let trap = Trap::new();
    trap.file("p", "passwd", b"root:x:0:0:::\na:x:1:0:::\n");
    trap.file("c", "passwd", b"");
    trap.file("n", "passwd", b"root:x:0:0:::\na:x:1:0:::\nsvc:x:990:0:::\n");
    trap.file("p", "group", b"root:x:0:\n");
    trap.file("c", "group", b"root:x:0:\ntoor:x:0:\nmine:x:7:\n");
    trap.file("n", "group", b"root:x:0:\nsvc:x:7:\n");
    let plan = trap.merge();
    assert_eq!(trap.merged("passwd"), "svc:x:990:0:::\n");
    assert_eq!(trap.merged("group"), "root:x:0:\nsvc:x:7:\ntoor:x:0:\nmine:x:7:\n");
    let want = [
        "passwd: the local one has no records; those of the booted image count as removed here",
        "group: mine and svc share the number 7; change one of them",
    ];
    assert_eq!(plan.notes, want);
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
    let root = trap.at(side);
    let output = output(cmd!(shell("."), "{checker} -r -R {root}"));
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
    ["pwck", "grpck"].into_iter().all(is_here) && is_root(trap)
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
