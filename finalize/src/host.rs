//! The machine as a finalization meets it. Every ambient input enters here, and each can be replaced by a flag; below
//! this file everything is relative to a directory capability.

pub mod devices;
pub(crate) mod menu;
pub(crate) mod pins;
pub(crate) mod place;
pub(crate) mod roots;

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};
use cap_std::{ambient_authority, fs::Dir};
use composefs::{
    fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue},
    repository::Repository,
};
use procfs::process::Process;
use rustix::fs::FsWord;

use crate::{
    boot::Loader,
    cmdline::{Format, Target, Verity},
    config::Config,
    digest::DeploymentId,
    layout,
    staged::Marker,
    sys,
};

/// The inputs as typed.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "The machine")]
pub struct Ambient {
    /// The physical root
    #[arg(long, default_value = "/sysroot", value_name = "DIR")]
    pub sysroot: PathBuf,
    /// The live /etc
    #[arg(long, default_value = "/etc", value_name = "DIR")]
    pub etc: PathBuf,
    /// Where the marker of a staged deployment is
    #[arg(long, default_value = "/run", value_name = "DIR")]
    pub run: PathBuf,
    /// The boot directory or the mounted boot partition, for GRUB [default: found]
    #[arg(long, value_name = "DIR")]
    pub boot: Option<PathBuf>,
    /// An ESP, mounted or as a block device; the one that booted last [default: found]
    #[arg(long, value_name = "PATH")]
    pub esp: Vec<PathBuf>,
    /// The kernel command line [default: what / is mounted from, then /proc/cmdline]
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// The boot loader, systemd-boot or grub [default: found]
    #[arg(long)]
    pub loader: Option<Loader>,
    /// The booted image's own /etc [default: from the repository]
    #[arg(long, value_name = "DIR")]
    pub pristine: Option<PathBuf>,
    /// The vendor's configuration
    #[arg(long, default_value = "/usr/lib/composefs-finalize", value_name = "DIR", hide = true)]
    pub vendor_config: PathBuf,
    /// The id of the running boot [default: from the kernel]
    #[arg(long, value_name = "TEXT", hide = true)]
    pub boot_id: Option<String>,
    /// The kernel's view of devices and firmware
    #[arg(long, default_value = "/sys", value_name = "DIR", hide = true)]
    pub sys: PathBuf,
}

/// What a run may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Look.
    Read,
    /// Change the physical root and the boot file systems.
    Write,
}

/// How the initramfs mounted /etc (`setup-root-conf.toml`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtcMount {
    /// The deployment's own directory. The contract.
    Bind,
    /// A tmpfs over the image's: local changes are meant to vanish.
    Transient,
    /// An overlay whose upper directory is in the deployment's state.
    Overlay,
}

/// What `/` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    /// The booted image itself, read-only, with /etc and others mounted over it.
    Image,
    /// Something else: an image under a tmpfs, or not looked at.
    Other,
}

/// A machine that booted a composefs deployment.
#[derive(Debug)]
pub struct Host {
    /// The physical root; with [`Access::Write`] a private, writable mount of it.
    pub sysroot: Dir,
    /// What is booted.
    pub booted: Target,
    /// The inputs.
    pub ambient: Ambient,
    /// What was asked for.
    pub access: Access,
    /// The id of the running boot (random(4), `boot_id`), where it is known.
    pub boot_id: Option<String>,
    /// Whether this is a finalization, most often at shutdown: then nothing starts units any more, those of mounts say.
    is_ending: bool,
    root: Root,
    /// The ESPs, once they have been looked for: a mount is dear.
    esps: OnceLock<Vec<Dir>>,
}

/// The booted image's own /etc, and the mount that it is in.
#[derive(Debug)]
pub struct Pristine {
    _mount: Option<Dir>,
    /// None when the image ships no /etc.
    pub etc: Option<Dir>,
}

impl Host {
    /// The machine behind `ambient`.
    ///
    /// # Errors
    ///
    /// When no composefs deployment is booted, or the physical root cannot be opened.
    pub fn open(ambient: &Ambient, access: Access) -> Result<Self> {
        let (booted, root) = booted(ambient)?;
        let sysroot = match access {
            Access::Read => open(&ambient.sysroot)?,
            Access::Write => writable(&ambient.sysroot)?,
        };
        let of_kernel = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let boot_id = ambient.boot_id.clone().or_else(of_kernel).map(|id| id.trim().to_owned());
        Ok(Self {
            sysroot,
            booted,
            ambient: ambient.clone(),
            access,
            boot_id,
            is_ending: false,
            root,
            esps: OnceLock::new(),
        })
    }

