//! Tables of records: what each side has, and what comes of it. Lines are separated by spaces.

use super::*;

fn table(file: File, text: &str) -> Table {
    Table::parse(file, text.replace(' ', "\n").as_bytes()).unwrap()
}

fn sides(file: File, p: &str, c: &str, n: &str) -> Sides {
    Sides { pristine: table(file, p), current: table(file, c), new: table(file, n) }
}

fn shown(table: &Table) -> String {
    String::from_utf8(table.bytes()).unwrap().trim_end().replace('\n', " ")
}

fn check(file: File, [p, c, n]: [&str; 3], want: &str, notes: usize) {
    let files = BTreeMap::from([(file, sides(file, p, c, n))]);
    let merged = merge(&files, &BTreeMap::new(), &Owners::default());
    assert_eq!(shown(&merged.tables[&file]), want);
    assert_eq!(merged.notes.len(), notes, "{:?}", merged.notes);
    // A second run changes nothing.
    let again = BTreeMap::from([(file, sides(file, p, c, want))]);
    let again = merge(&again, &BTreeMap::new(), &Owners::default());
    assert_eq!(again.tables[&file], merged.tables[&file]);
}

#[test]
fn users_of_both_sides_are_there() {
    let p = "root:x:0:0::/root:/bin/sh d:x:5:5:::";
    let c = "root:x:0:0::/root:/bin/zsh d:x:5:5::: me:x:1000:1000::/home/me:/bin/sh";
    let n = "root:x:0:0:r:/root:/bin/sh t:x:104:104:::";
    check(File::Passwd, [p, c, n], "root:x:0:0:r:/root:/bin/zsh t:x:104:104::: me:x:1000:1000::/home/me:/bin/sh", 0);
}

#[test]
fn what_was_removed_here_stays_removed() {
    check(File::Passwd, ["a:x:1:1::: b:x:2:2:::", "a:x:1:1:::", "a:x:1:1:n:: b:x:2:2:::"], "a:x:1:1:n::", 0);
    check(File::Passwd, ["b:x:2:2::: c:x:3:3:::", "c:x:3:3:::", "b:x:2:2:n:: c:x:3:3:::"], "c:x:3:3:::", 1);
}

#[test]
fn a_local_password_survives_and_a_field_that_differs_is_reported() {
    check(File::Shadow, ["r:*:1::::::", "r:$y$:2::::::", "r:*:3::::::"], "r:$y$:2::::::", 1);
    check(File::Passwd, ["", "t:x:105:105:::", "t:x:106:105:::"], "t:x:105:105:::", 1);
    check(File::Passwd, ["", "me:x:105:105:::", "t:x:105:106:::"], "t:x:105:106::: me:x:105:105:::", 1);
}

#[test]
fn member_lists_merge_as_sets() {
    check(File::Group, ["g:x:1:a,b,c", "g:x:1:a,b,me", "g:x:1:b,c,new"], "g:x:1:b,new,me", 0);
    check(File::Gshadow, ["g:!::a", "g:!:me:a", "g:!::a,b"], "g:!:me:a,b", 0);
}

#[test]
fn lines_that_are_no_records_stay_where_they_are_and_those_of_directory_services_last() {
    let p = "root:x:0:0::: a:x:1:1:::";
    let c = "root:x:0:0::: #site  a:x:1:1::: broken:x:9 me:x:9:9::: +@admins -guest +::::::";
    let n = "root:x:0:0::: a:x:1:1::: t:x:5:5:::";
    let want = "root:x:0:0::: #site  a:x:1:1::: t:x:5:5::: broken:x:9 me:x:9:9::: +@admins -guest +::::::";
    check(File::Passwd, [p, c, n], want, 0);
    // Also where something stood behind them, and where the image has such lines.
    check(File::Group, ["g:x:1:", "+ g:x:1:me", "g:x:1: h:x:2: +@n"], "g:x:1:me h:x:2: + +@n", 0);
    // The image's comments come and go; what was removed here stays removed.
    check(File::Group, ["#a #b g:x:1:", "#a g:x:1:me", "#b #c g:x:1: h:x:2:"], "#c g:x:1:me h:x:2:", 0);
    check(
        File::Shadow,
        ["r:*:1::::::", "r:!:1:::::: +::::::::", "r:*:1:::::: t:*:::::::"],
        "r:!:1:::::: t:*::::::: +::::::::",
        0,
    );
}

