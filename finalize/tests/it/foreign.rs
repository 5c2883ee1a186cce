//! What other people keep beside our boot entries survives an update byte for byte, whatever it is.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
};

use finalize::{boot::Loader, staged::BootType};

use crate::machine::{Machine, PATHS, id};

/// Type #1 entries, on both kinds of file system.
fn paths() -> impl Iterator<Item = (Loader, BootType)> {
    PATHS.into_iter().filter(|path| *path != (Loader::Grub, BootType::Uki))
}

#[test]
fn everything_in_the_live_directory_that_is_not_ours_survives() {
    for (loader, boot_type) in paths() {
        let machine = Machine::booting(loader, boot_type);
        let dir = machine.boot("loader/entries");
        let large = vec![b'#'; 2 << 20];
        let odd = OsStr::from_bytes(b"caf\xe9.conf");
        let files: [(&OsStr, &[u8]); 6] = [
            ("rescue-latin1.conf".as_ref(), b"title R\xe9scue\nlinux /rescue\n"),
            ("memtest.conf.disabled".as_ref(), b"title memtest\n"),
            (".keep".as_ref(), b""),
            ("large.conf".as_ref(), &large),
            ("notes.txt".as_ref(), b"mine\r\n"),
            (odd, b"title x\n"),
        ];
        for (name, content) in files {
            fs::write(dir.join(name), content).unwrap();
        }
        fs::set_permissions(dir.join("notes.txt"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink("../../rescue/entry", dir.join("link.conf")).unwrap();
        fs::create_dir_all(dir.join("more/deep")).unwrap();
        fs::write(dir.join("more/deep/file"), "deep").unwrap();
        machine.ok(&["staged"]);
        for (name, content) in files {
            assert!(fs::read(dir.join(name)).unwrap() == content, "{loader} {boot_type}: {name:?} has changed");
        }
        assert_eq!(fs::metadata(dir.join("notes.txt")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_link(dir.join("link.conf")).unwrap().to_str(), Some("../../rescue/entry"));
        assert_eq!(fs::read_to_string(dir.join("more/deep/file")).unwrap(), "deep");
        assert!(!machine.boot("loader/entries.staged").exists() && !machine.boot("loader/entries.trash").exists());
        let rescue: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(rescue.iter().filter(|name| name.to_string_lossy().starts_with("rescue.conf")).count(), 1);
        assert_eq!(machine.live().into_iter().filter(|name| name.len() == 1).collect::<String>(), "ba");
    }
}

/// Stopped at any call, they are all there: at the latest after the next run.
#[test]
fn what_is_not_ours_survives_a_stop_at_any_call() {
    for loader in [Loader::SystemdBoot, Loader::Grub] {
        for n in 1.. {
            let machine = Machine::new(loader);
            let dir = machine.boot("loader/entries");
            fs::write(dir.join("latin1.conf"), b"title \xe9\n").unwrap();
            fs::create_dir(dir.join("directory")).unwrap();
            fs::write(dir.join("directory/file"), "mine").unwrap();
            let fail = format!("exit:{n}");
            let output = machine.command(&["staged"]).env("COMPOSEFS_FINALIZE_FAIL", &fail).output().unwrap();
            assert_eq!(fs::read(dir.join("latin1.conf")).unwrap(), b"title \xe9\n", "{loader} {fail}");
            machine.ok(&["staged"]);
            assert_eq!(fs::read(dir.join("latin1.conf")).unwrap(), b"title \xe9\n", "{loader} {fail}");
            assert_eq!(fs::read_to_string(dir.join("directory/file")).unwrap(), "mine", "{loader} {fail}");
            if output.status.success() {
                assert!(n > 40);
                break;
            }
        }
    }
}

/// Somebody's entry has the name that a staged one shall get.
#[test]
fn an_entry_of_somebody_else_keeps_the_name_that_a_staged_one_wants() {
    for (loader, boot_type) in paths() {
        for taken in ["bootc_x-1-0.conf", "bootc_x-1-1.conf", "BOOTC_x-1-0.conf"] {
            let machine = Machine::booting(loader, boot_type);
            let dir = machine.boot("loader/entries");
            let live = fs::read(dir.join("bootc_x-1-1.conf")).unwrap();
            fs::rename(dir.join("bootc_x-1-1.conf"), dir.join("bootc_x-0-1.conf")).unwrap();
            let mine = "title mine\nversion 0\nlinux /mine\n";
            fs::write(dir.join(taken), mine).unwrap();
            machine.ok(&["staged"]);
            assert_eq!(fs::read_to_string(dir.join(taken)).unwrap(), mine, "{loader} {boot_type} {taken}");
            let ours: String = machine.live().into_iter().filter(|name| name.len() == 1).collect();
            assert_eq!(ours, "ba", "{loader} {boot_type} {taken}: {:?}", machine.live());
            assert!(fs::read_dir(&dir).unwrap().all(|entry| fs::read(entry.unwrap().path()).unwrap() != live));
        }
    }
}

#[test]
fn a_left_over_of_an_interrupted_write_goes() {
    let machine = Machine::new(Loader::SystemdBoot);
    let left = machine.boot("loader/entries/.composefs-finalize.new");
    fs::write(&left, "half an entry").unwrap();
    machine.ok(&["staged"]);
    assert!(!left.exists());
}

const PASSWORD: &str = "GRUB2_PASSWORD=grub.pbkdf2.sha512.10000.AA.BB\nset superusers=\"root\"\nexport superusers\n\
                        password_pbkdf2 root grub.pbkdf2.sha512.10000.AA.BB\nset timeout=5\n";

/// `grub2-setpassword` writes into user.cfg; whoever rewrites that file opens the shell of a locked machine.
#[test]
fn a_password_in_grubs_menu_survives_with_its_mode() {
    let machine = Machine::booting(Loader::Grub, BootType::Uki);
    let path = machine.path("sysroot/boot/grub2/user.cfg");
    let before = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{PASSWORD}{before}# caf\u{e9}\n")).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend(b"set colour=\xe9\xff\n");
    fs::write(&path, &bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    machine.ok(&["staged"]);
    let after = fs::read(&path).unwrap();
    assert!(after.starts_with(PASSWORD.as_bytes()), "{}", String::from_utf8_lossy(&after));
    assert!(after.ends_with(
        "# caf\u{e9}\nset colour=".as_bytes().iter().chain(b"\xe9\xff\n").copied().collect::<Vec<_>>().as_slice()
    ));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "a password that nobody may read is shown");
    let text = String::from_utf8_lossy(&after).into_owned();
    let at = |letter: &str| text.find(&format!("({})", id(letter))).unwrap();
    assert!(text.find("set superusers").unwrap() < at("b") && at("b") < at("a"), "{text}");
}

#[test]
fn keys_for_grub_reach_the_menu_that_is_generated() {
    let machine = Machine::new(Loader::Grub);
    let more = |name: &str, lines: &str| {
        let path = machine.boot("loader/entries.staged").join(name);
        let text = fs::read_to_string(&path).unwrap().replace(" rw\n", " rw $tuned_params\n");
        fs::write(&path, format!("{text}{lines}")).unwrap();
    };
    more("bootc_x-1-1.conf", "grub_arg --unrestricted\ngrub_class kernel\ninitrd /ucode $tuned_initrd\n");
    more("bootc_x-1-0.conf", "grub_users root\n");
    fs::write(machine.path("sysroot/ucode"), "microcode").unwrap();
    machine.ok(&["staged"]);
    let menu = fs::read_to_string(machine.boot("loader/entries/grub.cfg")).unwrap();
    let lines: Vec<_> = menu.lines().filter(|line| line.starts_with("menuentry ")).collect();
    assert!(lines[1].contains(" --class kernel --unrestricted "), "{menu}");
    assert!(lines[2].contains(" --users root "), "{menu}");
    assert!(menu.contains(" rw $tuned_params\n") && menu.contains(" /ucode $tuned_initrd\n"), "{menu}");
}

/// Microcode may stand before the initrd, another program's behind it: staging has hashed one of them.
#[test]
fn further_initrds_are_legal() {
    use sha2::{Digest, Sha256};
    for loader in [Loader::SystemdBoot, Loader::Grub] {
        for (first, second) in [("ucode", "initrd"), ("initrd", "ucode")] {
            let machine = Machine::new(loader);
            fs::write(machine.kernel("b").join("ucode"), "microcode").unwrap();
            let path = machine.boot("loader/entries.staged/bootc_x-1-1.conf");
            let text = fs::read_to_string(&path).unwrap();
            let line = text.lines().find(|line| line.starts_with("initrd ")).unwrap().to_owned();
            let named = |name: &str| line.replace("/initrd", &format!("/{name}"));
            fs::write(&path, text.replace(&line, &format!("{}\n{}", named(first), named(second)))).unwrap();
            let origin = machine.state("b").join(finalize::layout::origin(&id("b")));
            let digest = hex::encode(Sha256::digest("bb"));
            fs::write(&origin, format!("[boot]\nboot_type = bls\ndigest = {digest}\n")).unwrap();
            machine.ok(&["staged"]);
            machine.assert_finalized();
            let entry = fs::read_to_string(machine.boot("loader/entries/bootc_x-1-1.conf")).unwrap();
            let initrds: Vec<_> = entry.lines().filter(|line| line.starts_with("initrd ")).map(str::to_owned).collect();
            assert_eq!(initrds, [named(first), named(second)]);
        }
    }
}
