//! The laws of the merge: over every triple of small trees, and over large random ones. In memory, where the plan is pure;
//! and that the merge of real files is that plan.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{MetadataExt, PermissionsExt, symlink},
        },
    },
    path::Path,
};

use cap_std::{ambient_authority, fs::Dir};
use finalize::{
    etc::{
        Merge, Sources,
        merge::Take,
        plan::{Plan, SameBytes, Side, Trees, plan},
        policy::{Keep, Policy, Rule, glob},
        tree::{Kind, Node, RelPath, Tree},
    },
    stop::Stop,
};
use proptest::prelude::*;

/// A tree: nodes, and what files contain.
type Content = BTreeMap<String, (Node, u8)>;

struct Bytes<'a>([&'a Content; 3]);

impl Bytes<'_> {
    fn side(&self, side: Side) -> &Content {
        self.0[side as usize]
    }
}

impl SameBytes for Bytes<'_> {
    fn same_bytes(&mut self, one: Side, other: Side, path: &RelPath) -> io::Result<bool> {
        let content = |side| self.side(side)[&path.to_string()].1;
        Ok(content(one) == content(other))
    }

    fn read(&mut self, side: Side, path: &RelPath) -> io::Result<Option<Vec<u8>>> {
        Ok(self.side(side).get(&path.to_string()).map(|(_, content)| vec![*content]))
    }
}

fn node(kind: Kind, mode: u32) -> Node {
    Node { kind, mode, uid: 0, gid: 0, xattrs: BTreeMap::new(), label: None, mtime: (0, 0) }
}

fn file(content: u8, mode: u32) -> (Node, u8) {
    // No inode is shared between trees, so that bytes are what counts.
    (node(Kind::File { size: 1, inode: (0, 0), shared: false }, mode), content)
}

fn tree(content: &Content, device: u64) -> Tree {
    let nodes = content.iter().enumerate().map(|(number, (path, (node, _)))| {
        let mut node = node.clone();
        if let Kind::File { inode, .. } = &mut node.kind {
            *inode = (device, number as u64);
        }
        (RelPath::from(path.as_str()), node)
    });
    Tree { root: Some(node(Kind::Dir, 0o755)), nodes: nodes.collect(), skipped: vec![] }
}

fn merge(p: &Content, c: &Content, n: &Content) -> (Content, Plan) {
    merge_with(&Policy::default(), p, c, n)
}

fn merge_with(policy: &Policy, p: &Content, c: &Content, n: &Content) -> (Content, Plan) {
    let mut trees = Trees { pristine: tree(p, 1), current: tree(c, 2), new: tree(n, 3), ..Trees::default() };
    let plan = plan(&mut trees, &mut Bytes([p, c, n]), policy).unwrap();
    let mut merged = Content::new();
    for (path, step) in &plan.steps {
        if let Some(node) = &step.node {
            let path = path.to_string();
            let from = if step.take == Take::New { n } else { c };
            let content = if node.is_dir() { 0 } else { from[&path].1 };
            let mut node = node.clone();
            if let Kind::File { inode, .. } = &mut node.kind {
                *inode = (0, 0);
            }
            merged.insert(path, (node, content));
        }
    }
    (merged, plan)
}

fn check(p: &Content, c: &Content, n: &Content) {
    assert_eq!(merge(p, p, n).0, *n, "nothing local: the image's\np {p:?}\nn {n:?}");
    assert_eq!(merge(p, c, p).0, *c, "nothing new: the local\np {p:?}\nc {c:?}");
    assert_eq!(merge(p, c, c).0, *c, "alike: the same\np {p:?}\nc {c:?}");
    let (merged, plan) = merge(p, c, n);
    assert_eq!(merge(p, c, &merged).0, merged, "a second run changes nothing\np {p:?}\nc {c:?}\nn {n:?}");
    for path in merged.keys() {
        let parent =
            path.rsplit_once('/').is_none_or(|(above, _)| merged.get(above).is_some_and(|(node, _)| node.is_dir()));
        assert!(parent, "{path} has no directory\np {p:?}\nc {c:?}\nn {n:?}");
    }
    for (path, local) in c.iter().filter(|(path, local)| !local.0.is_dir() && p.get(*path) != Some(local)) {
        let aside = plan.aside.iter().any(|top| path == &top.to_string() || path.starts_with(&format!("{top}/")));
        assert!(merged.get(path) == Some(local) || aside, "the local {path} is lost\np {p:?}\nc {c:?}\nn {n:?}");
    }
    for path in p.keys().filter(|path| !c.contains_key(*path)) {
        // What was removed here stays removed, unless the image's node won a type conflict above it.
        let aside = plan.aside.iter().any(|top| path == &top.to_string() || path.starts_with(&format!("{top}/")));
        assert!(!merged.contains_key(path) || aside, "the removed {path} is back\np {p:?}\nc {c:?}\nn {n:?}");
    }
    for (path, new) in n.iter().filter(|(path, new)| !new.0.is_dir() && p.get(*path) != Some(new)) {
        // An update comes through wherever nobody touched the path, and every directory above it is one here still.
        let above = path.match_indices('/').map(|(end, _)| &path[..end]);
        let is_dir = |content: &Content, dir: &str| content.get(dir).is_some_and(|(node, _)| node.is_dir());
        let lost_above: Vec<_> = above.filter(|dir| !is_dir(&merged, dir)).collect();
        let is_touched = |dir: &&str| c.get(*dir) != p.get(*dir);
        let by_local = lost_above.iter().any(|dir| is_touched(dir) && !is_dir(c, dir));
        let untouched = c.get(path) == p.get(path) && !by_local;
        assert!(!untouched || merged.get(path) == Some(new), "the image's {path} is lost\np {p:?}\nc {c:?}\nn {n:?}");
    }
}