#[test]
fn a_name_that_stands_twice_is_one_record_and_what_is_not_the_same_stays() {
    let (parse, text) = (|file, text: &str| Table::read(file, text.replace(' ', "\n").as_bytes()).unwrap(), shown);
    for (file, given, want, remarks) in [
        (File::Group, "d:x:9: a:x:1: d:x:9:ada,bo d:x:9:ada", "d:x:9:ada,bo a:x:1:", 1),
        (File::Group, "d:x:9: d:x:8:ada", "d:x:9: d:x:8:ada", 1),
        (File::Group, "d:x:9: d:x:8:ada d:x:9:bo d:x:7:", "d:x:9:bo d:x:8:ada d:x:7:", 2),
        (File::Passwd, "a:x:1:1::: a:x:1:1:::", "a:x:1:1:::", 1),
        (File::Passwd, "a:x:1:1::: a:x:2:2:::", "a:x:1:1::: a:x:2:2:::", 1),
        (File::Gshadow, "d:!:me:a d:!:you:b", "d:!:me,you:a,b", 1),
        (File::Subuid, "a:1:2 a:5:6 a:1:2", "a:1:2 a:5:6 a:1:2", 0),
        (File::Passwd, "a:x:1", "a:x:1", 1),
    ] {
        let (table, said) = parse(file, given);
        assert_eq!((text(&table), said.len()), (want.to_owned(), remarks), "{said:?}");
        assert_eq!(Table::parse(file, &table.bytes()), Some(table), "{given}");
        assert!(!said.join("").contains("ada"), "a remark names content: {said:?}");
    }
    check(File::Group, ["d:x:9:", "d:x:9: d:x:9:ada", "d:x:9: n:x:5:"], "d:x:9:ada n:x:5:", 0);
}

#[test]
fn only_what_is_no_text_does_not_parse() {
    for odd in ["", "\n", "\n\n", "a", "a\n", "::::::\n", "x\n\n#\n+\n"] {
        let table = Table::parse(File::Passwd, odd.as_bytes()).unwrap();
        let newline = if odd.is_empty() || odd.ends_with('\n') { "" } else { "\n" };
        assert_eq!(String::from_utf8(table.bytes()).unwrap(), format!("{odd}{newline}"));
    }
    assert!(Table::parse(File::Passwd, b"a:x:1:1:::\n\0").is_none());
}

fn merged(all: &[(File, [&str; 3])], decided: &[(File, &str)], owners: &Owners) -> (Vec<String>, Vec<String>) {
    let files = all.iter().map(|(file, [p, c, n])| (*file, sides(*file, p, c, n))).collect();
    let decided = decided.iter().map(|(file, text)| (*file, table(*file, text))).collect();
    let merged = merge(&files, &decided, owners);
    (merged.tables.iter().map(|(file, table)| format!("{} {}", file.name(), shown(table))).collect(), merged.notes)
}

#[test]
fn a_dropped_record_stays_while_something_refers_to_it() {
    let (files, notes) = merged(
        &[
            (File::Group, ["g:x:7: h:x:8:", "g:x:7: h:x:8: me:x:1000:", "h:x:8:x"]),
            (File::Passwd, ["a:x:1:1:::", "a:x:1:1::: me:x:1000:7:::", "a:x:1:1:n::"]),
        ],
        &[],
        &Owners::default(),
    );
    assert_eq!(files, ["passwd a:x:1:1:n:: me:x:1000:7:::", "group g:x:7: h:x:8:x me:x:1000:"]);
    assert_eq!(notes, ["group: kept g (7), because it is the group of me"]);
}

/// A kept user keeps its group, its password and its ranges, also where nothing else of these files was changed here.
#[test]
fn what_is_kept_keeps_what_it_refers_to() {
    let all = "a:x:1:1::: games:x:5:60:::";
    let sides = [
        (File::Passwd, [all, all, "a:x:1:1:n::"]),
        (File::Group, ["a:x:1: games:x:60:", "a:x:1: games:x:60:", "a:x:1:"]),
        (File::Shadow, ["a:*::::::: games:!:::::::", "a:*::::::: games:!:::::::", "a:*:::::::"]),
        (File::Subuid, ["games:100000:9", "games:100000:9", ""]),
    ];
    let decided =
        [(File::Passwd, "a:x:1:1:n::"), (File::Group, "a:x:1:"), (File::Shadow, "a:*:::::::"), (File::Subuid, "")];
    assert!(merged(&sides, &decided, &Owners::default()).0.is_empty());
    let owners = Owners { uids: BTreeMap::from([(5, Reference::Owner(RelPath::from("scores")))]), ..Owners::default() };
    let (files, notes) = merged(&sides, &decided, &owners);
    let want = [
        "passwd a:x:1:1:n:: games:x:5:60:::",
        "group a:x:1: games:x:60:",
        "shadow a:*::::::: games:!:::::::",
        "subuid games:100000:9",
    ];
    assert_eq!(files, want);
    assert_eq!(notes[0], "passwd: kept user games (5), removed from the image, because /etc/scores belongs to it");
    assert_eq!(notes.len(), 3, "{notes:?}");
}

