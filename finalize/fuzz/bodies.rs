//! What each fuzz target does with its input. The tests run the same on the seeds and on random bytes, so that a body that
//! has gone stale is noticed.

use std::{collections::BTreeMap, io};

use finalize::{
    boot::{
        Loader,
        bls::Entry,
        grub,
        loader::{utf16, version},
        order::{Decision, Environment, Item, Settings, Variables},
        user_cfg::UserCfg,
    },
    cmdline,
    config::Config,
    etc::{
        accounts::{self, File, Owners, Sides, Table},
        plan::{SameBytes, Side, Trees, plan},
        policy::Policy,
        tree::{Kind, Node, RelPath},
    },
};

/// Account files: three sides, separated by a byte that is in no text. What parses survives being written, and a merge
/// of anything is written as something that parses.
pub fn accounts(input: &[u8]) {
    let mut sides = input.split(|byte| *byte == 0xff);
    let mut next = || sides.next().unwrap_or_default();
    let (pristine, current, new) = (next(), next(), next());
    let mut files = BTreeMap::new();
    for file in File::ALL {
        let table = |bytes| Table::parse(file, bytes);
        if let (Some(pristine), Some(current), Some(new)) = (table(pristine), table(current), table(new)) {
            for one in [&pristine, &current, &new] {
                assert_eq!(Table::parse(file, &one.bytes()).as_ref(), Some(one), "{file:?} does not survive");
            }
            files.insert(file, Sides { pristine, current, new });
        }
    }
    let merged = accounts::merge(&files, &BTreeMap::new(), &Owners::default());
    for (file, merged) in merged.tables {
        assert!(Table::parse(file, &merged.bytes()).is_some(), "the merged {file:?} does not parse");
    }
}

/// A menu that boots one deployment.
const NEXT_MENU: &[u8] = b"menuentry \"x\" {\n chainloader /EFI/Linux/bootc/bootc_composefs-\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.efi\n}\n";

/// Everything that is read from boot file systems, the kernel and the configuration.
pub fn boot(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(entry) = text.parse::<Entry>();
    let Ok(again) = entry.to_string().parse::<Entry>();
    assert_eq!(again.to_string(), entry.to_string(), "an entry does not survive");
    _ = grub::chainloaded(&text);
    let menu = UserCfg::from_bytes(input);
    assert_eq!(menu.to_bytes(), input, "a menu does not survive");
    let merged = menu.with_entries_of(&UserCfg::from_bytes(NEXT_MENU));
    assert!(!merged.deployments().is_empty());
    _ = merged.with_entries_of(&menu);
    _ = cmdline::words(&text).count();
    Config::default().apply("fuzz", &text, &mut vec![]);
}

/// A menu that every setting is tried on.
fn decide(loader: Loader, settings: &Settings) {
    let names = ["bootc_x-1-1.conf", "bootc_x-1-0.conf", "a+0-3.conf", "1.conf", "\u{e9}.conf"];
    let entry = |name: &&str| Item::of_entry(name, &Entry::new([("title", *name), ("linux", "/v"), ("sort-key", "k")]));
    let decision = Decision::of(loader, names.iter().map(entry).collect(), settings);
    assert_eq!(decision.order.len(), names.len(), "a setting hides an entry");
    let next = decision.next().unwrap();
    assert!(decision.order.contains(next));
    if let Some(pinned) = &decision.pinned {
        assert!(!pinned.to_string().is_empty() && !pinned.undo().is_empty());
    }
}

/// GRUB's environment block, and then, behind a byte that is in no text, its grub.cfg.
pub fn grubenv(input: &[u8]) {
    let (block, cfg) = input.split_at(input.iter().position(|byte| *byte == 0xff).unwrap_or(input.len()));
    let both = "load_env\nset default=\"${next_entry}\"\nset default=\"${saved_entry}\"\n";
    for grub_cfg in [String::from_utf8_lossy(cfg).into_owned(), both.to_owned()] {
        decide(Loader::Grub, &Settings { environment: Environment::parse(block), grub_cfg, ..Settings::default() });
    }
}

/// systemd-boot's loader.conf.
pub fn loader_conf(input: &[u8]) {
    let loader_conf = String::from_utf8_lossy(input).into_owned();
    let last_booted = Some("bootc_x-1-0.conf".to_owned());
    let variables = Variables { last_booted, ..Variables::default() };
    decide(Loader::SystemdBoot, &Settings { loader_conf, variables, ..Settings::default() });
}

/// An EFI variable, as each of those that are read.
pub fn variable(input: &[u8]) {
    _ = Loader::from_loader_info(input);
    let text = utf16(input);
    let version = text.as_deref().and_then(version);
    for at in 0..4 {
        let value = |n| text.clone().filter(|_| n == at);
        let variables = Variables { one_shot: value(0), default: value(1), last_booted: value(2), preferred: value(3) };
        let loader_conf = "default @saved".to_owned();
        decide(Loader::SystemdBoot, &Settings { version, variables, loader_conf, ..Settings::default() });
    }
}

/// Bytes of files by what a tree says their inode is.
struct Inodes(BTreeMap<(usize, RelPath), u64>);

impl SameBytes for Inodes {
    fn same_bytes(&mut self, one: Side, other: Side, path: &RelPath) -> io::Result<bool> {
        Ok(self.0.get(&(one as usize, path.clone())) == self.0.get(&(other as usize, path.clone())))
    }

    fn read(&mut self, side: Side, path: &RelPath) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.get(&(side as usize, path.clone())).map(|number| number.to_le_bytes().to_vec()))
    }
}

/// Three trees, three bytes a node: side and depth, names, kind. Whatever is in the plan has a directory above it.
pub fn plan_of(input: &[u8]) {
    let (mut trees, mut inodes) = (Trees::default(), Inodes(BTreeMap::new()));
    for bytes in input.as_chunks::<3>().0 {
        let side = usize::from(bytes[0] % 3);
        let names = (0..=bytes[0] / 3 % 3).map(|depth| char::from(b'a' + (bytes[1] >> (2 * depth)) % 4).to_string());
        let path = RelPath::from(names.collect::<Vec<_>>().join("/").as_str());
        let tree = match side {
            0 => &mut trees.pristine,
            1 => &mut trees.current,
            _ => &mut trees.new,
        };
        let is_dir = |path: &RelPath| tree.nodes.get(path).is_some_and(Node::is_dir);
        if tree.nodes.contains_key(&path) || path.parent().is_some_and(|parent| !is_dir(&parent)) {
            continue;
        }
        let number = u64::from(bytes[2] / 3);
        let kind = match bytes[2] % 3 {
            0 => Kind::Dir,
            1 => Kind::Link(vec![bytes[2]]),
            _ => Kind::File { size: 1, inode: (side as u64, inodes.0.len() as u64), shared: false },
        };
        inodes.0.insert((side, path.clone()), number);
        let (mode, uid, gid, mtime) = (0o755, 0, 0, (0, 0));
        tree.nodes.insert(path, Node { kind, mode, uid, gid, xattrs: BTreeMap::new(), label: None, mtime });
    }
    let plan = plan(&mut trees, &mut inodes, &Policy::default()).unwrap();
    for (path, _) in plan.steps.iter().filter(|(_, step)| step.node.is_some()) {
        let above = path.parent().is_none_or(|parent| plan.steps[&parent].node.as_ref().is_some_and(Node::is_dir));
        assert!(above, "{path} has no directory above it");
    }
    assert_eq!(plan.counts().conflicts, plan.conflicts().count() as u64);
}
