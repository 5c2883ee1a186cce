//! Numbers of accounts that move, and what refers to them: owners, access lists, subordinate ranges.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::PathBuf,
};

use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};

use crate::{etc_accounts::is_root, etc_traps::Trap};

/// Two services swap their numbers: a local file of one would be the other's.
pub fn swapped() -> Trap {
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

/// struct posix_acl_xattr: version 2; of the owner, these users, the group, these groups, the mask, all others.
fn acl(users: &[u32], groups: &[u32]) -> Vec<u8> {
    let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &4u16.to_le_bytes(), &id.to_le_bytes()].concat();
    let named = |tag, ids: &[u32]| ids.iter().flat_map(|id| entry(tag, *id)).collect::<Vec<_>>();
    let fixed = |tag| entry(tag, u32::MAX);
    [2u32.to_le_bytes().to_vec(), fixed(1), named(2, users), fixed(4), named(8, groups), fixed(16), fixed(32)].concat()
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn attribute(path: PathBuf, name: &str) -> Vec<u8> {
    let mut value = vec![0; 256];
    let length = lgetxattr(path, name, &mut value).unwrap();
    value.truncate(length);
    value
}

#[test]
fn numbers_in_access_lists_are_listed_and_follow_if_told_to() {
    for follow in [false, true] {
        let trap = swapped();
        let (shared, inherited) = (acl(&[114, 1000], &[7, 116]), acl(&[114, 125], &[]));
        for (path, name, list) in [
            ("c/print.conf", ACCESS, &shared),
            ("c/clash/mine", ACCESS, &shared),
            ("c/dm", DEFAULT, &inherited),
            ("c/dm/custom.conf", ACCESS, &acl(&[1000], &[])),
        ] {
            lsetxattr(trap.at(path), name, list, XattrFlags::empty()).unwrap();
        }
        let plan = trap.merge_with(&format!("[etc]\nfollow-ids = {follow}\n"));
        let changed = if follow { acl(&[125, 1000], &[7, 127]) } else { shared };
        assert_eq!(attribute(trap.at("m/print.conf"), ACCESS), changed);
        assert_eq!(attribute(trap.at("x/clash/mine"), ACCESS), changed);
        // The two have changed places.
        assert_eq!(attribute(trap.at("m/dm"), DEFAULT), inherited);
        assert_eq!(attribute(trap.at("m/dm/custom.conf"), ACCESS), acl(&[1000], &[]));
        let end = |new, other| match follow {
            true => format!(": it gets {new}"),
            false => {
                format!(" no longer, but {other}; {} has {new} (see follow-ids)", if new == 114 { "lp" } else { "dm" })
            }
        };
        let want = [
            format!("/etc/dm has uid 114 in its default access list, which is dm{}", end(125, "lp")),
            format!("/etc/dm has uid 125 in its default access list, which is lp{}", end(114, "dm")),
            format!("/etc/print.conf has uid 114 in its access list, which is dm{}", end(125, "lp")),
            format!("/etc/print.conf has gid 116 in its access list, which is dm{}", end(127, "lp")),
            format!("/etc/clash/mine has uid 114 in its access list, which is dm{}", end(125, "lp")),
            format!("/etc/clash/mine has gid 116 in its access list, which is dm{}", end(127, "lp")),
        ];
        let said: Vec<_> = plan.notes.iter().filter(|note| note.contains("access list")).cloned().collect();
        assert_eq!(said, want);
    }
}

/// What would make a list name one number twice is left to a person.
#[test]
fn an_access_list_that_cannot_follow_stays_and_it_is_said() {
    let trap = Trap::new();
    trap.file("pc", "passwd", b"dm:x:114:1:::\n");
    trap.file("n", "passwd", b"dm:x:125:1:::\n");
    trap.file("c", "print.conf", b"1");
    let list = acl(&[114, 125], &[]);
    lsetxattr(trap.at("c/print.conf"), ACCESS, &list, XattrFlags::empty()).unwrap();
    let plan = trap.merge_with("[etc]\nfollow-ids = true\n");
    assert_eq!(attribute(trap.at("m/print.conf"), ACCESS), list);
    let want = "/etc/print.conf has uid 114 in its access list, which is dm no longer; dm has 125; the list would name one \
                number twice, so it stays: change it";
    assert_eq!(plan.notes[1..], [want]);
}

#[test]
fn a_user_that_an_access_list_names_is_kept() {
    let trap = Trap::new();
    trap.file("pc", "passwd", b"root:x:0:0:::\ngames:x:5:5:::\n");
    trap.file("n", "passwd", b"root:x:0:0:::\n");
    trap.file("c", "scores", b"1");
    lsetxattr(trap.at("c/scores"), ACCESS, &acl(&[5], &[]), XattrFlags::empty()).unwrap();
    let plan = trap.merge();
    assert_eq!(trap.merged("passwd"), "root:x:0:0:::\ngames:x:5:5:::\n");
    let want = "passwd: kept user games (5), removed from the image, because an access list of /etc/scores names it";
    assert_eq!(plan.notes, [want]);
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
