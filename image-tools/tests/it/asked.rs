//! What was typed: identifiers, times, where updates come from, and what can be meant by no one.

use std::{fs, path::Path};

use tar::EntryType;

use crate::{
    build::root,
    layout::{Layer, archive, build, entries, entry, image, index, link, ok, shell, system, write},
};

fn built(dir: &Path, name: &str, more: &[&str]) -> (Vec<u8>, serde_json::Value) {
    let disk = dir.join(name);
    let output = ok(build(&dir.join("layout"), None, &disk, more));
    (fs::read(disk).unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn the_same_seed_makes_the_same_bytes_and_without_one_no_two_disks_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("layout"), &system());
    let (one, said) = built(dir.path(), "one", &["--seed", "x", "--size", "600"]);
    assert_eq!(said["seed"], "x");
    let (two, _) = built(dir.path(), "two", &["--seed", "x", "--size", "600"]);
    assert!(one == two, "also a second later");
    let elsewhere = tempfile::tempdir().unwrap();
    write(&elsewhere.path().join("layout"), &system());
    let (three, _) = built(elsewhere.path(), "other", &["--seed", "x", "--size", "600"]);
    assert!(one == three, "also in another directory");
    let (_, said) = built(dir.path(), "three", &["--size", "600"]);
    let (_, other) = built(dir.path(), "four", &["--size", "600"]);
    assert!(said["seed"] != other["seed"] && said["root"] != other["root"]);
    let seed = said["seed"].as_str().unwrap();
    let (_, again) = built(dir.path(), "five", &["--size", "600", "--seed", seed]);
    assert_eq!(said["root"], again["root"], "what is printed makes it again");
}

#[test]
fn what_no_image_brings_is_as_old_as_the_newest_image_unless_told() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("layout"), &system());
    for (more, time) in [(&[][..], 1_700_000_000), (&["--time", "1234567890"], 1_234_567_890), (&["--time", "0"], 0)] {
        built(dir.path(), "disk", more);
        let (ext4, _) = root(dir.path(), &dir.path().join("disk"));
        assert_eq!(ext4.metadata("/state/deploy").unwrap().modified().seconds(), time);
    }
}

#[test]
fn an_image_without_a_kernel_of_its_own_has_a_digest() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = system();
    files.retain(|(path, _)| !path.contains("modules"));
    write(dir.path(), &files);
    let output = crate::layout::run(&["digest", &format!("oci:{}", dir.path().display())]);
    assert!(output.status.success() && output.stdout.len() == 129, "{output:?}");
}

#[test]
fn words_for_entries_are_refused_where_there_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        build(&dir.path().join("layout"), None, &dir.path().join("disk"), &["--boot-type", "uki", "--options", "x"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("which image-tools seal gives it"), "{said}");
}

#[test]
fn special_files_and_odd_names_are_carried_over() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let mut null = entry("etc/null", EntryType::Char, b"");
    null.0.set_device_major(1).unwrap();
    null.0.set_device_minor(3).unwrap();
    null.0.set_cksum();
    let mut odd = entry("etc/x", EntryType::Regular, b"odd");
    let name = &mut odd.0.as_gnu_mut().unwrap().name;
    name[..9].copy_from_slice(b"etc/\"\xff\n q");
    odd.0.set_cksum();
    let above = vec![entry("var/lib/pipe", EntryType::Fifo, b""), null, odd];
    let layers = [archive(&entries(&system())), archive(&above)].map(Layer::plain);
    fs::create_dir_all(&layout).unwrap();
    index(&layout, &[image(&layout, &layers, "amd64")]);
    let (_, _) = built(dir.path(), "disk", &[]);
    let (ext4, etc) = root(dir.path(), &dir.path().join("disk"));
    let kind = |path: &[u8]| ext4.symlink_metadata(ext4_view::Path::try_from(path).unwrap()).unwrap().file_type();
    assert!(kind(b"/state/os/default/var/lib/pipe").is_fifo());
    assert!(kind(format!("{etc}/null").as_bytes()).is_char_dev());
    assert!(kind(&[etc.as_bytes(), b"/\"\xff\n q"].concat()).is_regular_file());
}

