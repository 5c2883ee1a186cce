//! Layers on top of each other: what the container engines make of rare but legal ones.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use composefs::{
    generic_tree::{Inode, LeafContent},
    tree::RegularFile,
};
use image_tools::{
    oci::Image,
    program,
    store::{Pulled, Store, Tree},
};
use tar::EntryType::{self, Directory, Fifo, Link, Regular, Symlink};
use xshell::cmd;

use crate::layout::{Layer, archive, entries, entry, image, index, link, shell, system};

type Entries = Vec<(tar::Header, Vec<u8>)>;

/// The small system with these layers above it, and the directory that its objects are in; or the error.
fn pull(above: impl IntoIterator<Item = Vec<u8>>) -> Result<(Pulled, Store, tempfile::TempDir), String> {
    let dir = tempfile::tempdir().unwrap();
    let base = archive(&entries(&system()));
    let all: Vec<_> = std::iter::once(base).chain(above).map(Layer::plain).collect();
    index(dir.path(), &[image(dir.path(), &all, "amd64")]);
    let reference = format!("oci:{}", dir.path().display()).parse().unwrap();
    let store = Store::create(&dir.path().join("store")).unwrap();
    let pulled = Image::resolve(reference, None, dir.path()).and_then(|image| store.pull(&image));
    pulled.map(|pulled| (pulled, store, dir)).map_err(|error| format!("{error:#}"))
}

/// What is below /t after these layers on the small system: path and content, `dir`, or what it is; or the error.
fn tree(layers: &[Entries]) -> Result<BTreeMap<String, String>, String> {
    let (pulled, ..) = pull(layers.iter().map(|layer| archive(layer)))?;
    let mut found = BTreeMap::new();
    let root = pulled.tree.as_dir();
    if let Some(Inode::Directory(dir)) = root.lookup("t".as_ref()) {
        walk(&pulled.tree, dir, &PathBuf::new(), &mut found);
    }
    Ok(found)
}

type Dir = composefs::tree::Directory<composefs::fsverity::Sha512HashValue>;