/// Nothing, files, links, directories with up to two children, other modes.
fn shapes() -> Vec<Content> {
    let one = |node: (Node, u8)| Content::from([("x".to_owned(), node)]);
    let link = |target: &str| (node(Kind::Link(target.into()), 0o777), 0);
    let mut all = vec![Content::new(), one(file(1, 0o644)), one(file(2, 0o644)), one(file(1, 0o600))];
    all.extend([one(link("a")), one(link("b"))]);
    for mode in [0o755, 0o700] {
        for a in 0..3 {
            for b in 0..3 {
                let mut dir = one((node(Kind::Dir, mode), 0));
                for (name, content) in [("x/a", a), ("x/b", b)] {
                    if content > 0 {
                        dir.insert(name.to_owned(), file(content, 0o644));
                    }
                }
                all.push(dir);
            }
        }
    }
    let mut deep = one((node(Kind::Dir, 0o755), 0));
    deep.insert("x/a".to_owned(), (node(Kind::Dir, 0o755), 0));
    all.push(deep.clone());
    deep.insert("x/a/b".to_owned(), file(1, 0o644));
    all.push(deep);
    all
}

#[test]
fn every_triple_of_small_trees_keeps_the_laws() {
    let shapes = shapes();
    for p in &shapes {
        for c in &shapes {
            for n in &shapes {
                check(p, c, n);
            }
        }
    }
    println!("{} triples of {} shapes keep the laws", shapes.len().pow(3), shapes.len());
    assert!(shapes.len() >= 26);
}

/// A tree of up to sixty nodes, three levels deep, over few names, so that triples have much in common.
fn any_tree() -> impl Strategy<Value = Content> {
    let path = proptest::collection::vec(0..4u8, 1..4);
    let leaf = (path, 0..4u8, any::<bool>());
    proptest::collection::vec(leaf, 0..60).prop_map(|leaves| {
        let mut content = Content::new();
        for (names, what, private) in leaves {
            let names: Vec<_> = names.iter().map(|n| char::from(b'a' + n).to_string()).collect();
            let mode = if private { 0o600 } else { 0o644 };
            let leaf = match what {
                0 => (node(Kind::Dir, 0o755), 0),
                1 => (node(Kind::Link(b"t".to_vec()), 0o777), 0),
                other => file(other, mode),
            };
            let parents: Vec<_> = (1..names.len()).map(|depth| names[..depth].join("/")).collect();
            let fits = parents.iter().all(|dir| content.get(dir).is_none_or(|(node, _)| node.is_dir()));
            if fits && !content.contains_key(&names.join("/")) {
                for dir in parents {
                    content.entry(dir).or_insert_with(|| (node(Kind::Dir, 0o755), 0));
                }
                content.insert(names.join("/"), leaf);
            }
        }
        content
    })
}

/// The same trees as files and directories.
fn on_disk(root: &Path, content: &Content) {
    fs::create_dir(root).unwrap();
    for (path, (node, bytes)) in content {
        let path = root.join(path);
        match &node.kind {
            Kind::Dir => fs::create_dir(&path).unwrap(),
            Kind::Link(target) => symlink(OsStr::from_bytes(target), &path).unwrap(),
            Kind::File { .. } => fs::write(&path, [*bytes]).unwrap(),
        }
        if !matches!(node.kind, Kind::Link(_)) {
            fs::set_permissions(&path, Permissions::from_mode(node.mode)).unwrap();
        }
    }
}