/// debugfs cannot name these files; their inodes have numbers.
#[test]
fn attributes_of_files_with_odd_names_are_carried_over() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let mut tar = tar::Builder::new(vec![]);
    let odd = ["etc/\"quoted\"", "etc/with\nlines", "etc/d \"", "var/large"];
    for name in odd {
        let kind = if name == "etc/d \"" { EntryType::Directory } else { EntryType::Regular };
        let content = if name == "var/large" { vec![b'x'; 9000] } else { vec![] };
        let (header, content) = entry(name, kind, &content);
        let fields = [("SCHILY.xattr.user.one", name.as_bytes()), ("SCHILY.xattr.user.with space", b"2")];
        tar.append_pax_extensions(fields).unwrap();
        tar.append(&header, &content[..]).unwrap();
    }
    let layers = [Layer::plain(archive(&entries(&system()))), Layer::plain(tar.into_inner().unwrap())];
    fs::create_dir_all(&layout).unwrap();
    index(&layout, &[image(&layout, &layers, "amd64")]);
    built(dir.path(), "disk", &[]);
    let (ext4, etc) = root(dir.path(), &dir.path().join("disk"));
    let shell = image_tools::program::shell().unwrap();
    let part = dir.path().join("root.part");
    let ask = |question: &str| xshell::cmd!(shell, "debugfs -R {question} {part}").ignore_stderr().read().unwrap();
    for name in odd {
        let (dir, name) = name.split_once('/').unwrap();
        let dir = if dir == "etc" { etc.clone() } else { format!("/state/os/default/{dir}") };
        let meta = ext4.symlink_metadata(format!("{dir}/{name}").as_str()).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (if meta.is_dir() { 0 } else { 7 }, 0), "{name}");
        let listed = ask(&format!("ls -l {dir}"));
        let shown = name.replace('\n', "\\x0a");
        let line =
            listed.lines().find(|line| line.ends_with(&format!(" {shown}"))).unwrap_or_else(|| panic!("{listed}"));
        let inode = line.split_whitespace().next().unwrap();
        let attributes = ask(&format!("ea_list <{inode}>"));
        assert!(attributes.contains("user.with space (1) = \"2\""), "{name}: {attributes}");
        assert!(attributes.contains("user.one ("), "{name}: {attributes}");
    }
}

#[test]
fn a_machine_can_be_told_where_its_updates_come_from() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("layout"), &system());
    built(dir.path(), "disk", &["--target-imgref", "docker://registry.example/os:1"]);
    let (ext4, etc) = root(dir.path(), &dir.path().join("disk"));
    let deployment = etc.strip_suffix("/etc").unwrap();
    let id = deployment.rsplit('/').next().unwrap();
    let origin = ext4.read_to_string(format!("{deployment}/{id}.origin").as_str()).unwrap();
    let wanted = "container-image-reference = ostree-unverified-image:docker://registry.example/os:1\n";
    assert!(origin.contains(wanted), "{origin}");
}

