//! What the deployments of a machine are on its disk, as nodes. Whoever writes them, into a disk image or into a running
//! system, adds nothing.

pub mod entries;
pub mod grub;
pub mod repository;
pub mod state;
pub mod systemd_boot;
pub mod update;

use std::path::{Path, PathBuf};

use anyhow::Result;
use finalize::{boot::Loader, layout};
use uuid::Uuid;

use crate::{
    node::{Content, Meta, Node},
    store::Store,
    system::{System, Way},
};

/// How the machine boots, and what its files say of it.
#[derive(Debug, Clone)]
pub struct Choice {
    /// How it boots.
    pub way: Way,
    /// Where GRUB's files are.
    pub boot: Boot,
    /// Whether files must be verified.
    pub sealing: Sealing,
    /// More words for the kernel command line.
    pub options: Vec<String>,
    /// What the machine takes its updates from, `docker://…` say; a name of the machine's own unless told.
    pub target: Option<String>,
    /// What systemd-boot enrols for Secure Boot.
    pub enrol: Option<Enrol>,
}

/// The keys that systemd-boot gives to a firmware that has none (systemd-boot(7)).
#[derive(Debug, Clone)]
pub struct Enrol {
    /// The directory that they are from.
    pub dir: PathBuf,
    /// Their files: name and content.
    pub keys: Vec<(String, Vec<u8>)>,
    /// When; the loader's own default unless told.
    pub when: Option<When>,
}

/// `secure-boot-enroll` in loader.conf(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum When {
    /// Never.
    Off,
    /// When it is chosen in the menu.
    Manual,
    /// In a virtual machine by itself, elsewhere when it is chosen.
    IfSafe,
    /// By itself, on every machine: where firmware of devices is signed by nobody who is enrolled, the machine is dead.
    Force,
}

/// Where boot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// A directory of the root file system.
    Directory,
    /// A partition of its own.
    Partition,
}

/// Whether the kernel verifies what it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// Every object has fs-verity, and the command line requires it.
    Sealed,
    /// No fs-verity.
    Unsealed,
}

/// The identifiers of the file systems, by which they find each other.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    /// The root file system's.
    pub root: Uuid,
    /// That of a boot partition.
    pub boot: Uuid,
    /// The serial number of the ESP.
    pub esp: u32,
}

/// The deployments of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Deployments<'a> {
    /// Where their files are.
    pub store: &'a Store,
    /// The one that is booted.
    pub booted: &'a System,
    /// The one that is staged.
    pub staged: Option<&'a System>,
    /// How they boot.
    pub choice: &'a Choice,
    /// What the file systems are called.
    pub ids: Ids,
    /// The modification time of files that no image brings, seconds since 1970.
    pub time: u64,
}

/// What each file system holds.
#[derive(Debug)]
pub struct FileSystems {
    /// The ESP.
    pub esp: Vec<Node>,
    /// The boot partition, where there is one.
    pub boot: Option<Vec<Node>>,
    /// The physical root.
    pub root: Vec<Node>,
}

impl Deployments<'_> {
    /// All that they are.
    ///
    /// # Errors
    ///
    /// When an image lacks what its boot loader needs, or ships what cannot be carried over.
    pub fn describe(&self) -> Result<FileSystems> {
        let mut root = self.root()?;
        if self.choice.way.loader == Loader::SystemdBoot {
            return Ok(FileSystems { esp: systemd_boot::esp(self)?, boot: None, root });
        }
        let made = grub::files(self)?;
        if self.choice.boot == Boot::Partition {
            return Ok(FileSystems { esp: made.esp, boot: Some(made.boot), root });
        }
        root.extend(made.boot.into_iter().map(|node| Node { path: Path::new("boot").join(&node.path), ..node }));
        Ok(FileSystems { esp: made.esp, boot: None, root })
    }

    /// The booted one, and the staged one.
    fn each(&self) -> impl Iterator<Item = &System> {
        [Some(self.booted), self.staged].into_iter().flatten()
    }

    fn root(&self) -> Result<Vec<Node>> {
        let mtime = self.time;
        let mut nodes = repository::nodes(self)?;
        let dirs = ["boot", "ostree", "state", layout::DEPLOYMENTS, "state/os", "state/os/default"];
        nodes.extend(dirs.map(|path| Node::dir(path, mtime)));
        nodes.push(Node::new("ostree/bootc", Meta::root(0o777, mtime), Content::Link("../composefs/bootc".into())));
        nodes.extend(state::var(self.store, self.booted)?);
        for system in self.each() {
            nodes.extend(state::of(self, system)?);
        }
        nodes.extend(self.staged.into_iter().flat_map(|staged| state::staged(staged, mtime)));
        Ok(nodes)
    }
}