fn from_disk(root: &Path) -> Content {
    let mut content = Content::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let mode = entry.metadata().unwrap().mode() & 0o7777;
        let node = match entry.file_type() {
            kind if kind.is_dir() => (node(Kind::Dir, mode), 0),
            kind if kind.is_file() => file(fs::read(entry.path()).unwrap()[0], mode),
            _ => (node(Kind::Link(fs::read_link(entry.path()).unwrap().into_os_string().into_vec()), 0o777), 0),
        };
        content.insert(path, node);
    }
    content
}

/// What is planned from files, where most paths are never read whole, is what is planned from values.
fn check_on_disk(p: &Content, c: &Content, n: &Content, policy: &Policy) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("p", p), ("c", c), ("n", n)] {
        on_disk(&dir.path().join(name), content);
    }
    let open = |name: &str| Dir::open_ambient_dir(dir.path().join(name), ambient_authority()).unwrap();
    let (pristine, current, new) = (open("p"), open("c"), open("n"));
    let sources = Sources { pristine: Some(pristine.as_fd()), current: current.as_fd(), new: new.as_fd() };
    let real = Merge::plan(sources, policy).unwrap();
    real.write(&open("."), "m", "x", &Stop::never()).unwrap();
    let (mut wanted, plan) = merge_with(policy, p, c, n);
    for (from, to) in &plan.beside {
        let moved = |path: &str| path.strip_prefix(&from.to_string()).map(|below| format!("{to}{below}"));
        let is_there = |path: &&String| *path == &from.to_string() || path.starts_with(&format!("{from}/"));
        let carried = |path: &&String| is_there(path) && !policy.ignores(&RelPath::from(path.as_str()));
        for path in c.keys().filter(carried) {
            assert!(wanted.insert(moved(path).unwrap(), c[path].clone()).is_none(), "{path} is beside what is there");
        }
    }
    let merged = from_disk(&dir.path().join("m"));
    let names = |content: &Content| content.iter().map(|(p, (n, b))| (p.clone(), n.mode, *b)).collect::<Vec<_>>();
    assert_eq!(names(&merged), names(&wanted), "\np {p:?}\nc {c:?}\nn {n:?}");
    assert_eq!(real.plan.counts(), plan.counts(), "\np {p:?}\nc {c:?}\nn {n:?}");
    assert_eq!(real.plan.to_json(), plan.to_json(), "\np {p:?}\nc {c:?}\nn {n:?}");
    assert_eq!(from_disk(&dir.path().join("n")), *n);
    // No local file is lost, but where a rule for its very path gives it up.
    for (path, leaf) in c.iter().filter(|(path, leaf)| !leaf.0.is_dir() && p.get(*path) != Some(leaf)) {
        let path = RelPath::from(path.as_str());
        let is_there = |top: &RelPath| path == *top || path.is_below(top);
        let carried = merged.get(&path.to_string()) == Some(leaf);
        let kept = plan.aside.iter().any(is_there) || plan.beside.keys().any(is_there);
        let given_up = policy.ignores(&path) || matches!(policy.rule(&path), Some(Keep::Image));
        assert!(carried || kept || given_up, "{path} is lost\np {p:?}\nc {c:?}\nn {n:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_planned_from_files_is_what_is_planned_from_values(p in any_tree(), c in any_tree(), n in any_tree()) {
        check_on_disk(&p, &c, &n, &Policy::default());
        check_on_disk(&p, &p, &n, &Policy::default());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_keep_the_laws(p in any_tree(), c in any_tree(), n in any_tree()) {
        check(&p, &c, &n);
    }
}

/// Any rules over the names that [`any_tree`] uses.
fn any_policy() -> impl Strategy<Value = Policy> {
    let keep = prop::sample::select(vec![Keep::Image, Keep::Local, Keep::Both]);
    let path = prop::sample::select(vec!["**", "a", "a/**", "*/b", "b/*/c", "c*", "d/**"]);
    let rules = proptest::collection::vec((path, keep.clone()), 0..3);
    let ignore = proptest::option::of(prop::sample::select(vec!["b", "*/a", "c/**"]));
    (keep, rules, ignore).prop_map(|(type_clash, rules, ignore)| Policy {
        type_clash,
        rules: rules.into_iter().map(|(path, keep)| Rule::new(path, keep).unwrap()).collect(),
        ignore: ignore.into_iter().map(|path| glob(path).unwrap()).collect(),
        ..Policy::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_policy_gives_a_plan_that_can_be_carried_out(
        (p, c, n) in (any_tree(), any_tree(), any_tree()), policy in any_policy(),
    ) {
        check_on_disk(&p, &c, &n, &policy);
    }
}