#[test]
fn passwd_and_shadow_stay_consistent() {
    // The image dropped d from passwd, and its shadow was only changed here.
    let (files, _) = merged(
        &[
            (File::Passwd, ["a:x:1:1::: d:x:2:2:::", "a:x:1:1:c:: d:x:2:2:::", "a:x:1:1::: t:x:3:3:::"]),
            (File::Shadow, ["a:*::::::: d:*:::::::", "a:*::::::: d:!:::::::", "a:*::::::: t:*:::::::"]),
        ],
        &[],
        &Owners::default(),
    );
    assert_eq!(files, ["passwd a:x:1:1:c:: t:x:3:3:::", "shadow a:*::::::: t:*:::::::"]);
}

#[test]
fn members_that_the_image_itself_named_keep_nobody() {
    for (new, want) in [("a:x:29:", "group a:x:29:me"), ("a:x:29:g", "group a:x:29:me")] {
        let (files, _) = merged(
            &[
                (File::Passwd, ["g:x:5:5:::", "g:x:5:5::: me:x:9:9:::", "n:x:6:6:::"]),
                (File::Group, ["a:x:29:g", "a:x:29:g,me", new]),
            ],
            &[],
            &Owners::default(),
        );
        assert_eq!(files, ["passwd n:x:6:6::: me:x:9:9:::", want]);
    }
}

#[test]
fn a_user_that_was_removed_here_is_no_new_member() {
    let (files, _) = merged(
        &[
            (File::Passwd, ["f:x:5:5:::", "me:x:9:9:::", "f:x:5:5::: t:x:6:7:::"]),
            (File::Group, ["a:x:29: t:x:7:", "a:x:29:", "a:x:29:f t:x:7:"]),
        ],
        &[],
        &Owners::default(),
    );
    // The group of a user that the image adds comes back.
    assert_eq!(files, ["passwd t:x:6:7::: me:x:9:9:::", "group a:x:29: t:x:7:"]);
}

#[test]
fn shared_numbers_and_overlapping_ranges_are_reported_once_they_are_new() {
    let passwd = |c, n| (File::Passwd, ["", c, n]);
    let subuid = |c, n| (File::Subuid, ["", c, n]);
    let notes = |passwd, subuid| merged(&[passwd, subuid], &[], &Owners::default()).1;
    let said = notes(passwd("big:x:100500:1:::", ""), subuid("ada:100000:65536", "builder:165535:1 far:165536:9"));
    // That a user's number is in a range was so before.
    assert_eq!(said, ["subuid: the ranges of ada and builder overlap; change one of them"]);
    let said = notes(passwd("a:x:1:1:::", "big:x:100500:1::: b:x:1:1:::"), subuid("ada:100000:65536", ""));
    let want = [
        "passwd: a and b share the number 1; change one of them",
        "passwd: big has the number 100500, which is in the subordinate range of ada",
    ];
    assert_eq!(said, want);
}

#[test]
fn numbers_that_move_are_known_with_who_has_them_then() {
    let p = "dm:x:114:1::: lp:x:125:1::: two:x:7:1::: twin:x:7:1:::";
    let n = "dm:x:125:1::: lp:x:114:1::: two:x:8:1::: twin:x:7:1:::";
    let files = BTreeMap::from([(File::Passwd, sides(File::Passwd, p, &format!("{p} me:x:9:9:::"), n))]);
    let moved = merge(&files, &BTreeMap::new(), &Owners::default()).moved;
    let short =
        |m: &Moved| format!("{} {} {} {} {}", m.name, m.old, m.new, m.taken_by.as_deref().unwrap_or("-"), m.certain);
    let want = ["dm 114 125 lp true", "lp 125 114 dm true", "two 7 8 twin false"];
    assert_eq!(moved.iter().map(short).collect::<Vec<_>>(), want);
}
