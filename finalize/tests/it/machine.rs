//! A machine of directories: a physical root with a booted deployment `a` and a staged one `b`, an ESP, a /run. The
//! real program runs on it, with every ambient input replaced.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use finalize::{
    boot::{
        Loader,
        bls::id_of_uki,
        grub::{chainloaded, user_cfg},
    },
    digest::DeploymentId,
    layout,
    staged::BootType,
};
use xshell::cmd;

use crate::programs::{self, PROGRAM, shell};

pub fn id(letter: &str) -> DeploymentId {
    letter.repeat(128).parse().unwrap()
}

pub struct Machine {
    dir: tempfile::TempDir,
    pub loader: Loader,
    pub boot_type: BootType,
}

/// The four boot paths.
pub const PATHS: [(Loader, BootType); 4] = [
    (Loader::SystemdBoot, BootType::Bls),
    (Loader::SystemdBoot, BootType::Uki),
    (Loader::Grub, BootType::Bls),
    (Loader::Grub, BootType::Uki),
];

const RESCUE_MENU: &str = "menuentry \"rescue.conf\" {\n  linux '/rescue {'\n  chainloader /rescue.efi\n}\n";

impl Machine {
    /// `a` is booted and has local changes, `b` is staged and brings others.
    pub fn new(loader: Loader) -> Self {
        Self::booting(loader, BootType::Bls)
    }

    pub fn booting(loader: Loader, boot_type: BootType) -> Self {
        // In memory, where nothing waits for a disk: what is counted are the calls.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self::in_dir(dir.unwrap(), loader, boot_type)
    }