#[test]
fn an_output_that_is_no_file_of_its_own_is_refused_before_anything_is_done() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("layout"), &system());
    for output in [Path::new("/dev/null"), dir.path()] {
        let output = build(&dir.path().join("layout"), None, output, &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains("no regular file"), "{said}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_an_image_links_to_is_found_in_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let moved = [("usr/lib/os-release", "opt/release"), ("usr/lib/modules/6.1/vmlinuz", "boot/vmlinuz")];
    let mut files = system();
    for (path, _) in &mut files {
        if let Some((_, to)) = moved.iter().find(|(from, _)| from == path) {
            (*to).clone_into(path);
        }
    }
    let links = [
        link("usr/lib/os-release", EntryType::Symlink, "../../../opt//./release"),
        link("usr/lib/modules/6.1/vmlinuz", EntryType::Symlink, "/usr/lib/kernel"),
        link("usr/lib/kernel", EntryType::Symlink, "../../boot/vmlinuz"),
    ];
    let mut all = entries(&files);
    all.extend(links);
    fs::create_dir_all(&layout).unwrap();
    index(&layout, &[image(&layout, &[Layer::plain(archive(&all))], "amd64")]);
    built(dir.path(), "disk", &[]);
}

/// The number behind `option` in what a refusal says.
fn proposed(said: &str, option: &str) -> u64 {
    let (_, rest) = said.split_once(&format!("choose {option} ")).unwrap_or_else(|| panic!("no size in: {said}"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

/// What is refused before anything is written, with exit code 3.
fn refused(dir: &Path, more: &[&str]) -> String {
    let output = build(&dir.join("layout"), None, &dir.join("refused"), more);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(3) && !dir.join("refused").exists(), "{said}");
    said
}

#[test]
fn a_size_that_is_refused_comes_with_one_that_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = system();
    files.extend((0..1500).map(|n| (format!("usr/share/x/{n}"), format!("{n:0100}").into_bytes())));
    write(&dir.path().join("layout"), &files);
    // A file for each 16 KiB of that would be less than 1,400 inodes.
    let said = ["514", "530"].map(|size| refused(dir.path(), &["--size", size]));
    assert!(said[0].contains("the disk of 514 MiB is too small"), "{}", said[0]);
    let enough = said.map(|said| proposed(&said, "--size"));
    assert!(enough[0] == enough[1] && (540..640).contains(&enough[0]), "{enough:?}");
    let output = build(&dir.path().join("layout"), None, &dir.path().join("disk"), &["--size", &enough[0].to_string()]);
    let said = String::from_utf8(output.stderr).unwrap();
    // That is said, and somebody's choice.
    assert!(output.status.success() && said.contains("no room for a third deployment"), "{said}");
}

#[test]
fn a_kernel_that_leaves_no_room_for_two_more_is_refused_with_a_size_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = system();
    files.push(("usr/lib/grub/x86_64-efi/monolithic/grubx64.efi".to_owned(), b"MZ".to_vec()));
    let kernel = files.iter_mut().find(|(path, _)| path.ends_with("vmlinuz")).unwrap();
    kernel.1 = vec![7; 20 << 20];
    write(&dir.path().join("layout"), &files);
    for (option, more) in [("--esp-size", &[][..]), ("--boot-size", &["--bootloader", "grub", "--boot-partition"])] {
        let said = refused(dir.path(), &[more, &["--size", "auto", option, "50"]].concat());
        let enough = proposed(&said, option);
        assert!((60..80).contains(&enough), "{said}");
        built(dir.path(), "disk", &[more, &["--size", "auto", option, &enough.to_string()]].concat());
    }
}

/// The directory of the output is full before the disk is complete: that is known before.
#[test]
fn a_host_without_room_is_refused_before_the_disk_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = system();
    let mut noise = vec![0; 12 << 20];
    fastrand::Rng::with_seed(1).fill(&mut noise);
    files.push(("usr/share/noise".to_owned(), noise));
    write(&dir.path().join("layout"), &files);
    let script =
        "set -e; mkdir small; mount -t tmpfs -o size=20m none small; cp -f /dev/null started; exec \"$0\" \"$@\"";
    let program = crate::layout::PROGRAM;
    let shell = shell(dir.path());
    let build = ["build", "--image", "oci:layout", "--output", "small/disk", "--format", "qcow2"];
    let output = xshell::cmd!(shell, "unshare --mount sh -c {script} {program} {build...}");
    let output = image_tools::program::output(output).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if !dir.path().join("started").exists() {
        println!("SKIPPED, no mount namespace: {said}");
        return;
    }
    assert!(output.status.code() == Some(3), "{said}");
    assert!(said.contains("small has ") && said.contains(" MiB more there until it is complete"), "{said}");
}

