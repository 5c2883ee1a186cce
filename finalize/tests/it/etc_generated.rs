//! Files that programs make: indexes, which follow the image, and the compiled SELinux policy, which is one thing.

use std::{fs, path::Path};
use xshell::cmd;

use crate::{
    etc_traps::Trap,
    programs::{is_here, ok, shell},
};

#[test]
fn an_index_follows_the_image_and_a_rule_keeps_the_local_one() {
    let indexes = [
        "ld.so.cache",
        "udev/hwdb.bin",
        "pki/ca-trust/extracted/pem/bundle.pem",
        "ssl/certs/ca-certificates.crt",
        "passwd-",
        "shadow-",
    ];
    for (config, content) in [("", "image"), ("[[etc.rule]]\npath = \"**\"\nkeep = \"local\"\n", "local")] {
        let trap = Trap::new();
        for path in indexes {
            trap.file("p", path, b"old");
            trap.file("c", path, b"local");
            trap.file("n", path, b"image");
        }
        trap.file("cn", ".updated", b"");
        let plan = trap.merge_with(config);
        assert!(indexes.iter().all(|path| trap.merged(path) == content), "{config}{plan}");
        assert!(trap.is_absent(".updated"));
        let notes = plan.notes.iter().filter(|note| note.contains("a program makes it from other files"));
        assert_eq!(notes.count(), if config.is_empty() { indexes.len() } else { 0 });
        assert_eq!(plan.counts().conflicts, if config.is_empty() { 0 } else { indexes.len() as u64 });
    }
}

#[test]
fn an_index_stays_local_where_the_image_has_no_other_one_and_never_comes_where_nothing_can_be() {
    let trap = Trap::new();
    trap.file("pn", "ld.so.cache", b"same");
    trap.file("c", "ld.so.cache", b"local");
    trap.file("c", "passwd-", b"local");
    trap.file("p", "udev/hwdb.bin", b"old");
    trap.file("n", "udev/hwdb.bin", b"new");
    trap.file("p", "group-", b"old");
    trap.file("n", "group-", b"new");
    let plan = trap.merge();
    assert_eq!((trap.merged("ld.so.cache"), trap.merged("passwd-")), ("local".into(), "local".into()));
    // The directory was removed here; the backup only.
    assert!(trap.is_absent("udev"));
    assert_eq!(trap.merged("group-"), "new");
    assert_eq!(plan.notes.len(), 1, "{:?}", plan.notes);
}

const POLICY: &str = "selinux/t/policy/policy.33";
const CONTEXTS: &str = "selinux/t/contexts/files/file_contexts";
const MODULE: &str = "selinux/t/active/modules/100/a/cil";
const MINE: &str = "selinux/t/active/modules/400/mine/cil";

/// A store with a local module, where the image has another policy.
pub fn store() -> Trap {
    let trap = Trap::new();
    for path in [POLICY, CONTEXTS, MODULE, "selinux/t/active/commit_num", "selinux/config"] {
        trap.file("pc", path, b"1");
        trap.file("n", path, b"image");
    }
    for path in [POLICY, MINE, "selinux/t/active/commit_num"] {
        trap.file("c", path, b"local");
    }
    trap.file("n", "selinux/t/active/modules/100/new/cil", b"image");
    trap.file("c", "selinux/t/contexts/files/file_contexts.local", b"mine");
    trap
}

#[test]
fn a_policy_with_a_local_module_stays_local_as_a_whole() {
    let trap = store();
    let plan = trap.merge();
    for (path, want) in
        [(POLICY, "local"), (CONTEXTS, "1"), (MODULE, "1"), (MINE, "local"), ("selinux/config", "image")]
    {
        assert_eq!(trap.merged(path), want, "{path}");
    }
    assert!(trap.is_absent("selinux/t/active/modules/100/new"));
    assert_eq!(trap.merged("selinux/t/contexts/files/file_contexts.local"), "mine");
    let conflicts: Vec<_> = plan.conflicts().map(|(path, _)| path.to_string()).collect();
    assert_eq!(conflicts, [POLICY]);
    let said = plan.notes.join("\n");
    assert!(said.contains("/etc/selinux/t: the policy was changed here") && said.contains("semodule -B"), "{said}");
}

#[test]
fn a_rule_for_the_store_takes_all_of_the_images_and_names_the_modules_that_are_lost() {
    // A rule for a part is a rule for all of it.
    for path in ["selinux/**", "selinux/t/policy/*"] {
        let trap = store();
        let plan = trap.merge_with(&format!("[[etc.rule]]\npath = \"{path}\"\nkeep = \"image\"\n"));
        for path in [POLICY, CONTEXTS, MODULE, "selinux/t/active/modules/100/new/cil"] {
            assert_eq!(trap.merged(path), "image", "{path}\n{plan}");
        }
        assert!(trap.is_absent(MINE));
        let said = plan.notes.join("\n");
        assert!(said.contains("/etc/selinux/t: the local module mine is not in the image's policy"), "{said}");
        assert_eq!(plan.counts().conflicts, 0, "{plan}");
    }
}

