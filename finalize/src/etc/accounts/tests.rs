//! Tables of records: what each side has, and what comes of it.

use super::*;

fn sides(file: File, p: &str, c: &str, n: &str) -> Sides {
    let parse = |text: &str| Table::parse(file, text.replace(' ', "\n").as_bytes()).unwrap();
    Sides { pristine: parse(p), current: parse(c), new: parse(n) }
}

fn check(file: File, [p, c, n]: [&str; 3], want: &str, notes: usize) {
    let files = BTreeMap::from([(file, sides(file, p, c, n))]);
    let merged = merge(&files, &BTreeMap::new(), &Owners::default());
    let got = String::from_utf8(merged.tables[&file].bytes()).unwrap();
    assert_eq!(got.trim_end().replace('\n', " "), want);
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
fn a_dropped_record_stays_while_something_refers_to_it() {
    let group = sides(File::Group, "g:x:7: h:x:8:", "g:x:7: h:x:8: me:x:1000:", "h:x:8:x");
    let passwd = sides(File::Passwd, "a:x:1:1:::", "a:x:1:1::: me:x:1000:7:::", "a:x:1:1:n::");
    let files = BTreeMap::from([(File::Group, group), (File::Passwd, passwd)]);
    let merged = merge(&files, &BTreeMap::new(), &Owners::default());
    assert_eq!(merged.tables[&File::Group].bytes(), b"h:x:8:x\nme:x:1000:\ng:x:7:\n");
    assert_eq!(merged.notes.len(), 1);
}

#[test]
fn passwd_and_shadow_stay_consistent() {
    // The image dropped d from passwd, and its shadow was only changed here.
    let passwd = sides(File::Passwd, "a:x:1:1::: d:x:2:2:::", "a:x:1:1:c:: d:x:2:2:::", "a:x:1:1::: t:x:3:3:::");
    let shadow = sides(File::Shadow, "a:*::::::: d:*:::::::", "a:*::::::: d:!:::::::", "a:*::::::: t:*:::::::");
    let files = BTreeMap::from([(File::Passwd, passwd), (File::Shadow, shadow)]);
    let merged = merge(&files, &BTreeMap::new(), &Owners::default());
    assert_eq!(merged.tables[&File::Passwd].bytes(), b"a:x:1:1:c::\nt:x:3:3:::\n");
    assert_eq!(merged.tables[&File::Shadow].bytes(), b"a:*:::::::\nt:*:::::::\n");
}

#[test]
fn what_does_not_parse_is_left_to_the_table() {
    for bad in ["x", "a:b", ":x:0:0:::", "a:x:1:1::: a:x:2:2:::", "+"] {
        assert!(Table::parse(File::Passwd, bad.replace(' ', "\n").as_bytes()).is_none(), "{bad}");
    }
    assert!(Table::parse(File::Subuid, b"a:1:2\na:5:6\n").is_some());
    assert!(Table::parse(File::Passwd, b"").is_some());
}

#[test]
fn an_owner_of_local_files_stays_also_where_nothing_else_changed_here() {
    let all = "a:x:1:1::: games:x:5:60:::";
    let passwd = sides(File::Passwd, all, all, "a:x:1:1:n::");
    let shadow = sides(File::Shadow, "a:*::::::: games:!:::::::", "a:*::::::: games:!:::::::", "a:*:::::::");
    let decided = BTreeMap::from([(File::Passwd, passwd.new.clone()), (File::Shadow, shadow.new.clone())]);
    let files = BTreeMap::from([(File::Passwd, passwd), (File::Shadow, shadow)]);
    assert!(merge(&files, &decided, &Owners::default()).tables.is_empty());
    let owners = Owners { uids: BTreeSet::from([5]), ..Owners::default() };
    let merged = merge(&files, &decided, &owners);
    assert_eq!(merged.tables[&File::Passwd].bytes(), b"a:x:1:1:n::\ngames:x:5:60:::\n");
    assert_eq!(merged.tables[&File::Shadow].bytes(), b"a:*:::::::\ngames:!:::::::\n");
}

#[test]
fn members_that_the_image_itself_named_keep_nobody() {
    let passwd = sides(File::Passwd, "g:x:5:5:::", "g:x:5:5::: me:x:9:9:::", "n:x:6:6:::");
    let group = sides(File::Group, "a:x:29:g", "a:x:29:g,me", "a:x:29:");
    let merged =
        merge(&BTreeMap::from([(File::Passwd, passwd), (File::Group, group)]), &BTreeMap::new(), &Owners::default());
    assert_eq!(merged.tables[&File::Group].bytes(), b"a:x:29:me\n");
    assert_eq!(merged.tables[&File::Passwd].bytes(), b"n:x:6:6:::\nme:x:9:9:::\n");
}