    /// The same on a disk, whose file system has calls of its own.
    pub fn on_disk(loader: Loader, boot_type: BootType) -> Self {
        Self::in_dir(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), loader, boot_type)
    }

    fn in_dir(dir: tempfile::TempDir, loader: Loader, boot_type: BootType) -> Self {
        let machine = Self { dir, loader, boot_type };
        let m = &machine;
        m.files("pristine", &[("hosts", "1"), ("motd", "1"), ("gone", "1"), ("dropped", "1"), ("d/x", "1")]);
        m.deployment("a", &[("hosts", "mine"), ("motd", "1"), ("dropped", "1"), ("d/x", "1"), ("new", "mine")]);
        m.deployment("b", &[("hosts", "1"), ("motd", "2"), ("gone", "1"), ("d/x", "1"), ("d/y", "theirs")]);
        m.files("run", &[]);
        m.stage("b");
        if (loader, boot_type) == (Loader::Grub, BootType::Uki) {
            let menu = |letters: &[&str]| {
                let ids: Vec<_> = letters.iter().map(|letter| id(letter)).collect();
                user_cfg(&ids.iter().map(|id| ("A system", id)).collect::<Vec<_>>())
            };
            let live = format!("{}{RESCUE_MENU}", menu(&["a"]));
            m.files("sysroot/boot/grub2", &[("user.cfg", &live), ("user.cfg.staged", &menu(&["b", "a"]))]);
            return machine;
        }
        m.entries("entries", &[("a", 0)]);
        m.files(&m.in_boot("loader/entries"), &[("rescue.conf", "title rescue\nlinux /rescue\n")]);
        if loader == Loader::Grub {
            m.files(&m.in_boot("loader/entries"), &[("grub.cfg", "menuentry old {}\n")]);
        }
        m.entries("entries.staged", &[("b", 0), ("a", 1)]);
        machine
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn in_boot(&self, path: &str) -> String {
        match self.loader {
            Loader::SystemdBoot | Loader::GrubCc => format!("esp/{path}"),
            Loader::Grub => format!("sysroot/boot/{path}"),
        }
    }

    pub fn boot(&self, path: &str) -> PathBuf {
        self.path(&self.in_boot(path))
    }

    pub fn files(&self, dir: &str, files: &[(&str, &str)]) {
        fs::create_dir_all(self.path(dir)).unwrap();
        for (name, content) in files {
            let path = self.path(dir).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    pub fn state(&self, letter: &str) -> PathBuf {
        self.path("sysroot").join(layout::deployment(&id(letter)))
    }

    pub fn deployment(&self, letter: &str, etc: &[(&str, &str)]) {
        let state = format!("sysroot/{}", layout::deployment(&id(letter)));
        self.files(&format!("{state}/etc"), etc);
        self.files(&state, &[(&layout::origin(&id(letter)), &format!("[boot]\nboot_type = {}\n", self.boot_type))]);
        if self.path("sysroot").join(layout::image(&id(letter))).symlink_metadata().is_err() {
            self.files("sysroot/composefs/images", &[(id(letter).as_str(), "an image")]);
        }
        match self.boot_type {
            BootType::Bls => self.files(&self.kernel_dir(letter), &[("vmlinuz", letter), ("initrd", letter)]),
            BootType::Uki => self.files("esp/EFI/Linux/bootc", &[(&layout::uki(&id(letter)), letter)]),
        }
    }

    /// What boots a deployment: a directory, or a UKI.
    pub fn kernel(&self, letter: &str) -> PathBuf {
        match self.boot_type {
            BootType::Bls => self.path(&self.kernel_dir(letter)),
            BootType::Uki => self.path("esp/EFI/Linux/bootc").join(layout::uki(&id(letter))),
        }
    }

    fn kernel_dir(&self, letter: &str) -> String {
        let dir = layout::kernel_dir(&id(letter));
        match self.loader {
            Loader::SystemdBoot | Loader::GrubCc => format!("esp/EFI/Linux/{dir}"),
            Loader::Grub => format!("sysroot/boot/{dir}"),
        }
    }

    /// Stages one more deployment while `b` is booted, as a staging tool does: state, image, kernel, entries, marker.
    pub fn restage(&self, letter: &str) {
        self.deployment(letter, &[("hosts", "1"), ("motd", "3")]);
        if (self.loader, self.boot_type) == (Loader::Grub, BootType::Uki) {
            let menu = user_cfg(&[("A system", &id(letter)), ("A system", &id("b"))]);
            self.files("sysroot/boot/grub2", &[("user.cfg.staged", &menu)]);
        } else {
            self.entries("entries.staged", &[(letter, 0), ("b", 1)]);
        }
        self.stage(letter);
    }

    pub fn stage(&self, letter: &str) {
        self.files("run", &[(layout::MARKER, &format!("{{\"depl_id\":\"{}\"}}", id(letter)))]);
    }

    /// Another boot, by the boot loader: what is in /run is gone.
    pub fn reboot(&self) {
        fs::remove_dir_all(self.path("run")).unwrap();
        fs::create_dir(self.path("run")).unwrap();
    }

    fn entries(&self, dir: &str, list: &[(&str, u8)]) {
        for (letter, place) in list {
            let kernel = self.kernel_dir(letter);
            let kernel = kernel.trim_start_matches("esp").trim_start_matches("sysroot");
            let what = match self.boot_type {
                BootType::Bls => {
                    format!("linux {kernel}/vmlinuz\ninitrd {kernel}/initrd\noptions composefs={} rw\n", id(letter))
                }
                BootType::Uki => format!("efi /EFI/Linux/bootc/{}\n", layout::uki(&id(letter))),
            };
            let text = format!("title {letter}\nversion 1\n{what}sort-key bootc-x-{place}\n");
            let name = format!("bootc_x-1-{}.conf", 1 - place);
            self.files(&self.in_boot(&format!("loader/{dir}")), &[(&name, &text)]);
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        self.command_after(&format!("composefs={} rw", id("a")), args)
    }

    /// The command on a machine that was booted with this command line.
    pub fn command_after(&self, cmdline: &str, args: &[&str]) -> Command {
        let (loader, etc) = (self.loader.to_string(), self.state("a").join("etc"));
        let [sysroot, run, pristine, esp, sys] =
            ["sysroot", "run", "pristine", "esp", "sys"].map(|name| self.path(name));
        // Also who is nobody may be in this directory.
        let command = cmd!(
            shell("/"),
            "{PROGRAM} {args...} --cmdline {cmdline} --loader {loader} --etc {etc}
             --sysroot {sysroot} --run {run} --pristine {pristine} --esp {esp} --sys {sys}"
        );
        command.into()
    }

    pub fn run(&self, args: &[&str]) -> Output {
        programs::output(self.command(args))
    }

    /// Runs, must succeed, returns what was printed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        programs::ok(self.command(args))
    }

    /// Runs, must fail with 1, returns the message.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
        message
    }

    /// Every file below `dir`: path, mode and content.
    pub fn tree(&self, dir: &Path) -> BTreeMap<String, (u32, String)> {
        let mut all = BTreeMap::new();
        collect(dir, dir, &mut all);
        all
    }

    pub fn etc(&self, letter: &str) -> BTreeMap<String, String> {
        let tree = self.tree(&self.state(letter).join("etc"));
        tree.into_iter().map(|(path, (_, content))| (path, content)).collect()
    }

    /// The deployments of the live entries, in the loader's order.
    pub fn live(&self) -> Vec<String> {
        if (self.loader, self.boot_type) == (Loader::Grub, BootType::Uki) {
            let menu = fs::read_to_string(self.path("sysroot/boot/grub2/user.cfg")).unwrap();
            let name = |(title, path): (String, String)| match id_of_uki(&path) {
                Some(id) => id.as_str()[..1].to_owned(),
                None => title,
            };
            return chainloaded(&menu).into_iter().map(name).collect();
        }
        let dir = cap_std::fs::Dir::open_ambient_dir(self.boot("loader"), cap_std::ambient_authority()).unwrap();
        let entries = finalize::boot::entries::Entries::read(&dir, layout::ENTRIES).unwrap().unwrap();
        let list = entries.ordered(self.loader);
        let list = list.into_iter().map(|(name, entry)| match entry.deployment() {
            Some(id) => id.as_str()[..1].to_owned(),
            None => name.to_owned(),
        });
        list.collect()
    }

    /// The new state, whole: the merged /etc, the entries, nothing left over but the original /etc.
    pub fn assert_finalized(&self) {
        let merged = [("d/x", "1"), ("d/y", "theirs"), ("hosts", "mine"), ("motd", "2"), ("new", "mine")];
        let merged: BTreeMap<_, _> = merged.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
        assert_eq!(self.etc("b"), merged);
        let ours: Vec<_> = self.live().into_iter().filter(|name| name.len() == 1).collect();
        assert_eq!(ours, ["b", "a"]);
        assert!(self.live().contains(&"rescue.conf".to_owned()));
        assert!(!self.boot("loader/entries.staged").exists());
        assert!(!self.path("sysroot/boot/grub2/user.cfg.staged").exists());
        if let Ok(menu) = fs::read_to_string(self.path("sysroot/boot/loader/entries/grub.cfg")) {
            let at = |letter: &str| menu.find(&format!("composefs={}", id(letter))).unwrap();
            assert!(at("b") < at("a") && menu.contains("menuentry rescue "), "{menu}");
        }
        assert!(!self.state("b").join("etc.merging").exists());
    }
}

fn collect(root: &Path, dir: &Path, all: &mut BTreeMap<String, (u32, String)>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, all);
        } else {
            let mode = path.metadata().unwrap().permissions().mode();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            all.insert(name, (mode, fs::read_to_string(&path).unwrap()));
        }
    }
}