#[test]
fn contexts_that_a_person_adds_go_with_any_policy() {
    let trap = store();
    for path in [POLICY, "selinux/t/active/commit_num"] {
        trap.file("c", path, b"1");
    }
    trap.file("c", "selinux/t/active/commit_num", b"2");
    fs::remove_dir_all(trap.at("c/selinux/t/active/modules/400")).unwrap();
    let plan = trap.merge();
    for path in [POLICY, CONTEXTS, MODULE, "selinux/t/active/commit_num"] {
        assert_eq!(trap.merged(path), "image", "{path}\n{plan}");
    }
    assert_eq!(trap.merged("selinux/t/contexts/files/file_contexts.local"), "mine");
    assert_eq!(plan.counts().conflicts, 0, "{plan}");
}

#[test]
fn a_local_policy_needs_no_decision_where_the_image_has_no_other_one() {
    let trap = store();
    fs::remove_dir_all(trap.at("n/selinux")).unwrap();
    for path in [POLICY, CONTEXTS, MODULE, "selinux/t/active/commit_num", "selinux/config"] {
        trap.file("n", path, b"1");
    }
    let plan = trap.merge();
    assert_eq!(
        (trap.merged(POLICY), trap.merged(MINE), trap.merged(CONTEXTS)),
        ("local".into(), "local".into(), "1".into())
    );
    assert_eq!((plan.counts().conflicts, plan.notes.len()), (0, 0), "{plan}");
}

/// The smallest policy that compiles, in CIL (secilc(8)).
const BASE: &str = r#"
(mls true) (handleunknown allow)
(class file (read write)) (class process (fork)) (classorder (file process))
(sid kernel) (sidorder (kernel))
(user u) (role r) (role object_r) (type t) (typeattribute domains) (typeattributeset domains t)
(userrole u r) (userrole u object_r) (roletype r t) (roletype object_r t)
(category c0) (categoryorder (c0)) (sensitivity s0) (sensitivityorder (s0)) (sensitivitycategory s0 (c0))
(level low (s0)) (levelrange lr (low low)) (userlevel u low) (userrange u lr)
(sidcontext kernel (u r t lr)) (allow t self (file (read)))
(filecon "/etc(/.*)?" any (u object_r t lr))
"#;

/// Runs semodule(8) on the store `selinux/t` below `root/etc`.
fn semodule(root: &Path, more: &[&str]) -> String {
    ok(cmd!(shell("."), "semodule -n -N -S /etc/selinux -s t -p {root} {more...}"))
}

#[test]
fn a_real_store_before_and_after_a_local_module() {
    let trap = Trap::new();
    if !is_here("semodule") {
        return;
    }
    let install = |side: &str, priority: &str, name: &str, cil: &str| {
        let module = trap.at(&format!("{name}.cil"));
        fs::write(&module, cil).unwrap();
        semodule(&trap.at(side), &["-X", priority, "-i", module.to_str().unwrap()]);
    };
    for side in ["p", "c", "n"] {
        for dir in ["active", "contexts/files", "policy"] {
            fs::create_dir_all(trap.at(&format!("{side}/etc/selinux/t/{dir}"))).unwrap();
        }
        install(side, "100", "base", BASE);
    }
    let context = "(filecon \"/opt(/.*)?\" any (u object_r t lr))";
    install("n", "100", "theirs", &format!("(type theirs) (typeattributeset domains theirs) {context}"));
    // As the trees of a merge: /etc itself.
    for side in ["p", "c", "n"] {
        fs::rename(trap.at(side), trap.at("all")).unwrap();
        fs::rename(trap.at("all/etc"), trap.at(side)).unwrap();
        fs::remove_dir(trap.at("all")).unwrap();
        std::os::unix::fs::symlink(".", trap.at(&format!("{side}/etc"))).unwrap();
    }
    let (policy, contexts) = ("selinux/t/policy", "selinux/t/contexts/files/file_contexts");
    let compiled = |side: &str| {
        let dir = fs::read_dir(trap.at(&format!("{side}/{policy}"))).unwrap();
        let files: Vec<_> = dir.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        fs::read(&files[0]).unwrap()
    };
    // Before: the image's, as a whole.
    let plan = trap.merge();
    assert!(compiled("m") == compiled("n") && compiled("n") != compiled("p"));
    assert_eq!((plan.counts().conflicts, plan.notes.len()), (0, 0), "{plan}");
    assert!(trap.merged(contexts).contains("/opt"));
    // After: the local one, as a whole, which still compiles.
    install("c", "400", "mine", "(type mine) (typeattributeset domains mine)");
    let plan = trap.merge();
    assert!(compiled("m") == compiled("c") && compiled("c") != compiled("p"));
    assert!(!trap.merged(contexts).contains("/opt"));
    let conflicts: Vec<_> = plan.conflicts().map(|(path, _)| path.to_string()).collect();
    assert!(conflicts.len() == 1 && conflicts[0].starts_with(policy), "{conflicts:?}");
    let modules = |side: &str| semodule(&trap.at(side), &["--list-modules=full"]);
    assert_eq!(modules("m"), modules("c"));
    semodule(&trap.at("m"), &["-B"]);
    assert!(compiled("m") == compiled("c"));
    // With a rule: the image's, and the local module can be installed again.
    trap.merge_with("[[etc.rule]]\npath = \"selinux/**\"\nkeep = \"image\"\n");
    assert!(compiled("m") == compiled("n") && modules("m") == modules("n"));
    install("m", "400", "mine", "(type mine) (typeattributeset domains mine)");
    assert!(modules("m").contains("mine") && modules("m").contains("theirs"));
}