    /// The same machine, with what a finalization changes writable, privately.
    ///
    /// # Errors
    ///
    /// When the physical root cannot be made writable.
    pub fn into_writable(mut self) -> Result<Self> {
        self.sysroot = writable(&self.ambient.sysroot)?;
        self.access = Access::Write;
        self.is_ending = true;
        self.esps = OnceLock::new();
        Ok(self)
    }

    /// The marker of a staged deployment; nothing where there is none, or where the marker names the booted deployment: /run
    /// outlives a soft reboot, and that update is done.
    ///
    /// # Errors
    ///
    /// When the marker cannot be read or is malformed.
    pub fn marker(&self) -> Result<Option<Marker>> {
        let path = self.ambient.run.join(layout::MARKER);
        let named = || format!("reading the marker {}", path.display());
        let Some(text) = sys::file::read(&open(&self.ambient.run)?, layout::MARKER).with_context(named)? else {
            return Ok(None);
        };
        let advice = "stage the deployment again, or remove the marker";
        let marker: Marker = text.parse().with_context(|| format!("{}: {advice}", named()))?;
        Ok(Some(marker).filter(|marker| marker.depl_id != self.booted.id))
    }

    /// Whether the kernel command line has the word `key`, with or without a value.
    pub fn has_word(&self, key: &str) -> bool {
        let text = self.cmdline().unwrap_or_default();
        crate::cmdline::words(&text).any(|word| word.split('=').next() == Some(key))
    }

    /// The command line that the running kernel was started with.
    ///
    /// # Errors
    ///
    /// Those of reading `/proc/cmdline`.
    pub fn cmdline(&self) -> Result<String> {
        let of_kernel = || std::fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline");
        self.ambient.cmdline.clone().map_or_else(of_kernel, Ok)
    }

    /// Whether `/` is the image itself, with nothing over it.
    pub fn is_image(&self) -> bool {
        self.root == Root::Image
    }

    /// The live /etc, as a private mount without what is mounted below it.
    ///
    /// # Errors
    ///
    /// Those of open_tree(2).
    pub fn etc(&self) -> Result<Dir> {
        let path = &self.ambient.etc;
        or_plain(path, sys::mount::clone(path)).with_context(|| format!("opening {}", path.display()))
    }

    /// The configuration: the vendor's, then that in /etc. Mistakes in it are logged, and added to `notes`.
    pub fn config(&self, notes: &mut Vec<String>) -> Config {
        let local = self.ambient.etc.join("composefs-finalize");
        let (config, warnings) = Config::load(&[&self.ambient.vendor_config, &local]);
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        notes.extend(warnings);
        config
    }

    /// How /etc was mounted.
    ///
    /// # Errors
    ///
    /// Those of statfs(2).
    pub fn etc_mount(&self, etc: &Dir) -> Result<EtcMount> {
        const OVERLAY: FsWord = 0x794c_7630;
        const TMPFS: FsWord = 0x0102_1994;
        let kind = rustix::fs::fstatfs(etc).context("looking at the file system of /etc")?.f_type;
        let upper = format!("{}/{}/upper", layout::deployment(&self.booted.id), layout::ETC);
        Ok(match kind {
            OVERLAY if self.sysroot.is_dir(upper) => EtcMount::Overlay,
            OVERLAY => EtcMount::Transient,
            TMPFS if self.ambient.etc == Path::new("/etc") => EtcMount::Transient,
            _ => EtcMount::Bind,
        })
    }

    /// The booted image's own /etc, its files verified unless the command line allows otherwise: what is below the
    /// mount on /etc where `/` is the image, else the image mounted where nobody sees it.
    ///
    /// # Errors
    ///
    /// When the image is not in the repository, is not what its name says, or cannot be mounted.
    pub fn pristine(&self) -> Result<Pristine> {
        if let Some(path) = &self.ambient.pristine {
            return Ok(Pristine { _mount: None, etc: Some(open(path)?) });
        }
        let below = (self.root == Root::Image).then(|| sys::mount::clone(Path::new("/")));
        if let Some(Ok(root)) = below {
            return Pristine::of(dir(root));
        }
        Pristine::of(dir(self.image(&self.booted).context("mounting the booted image")?))
    }

