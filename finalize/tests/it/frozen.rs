//! Where GRUB reads XFS: at every changing call the image of the file system, read by GRUB's own code, which replays no
//! log, has all of the old entries or all of the new ones; and a program that is killed or stopped leaves no freeze.

use std::{collections::BTreeMap, path::PathBuf, process::Command, time::Duration};

use finalize::{boot::Loader, layout, staged::BootType};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use wait_timeout::ChildExt;
use xshell::cmd;

use crate::{
    machine::Machine,
    programs::{ok, output, shell},
};

/// A mount namespace for this thread, with XFS; nothing where that is not to be had.
fn can_mount_xfs() -> bool {
    let known = || std::fs::read_to_string("/proc/filesystems").unwrap().contains("\txfs\n");
    _ = known() || output(cmd!(shell("."), "modprobe xfs")).status.success();
    let mine = unshare(CloneFlags::CLONE_NEWNS);
    if !known() || mine.is_err() {
        println!("SKIPPED: {mine:?}, XFS: {}", known());
        return false;
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    true
}

/// An XFS file system in a file, which is a machine's physical root.
struct Xfs {
    image: PathBuf,
    root: PathBuf,
}

impl Xfs {
    /// What was the machine's root is on it, and in its place.
    fn root_of(machine: &Machine) -> Self {
        let xfs = Self { image: machine.path("xfs"), root: machine.path("sysroot") };
        std::fs::File::create(&xfs.image).unwrap().set_len(300 << 20).unwrap();
        let (image, root) = (&xfs.image, &xfs.root);
        ok(cmd!(shell("."), "mkfs.xfs -q -i nrext64=0 {image}"));
        let aside = machine.path("aside");
        std::fs::rename(&xfs.root, &aside).unwrap();
        std::fs::create_dir(&xfs.root).unwrap();
        ok(cmd!(shell("."), "mount -o loop {image} {root}"));
        ok(cmd!(shell(&aside), "cp -a . {root}"));
        for how in ["--freeze", "--unfreeze"] {
            ok(cmd!(shell("."), "fsfreeze {how} {root}"));
        }
        xfs
    }

    /// What GRUB boots from, by name: the menu, or the entries with the kernels that they are for.
    fn as_grub_sees_it(&self, boot_type: BootType) -> BTreeMap<String, String> {
        let grub = |what: &str, path: &str| {
            let (image, path) = (&self.image, format!("(loop0)/boot/{path}"));
            ok(cmd!(shell("."), "grub-fstest {image} {what} -- {path}"))
        };
        let mut seen = BTreeMap::new();
        let mut see = |path: String| seen.insert(path.clone(), grub("cat", &path));
        if boot_type == BootType::Uki {
            see(format!("{}/{}", layout::GRUB, layout::USER_CFG));
            return seen;
        }
        let dir = format!("{}/{}", layout::LOADER, layout::ENTRIES);
        for name in grub("ls", &format!("{dir}/")).split_whitespace() {
            see(format!("{dir}/{name}"));
        }
        seen
    }

    /// Whether it can be written to, now or soon.
    fn assert_is_writable(&self, when: &str) {
        let touched = self.root.join("touched");
        let mut touch = Command::from(cmd!(shell("."), "touch {touched}")).spawn().unwrap();
        let done = touch.wait_timeout(Duration::from_secs(30)).unwrap();
        if done.is_none() {
            let root = &self.root;
            ok(cmd!(shell("."), "fsfreeze --unfreeze {root}"));
        }
        assert!(done.is_some_and(|status| status.success()), "{when}: the file system is frozen");
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        umount2(&self.root, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Runs the program until it ends, or stops itself and is killed. Whether it came to its end.
fn run(machine: &Machine, xfs: &Xfs, fail: &str) -> bool {
    let mut child = machine.command(&["staged"]).env("COMPOSEFS_FINALIZE_FAIL", fail).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
    // One that is stopped could still thaw, but does not.
    xfs.assert_is_writable(fail);
    if status.stopped() {
        kill_process(pid, Signal::KILL).unwrap();
    }
    // One that came to its end has been waited for.
    _ = child.wait();
    status.exit_status() == Some(0)
}

fn check(how: &str) {
    if !can_mount_xfs() {
        return;
    }
    for boot_type in [BootType::Bls, BootType::Uki] {
        let (mut new, mut n) = (None, 1);
        loop {
            let machine = Machine::booting(Loader::Grub, boot_type);
            let xfs = Xfs::root_of(&machine);
            let old = xfs.as_grub_sees_it(boot_type);
            let done = run(&machine, &xfs, &format!("{how}:{n}"));
            let seen = xfs.as_grub_sees_it(boot_type);
            if seen != old {
                let (first, _) = new.get_or_insert((seen.clone(), n));
                assert_eq!((&seen, machine.etc("b")["hosts"].as_str()), (&*first, "mine"), "{boot_type} {how}:{n}");
            }
            machine.ok(&["staged"]);
            machine.assert_finalized();
            if done {
                assert_ne!(seen, old, "{boot_type}: GRUB does not see what is done");
                break;
            }
            n += 1;
            assert!(n < 300, "{boot_type}: it never comes to its end");
        }
        let since = new.unwrap().1;
        println!("{boot_type}: {how} at each of {n} calls; from {since} on GRUB sees the new entries");
    }
}

#[test]
fn what_grub_sees_of_xfs_is_old_or_new_at_every_call_and_a_run_that_exits_leaves_no_freeze() {
    check("exit");
}

#[test]
fn what_grub_sees_of_xfs_is_old_or_new_at_every_call_and_a_run_that_is_killed_leaves_no_freeze() {
    check("stop");
}