fn walk(tree: &Tree, dir: &Dir, at: &Path, found: &mut BTreeMap<String, String>) {
    for (name, inode) in dir.entries() {
        let path = at.join(name);
        let said = match inode {
            Inode::Directory(dir) => {
                walk(tree, dir, &path, found);
                format!("dir {:o}", dir.stat.st_mode)
            }
            Inode::Leaf(id, _) => match &tree.leaf(*id).content {
                LeafContent::Regular(RegularFile::Inline(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
                LeafContent::Regular(file) => format!("{} bytes", file.file_size()),
                LeafContent::Symlink(target) => format!("-> {}", target.display()),
                other => format!("{other:?}"),
            },
        };
        found.insert(path.to_string_lossy().into_owned(), said);
    }
}

fn file(path: &str, content: &str) -> (tar::Header, Vec<u8>) {
    entry(path, Regular, content.as_bytes())
}

fn dir(path: &str) -> (tar::Header, Vec<u8>) {
    entry(path, Directory, b"")
}

fn check(layers: &[Entries], wanted: &[(&str, &str)]) {
    let wanted = wanted.iter().map(|(path, said)| ((*path).to_owned(), (*said).to_owned())).collect();
    assert_eq!(tree(layers), Ok(wanted));
}

fn refused(layers: &[Entries], words: &[&str]) {
    let said = tree(layers).unwrap_err();
    assert!(words.iter().all(|word| said.contains(word)), "{words:?} are not in: {said}");
}

#[test]
fn names_are_relative_to_the_image_and_parents_come_into_being() {
    let layers = [
        vec![entry("/", Directory, b""), file("/t/absolute", "a"), file("./t/./dot", "b")],
        vec![entry("./", Directory, b""), file("t//new/deep/file", "c"), link("/t/new2/ln", Link, "/t/absolute")],
    ];
    let wanted = [
        ("absolute", "a"),
        ("dot", "b"),
        ("new", "dir 755"),
        ("new/deep", "dir 755"),
        ("new/deep/file", "c"),
        ("new2", "dir 755"),
        ("new2/ln", "a"),
    ];
    check(&layers, &wanted);
    refused(&[vec![file("/", "x")]], &["the root of the image is no directory"]);
    refused(&[vec![file("t/../../x", "x")]], &["t/../../x leads out of the image"]);
}

#[test]
fn whiteouts_hide_lower_layers_only_whatever_their_order() {
    let lower = vec![dir("t/c"), file("t/c/old", "1"), file("t/d/keep", "1"), file("t/d/go", "1"), file("t/e", "1")];
    for reversed in [false, true] {
        let mut upper = vec![
            file("t/c/new", "2"),
            file("t/c/.wh..wh..opq", ""),
            file("t/d/keep", "2"),
            file("t/d/.wh.keep", ""),
            file("t/d/.wh.go", ""),
            file("t/.wh.e", ""),
            file("t/e/below", "2"),
            file("t/nowhere/.wh.none", ""),
            file("t/.wh..wh.plnk", ""),
        ];
        if reversed {
            upper.reverse();
        }
        let wanted =
            [("c", "dir 755"), ("c/new", "2"), ("d", "dir 755"), ("d/keep", "2"), ("e", "dir 755"), ("e/below", "2")];
        check(&[lower.clone(), upper], &wanted);
    }
}

#[test]
fn a_path_through_a_link_is_followed_inside_the_image_and_one_below_a_file_replaces_it() {
    let lower = vec![
        dir("t/usr/lib"),
        link("t/lib", Symlink, "usr/lib"),
        link("t/run", Symlink, "/../../t/far/./away"),
        file("t/a", "a"),
    ];
    let upper = vec![file("t/lib/x", "x"), file("t/run/pid", "p"), file("t/a/b", "b")];
    let wanted = [
        ("a", "dir 755"),
        ("a/b", "b"),
        ("far", "dir 755"),
        ("far/away", "dir 755"),
        ("far/away/pid", "p"),
        ("lib", "-> usr/lib"),
        ("run", "-> /../../t/far/./away"),
        ("usr", "dir 755"),
        ("usr/lib", "dir 755"),
        ("usr/lib/x", "x"),
    ];
    check(&[lower, upper], &wanted);
    // A directory that takes the place of a link hides nothing behind the link.
    let below = vec![file("t/d/x", "x"), link("t/l", Symlink, "d")];
    let above = vec![dir("t/l"), file("t/l/.wh..wh..opq", ""), file("t/l/.wh.x", "")];
    check(&[below.clone(), above], &[("d", "dir 755"), ("d/x", "x"), ("l", "dir 755")]);
    check(&[below, vec![file("t/l/.wh.x", "")]], &[("d", "dir 755"), ("l", "-> d")]);
    // What a link leads to and away from again needs not be there.
    let around = vec![link("t/x", Symlink, "./no/../y"), file("t/x/z", "z")];
    check(&[around], &[("x", "-> ./no/../y"), ("y", "dir 755"), ("y/z", "z")]);
    let circle = vec![link("t/x", Symlink, "y"), link("t/y", Symlink, "x"), file("t/x/z", "")];
    refused(&[circle], &["t/x/z", "too many links"]);
}

#[test]
fn hard_links_find_what_is_there_already_and_what_comes_later() {
    let lower = vec![file("t/a", "1"), link("t/s", Symlink, "a"), file("t/gone", "g")];
    let upper = vec![
        link("t/early", Link, "t/late"),
        link("t/earlier", Link, "t/early"),
        file("t/late", "2"),
        link("t/b", Link, "t/a"),
        link("t/s2", Link, "t/s"),
        // A later entry of the same name wins.
        link("t/twice", Link, "t/last"),
        file("t/twice", "3"),
        file("t/last", "4"),
    ];
    let wanted = [
        ("a", "1"),
        ("b", "1"),
        ("earlier", "2"),
        ("early", "2"),
        ("gone", "g"),
        ("last", "4"),
        ("late", "2"),
        ("s", "-> a"),
        ("s2", "-> a"),
        ("twice", "3"),
    ];
    check(&[lower.clone(), upper], &wanted);
    let lost = vec![link("t/x", Link, "t/gone"), file("t/.wh.gone", "")];
    refused(&[lower, lost], &["t/x", "one more name of t/gone, which is not in the image", "the layer sha256:"]);
}

#[test]
fn one_of_three_names_is_replaced_and_the_others_keep_their_file() {
    let lower = vec![file("t/1", "x"), link("t/2", Link, "t/1"), link("t/3", Link, "t/2")];
    check(&[lower, vec![file("t/2", "y")]], &[("1", "x"), ("2", "y"), ("3", "x")]);
}

#[test]
fn a_directory_keeps_what_is_in_it_and_everything_else_replaces() {
    let lower = vec![file("t/d/x", "1"), file("t/f", "1"), link("t/l", Symlink, "d")];
    let upper = vec![entry("t/d", Directory, b""), dir("t/f"), dir("t/l"), entry("t/p", Fifo, b"")];
    let wanted = [("d", "dir 755"), ("d/x", "1"), ("f", "dir 755"), ("l", "dir 755"), ("p", "Fifo")];
    check(&[lower.clone(), upper], &wanted);
    check(&[lower, vec![file("t/d", "2")]], &[("d", "2"), ("f", "1"), ("l", "-> d")]);
}

#[test]
fn what_is_no_entry_of_an_image_is_refused_by_name() {
    refused(&[vec![entry("t/v", EntryType::new(b'V'), b"")]], &["t/v", "no image can hold"]);
    let whole = archive(&[file("t/x", &"x".repeat(5000))]);
    let dir = tempfile::tempdir().unwrap();
    for end in [600, 512 + 5000 - 1, 100] {
        let cut = Layer::plain(whole[..end].to_vec());
        index(dir.path(), &[image(dir.path(), &[Layer::plain(archive(&entries(&system()))), cut], "amd64")]);
        let output = crate::layout::run(&["digest", &format!("oci:{}", dir.path().display())]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(3) && said.contains("the archive ends in"), "{end}: {said}");
    }
}

#[test]
fn a_file_with_holes_is_whole_in_every_form_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let shell = shell(dir.path());
    std::fs::create_dir(dir.path().join("t")).unwrap();
    let file = std::fs::File::create(dir.path().join("t/holes")).unwrap();
    let mut wanted = vec![0; 70_000_000];
    // Many: a map is not read by recursion.
    for at in (0..8000).map(|number| number * 8192).chain([69_999_990]) {
        wanted[at..at + 10].copy_from_slice(b"0123456789");
        std::os::unix::fs::FileExt::write_all_at(&file, b"0123456789", at as u64).unwrap();
    }
    for form in [
        &["--format=gnu"][..],
        &["--format=posix"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=0.0"],
    ] {
        program::run(cmd!(shell, "tar --create --sparse --file layer.tar").args(form).arg("t")).unwrap();
        let layer = std::fs::read(dir.path().join("layer.tar")).unwrap();
        assert!(layer.len() < 40_000_000, "{form:?} has holes");
        let (pulled, store, _dir) = pull([layer]).unwrap();
        let found = store.read(&pulled.tree, Path::new("t/holes")).unwrap();
        assert!(found.as_deref() == Some(&wanted[..]), "{form:?}");
    }
    file.set_len(5 << 30).unwrap();
    program::run(cmd!(shell, "tar --create --sparse --format=gnu --file layer.tar t")).unwrap();
    let said = pull([std::fs::read(dir.path().join("layer.tar")).unwrap()]).map(drop).unwrap_err();
    assert!(said.contains("t/holes") && said.contains("with holes of 5368709120 bytes: remove it"), "{said}");
}

#[test]
fn attributes_and_times_are_the_images() {
    let mut tar = tar::Builder::new(vec![]);
    let acl = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 42, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4,
        0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];
    let fields: [(&str, &[u8]); 6] = [
        ("mtime", b"-1.25"),
        ("SCHILY.xattr.user.note", b"mine"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.system.posix_acl_access", &acl),
        ("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("SCHILY.xattr.security.selinux", b"leaked"),
    ];
    tar.append_pax_extensions(fields).unwrap();
    let (header, content) = file("t/x", "x");
    tar.append(&header, &content[..]).unwrap();
    tar.append_pax_extensions([("mtime", &b"1700000000.123456789123"[..])]).unwrap();
    let (header, content) = file("t/y", "y");
    tar.append(&header, &content[..]).unwrap();
    let (pulled, ..) = pull([tar.into_inner().unwrap()]).unwrap();
    let root = pulled.labelled.as_dir();
    let Some(Inode::Directory(dir)) = root.lookup("t".as_ref()) else { panic!("no directory") };
    let stat = |name: &str| &pulled.labelled.leaf(dir.leaf_id(name.as_ref()).unwrap()).stat;
    let names: Vec<_> = stat("x").xattrs.keys().map(|name| name.to_str().unwrap()).collect();
    assert_eq!(names, ["security.capability", "system.posix_acl_access", "user.note"]);
    assert_eq!((stat("x").st_mtim_sec, stat("x").st_mtim_nsec), (-2, 750_000_000));
    assert_eq!((stat("y").st_mtim_sec, stat("y").st_mtim_nsec), (1_700_000_000, 123_456_789));
}

#[test]
fn an_owner_that_is_no_number_is_refused() {
    for (key, value) in [("uid", "x"), ("gid", "4294967296"), ("size", "-1"), ("mtime", "yesterday")] {
        let mut tar = tar::Builder::new(vec![]);
        tar.append_pax_extensions([(key, value.as_bytes())]).unwrap();
        let (header, content) = file("t/x", "x");
        tar.append(&header, &content[..]).unwrap();
        let said = pull([tar.into_inner().unwrap()]).map(drop).unwrap_err();
        assert!(said.contains("t/x") && (said.contains("is no number") || said.contains("is no owner")), "{said}");
    }
}

#[test]
fn a_map_of_holes_that_makes_no_sense_is_refused() {
    for map in ["18446744073709551610,5", "18446744073709551612,3,0,2", "90,5", "0,6", "10,2,5,3"] {
        let mut tar = tar::Builder::new(vec![]);
        let fields = [("GNU.sparse.size", "92"), ("GNU.sparse.name", "t/x"), ("GNU.sparse.map", map)];
        tar.append_pax_extensions(fields.map(|(key, value)| (key, value.as_bytes()))).unwrap();
        let (header, content) = file("t/GNUSparseFile.0/x", "12345");
        tar.append(&header, &content[..]).unwrap();
        let said = pull([tar.into_inner().unwrap()]).map(drop).unwrap_err();
        assert!(said.contains("reading the entry t/x: its map of holes makes no sense"), "{map}: {said}");
    }
}