    /// The image of a deployment as a mount that nobody sees, its files verified unless `target` allows otherwise.
    ///
    /// # Errors
    ///
    /// When the image is not in the repository, is not what its name says, or cannot be mounted.
    pub fn image(&self, target: &Target) -> Result<OwnedFd> {
        let mounted = match target.id.as_str().len() {
            64 => mount_image::<Sha256HashValue>(&self.sysroot, target),
            _ => mount_image::<Sha512HashValue>(&self.sysroot, target),
        };
        mounted.with_context(|| format!("mounting {}", layout::image(&target.id)))
    }
}

impl Pristine {
    fn of(image: Dir) -> Result<Self> {
        let etc = match image.open_dir("etc") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.context("opening etc in the booted image")?),
        };
        Ok(Self { _mount: Some(image), etc })
    }
}

fn mount_image<H: FsVerityHashValue>(sysroot: &Dir, target: &Target) -> Result<OwnedFd> {
    let mut repository = Repository::<H>::open_path(sysroot, layout::REPOSITORY)?;
    match target.verity {
        Verity::Required => repository.require_verity()?,
        Verity::Optional => _ = repository.set_insecure(),
    }
    repository.mount(target.id.as_str())
}

/// The name of the booted deployment.
///
/// # Errors
///
/// When no composefs deployment is booted.
pub fn booted_id(ambient: &Ambient) -> Result<DeploymentId> {
    booted(ambient).map(|(target, _)| target.id)
}

/// The booted deployment. What `/` is mounted from is the truth: after a soft reboot the command line is an old one.
fn booted(ambient: &Ambient) -> Result<(Target, Root)> {
    let none = "this system is not booted from a composefs deployment";
    if let Some(text) = &ambient.cmdline {
        let target = Target::find(text)
            .with_context(|| format!("{none}: no composefs= in the command line \"{}\"", text.trim().escape_debug()))?;
        return Ok((target, Root::Other));
    }
    let text = std::fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
    let named = Target::find(&text);
    let mounts = Process::myself().and_then(|me| me.mountinfo()).context("reading /proc/self/mountinfo")?;
    let root = mounts.into_iter().rfind(|mount| mount.mount_point == Path::new("/"));
    let target = |id, named: Option<Target>| match named {
        Some(named) => Target { id, ..named },
        None => Target { id, verity: Verity::Required, format: Format::V2 },
    };
    let source = root.as_ref().and_then(|root| root.mount_source.as_deref()).unwrap_or_default();
    let id_after = |prefix: &str| source.strip_prefix(prefix).and_then(|id| id.parse().ok());
    if let Some(id) = id_after("composefs:") {
        return Ok((target(id, named), Root::Image));
    }
    if let Some(id) = id_after("transient:composefs=") {
        return Ok((target(id, named), Root::Other));
    }
    match named {
        Some(named) if root.as_ref().is_some_and(|root| root.fs_type == "overlay") => Ok((named, Root::Other)),
        Some(_) => bail!("{none}: the kernel command line names one, but / is mounted from {source}"),
        None => bail!("{none}: neither the mount of / nor the kernel command line names one"),
    }
}

/// A directory as everybody sees it.
///
/// # Errors
///
/// Names the path.
pub fn open(path: &Path) -> Result<Dir> {
    Dir::open_ambient_dir(path, ambient_authority()).with_context(|| format!("opening {}", path.display()))
}

/// A private, writable mount of the directory `path`.
///
/// # Errors
///
/// Names the path.
pub fn writable(path: &Path) -> Result<Dir> {
    let named = || format!("mounting a private writable copy of {}", path.display());
    or_plain(path, sys::mount::clone_writable(path)).with_context(named)
}

/// A descriptor of a directory or of a detached mount, as a capability.
pub fn dir(fd: OwnedFd) -> Dir {
    Dir::from_std_file(File::from(fd))
}

/// The directory itself where private mounts are not to be had (no privilege, or a kernel without them).
fn or_plain(path: &Path, mounted: io::Result<OwnedFd>) -> io::Result<Dir> {
    match mounted {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EINVAL | libc::ENOSYS)) => {
            Dir::open_ambient_dir(path, ambient_authority())
        }
        other => other.map(dir),
    }
}