/// mcopy dies of names that FAT has not.
#[test]
fn a_name_that_no_file_system_has_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = system();
    files[0].1 = format!("ID=test\nVERSION_ID={}\n", "1".repeat(250)).into_bytes();
    write(&dir.path().join("layout"), &files);
    let said = refused(dir.path(), &[]);
    assert!(said.contains("has more than 255 bytes") && said.contains("VERSION_ID"), "{said}");
}

#[test]
fn kernel_arguments_of_an_image_are_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let kargs = |text: &str| {
        let mut files = system();
        files.push(("usr/lib/bootc/kargs.d/10-x.toml".to_owned(), text.as_bytes().to_vec()));
        files.push((
            "usr/lib/bootc/kargs.d/20-arm.toml".to_owned(),
            b"kargs = [\"arm\"]\nmatch-architectures = [\"aarch64\"]".to_vec(),
        ));
        files.push(("usr/lib/bootc/kargs.d/README".to_owned(), b"no toml".to_vec()));
        files
    };
    write(
        &dir.path().join("layout"),
        &kargs("kargs = [\"console=ttyS1\", \"a.b=1\"]\nmatch-architectures = [\"x86_64\"]"),
    );
    built(dir.path(), "disk", &["--options", "mine"]);
    let disk = format!("{}@@1M", dir.path().join("disk").display());
    let shell = image_tools::program::shell().unwrap();
    let entry = xshell::cmd!(shell, "mtype -i {disk} ::/loader/entries/*").read().unwrap();
    assert!(entry.contains(" rw console=ttyS1 a.b=1 mine console=ttyS0\n"), "{entry}");
    write(&dir.path().join("layout"), &kargs("kargs = \"one\""));
    let output = build(&dir.path().join("layout"), None, &dir.path().join("other"), &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(3) && said.contains("reading usr/lib/bootc/kargs.d/10-x.toml"), "{said}");
}

#[test]
fn a_grub_that_does_not_find_its_configuration_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = system();
    files.push(("usr/lib/grub/x86_64-efi/monolithic/grubx64.efi".to_owned(), b"MZ (,gpt1)/EFI/debian\0".to_vec()));
    write(&dir.path().join("layout"), &files);
    built(dir.path(), "disk", &["--bootloader", "grub"]);
    let disk = dir.path().join("disk");
    let check = || crate::build::inspect(&disk).0["wrong"].to_string();
    assert!(!check().contains("its prompt"), "{}", check());
    let (shell, image) = (image_tools::program::shell().unwrap(), format!("{}@@1M", disk.display()));
    xshell::cmd!(shell, "mdel -i {image} ::/EFI/debian/grub.cfg").run().unwrap();
    assert!(check().contains("GRUB looks for EFI/debian/grub.cfg, which is not there"), "{}", check());
}

/// What a service or a person without root gets from Debian, without /usr/sbin.
#[test]
fn an_ordinary_user_builds_a_disk() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let shell = image_tools::program::shell().unwrap();
    write(&dir.path().join("layout"), &system());
    let (program, out) = (dir.path().join("image-tools"), dir.path().join("out"));
    fs::copy(crate::layout::PROGRAM, &program).unwrap();
    fs::create_dir(&out).unwrap();
    for path in [dir.path(), &out] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let (image, disk) = (format!("oci:{}", dir.path().join("layout").display()), out.join("disk"));
    let build = ["build", "--size", "1024", "--image", &image, "--output", disk.to_str().unwrap()];
    let path = "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";
    let clean = xshell::cmd!(shell, "env --ignore-environment {path} {program}").args(build);
    let nobody = xshell::cmd!(shell, "setpriv --reuid 65534 --regid 65534 --clear-groups");
    let nobody = nobody.args(["env", "--ignore-environment", path]).arg(&program).args(build);
    let is_root = rustix::process::geteuid().is_root();
    image_tools::program::run(if is_root { nobody } else { clean }).unwrap();
    assert!(crate::build::inspect(&disk).1 == Some(0));
}
