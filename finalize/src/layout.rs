//! Every name that the system reads or writes on a machine, in one place.
//!
//! The names are a contract with bootc's composefs backend; those marked *ours* are additions that it ignores. All are
//! relative: to the physical root (mounted at `/sysroot`), to the ESP, or to `/run`.

use crate::digest::DeploymentId;

/// The composefs repository, below the physical root.
pub const REPOSITORY: &str = "composefs";
/// The repository's description; it must have fs-verity where the repository is sealed.
pub const REPOSITORY_META: &str = "composefs/meta.json";
/// The links to the EROFS images, below the physical root.
pub const IMAGES: &str = "composefs/images";
/// One directory per deployment, below the physical root.
pub const DEPLOYMENTS: &str = "state/deploy";
/// The `/var` that all deployments share, below the physical root.
pub const SHARED_VAR: &str = "state/os/default/var";
/// What `state/deploy/<D>/var` links to.
pub const VAR_LINK: &str = "../../os/default/var";
/// *Ours*: the directory of the files below.
pub const FINALIZE_STATE: &str = "state/finalize";
/// *Ours*: the staged deployment; outlives a crash, unlike [`MARKER`].
pub const STAGED: &str = "state/finalize/staged.json";
/// *Ours*: the record of the last finalization, root's.
pub const RECORD: &str = "state/finalize/record.json";
/// *Ours*: the same without the names of files, for everybody.
pub const SUMMARY: &str = "state/finalize/summary.json";
/// *Ours*: the deployments that a person keeps, with the entries that boot them.
pub const PINS: &str = "state/finalize/pins.json";
/// *Ours*: the deployment that a rollback makes first, from before its first change of the entries until its end.
pub const ROLLBACK: &str = "state/finalize/rollback.json";
/// *Ours*: a state directory that is being removed, below [`FINALIZE_STATE`]; always safe to delete.
pub const STATE_TRASH: &str = "state/finalize/trash";
/// *Ours*: a kernel directory that is being removed, beside where it was; always safe to delete.
pub const KERNEL_TRASH: &str = "composefs-finalize.trash";
/// *Ours*: the deployment whose boots the boot loader counts.
pub const COUNTED: &str = "state/finalize/counted.json";
/// *Ours*: deployments that the boot loader has given up, for everybody.
pub const FAILED: &str = "state/finalize/failed.json";
/// *Ours*: held while a finalization runs.
pub const LOCK: &str = "state/finalize/lock";

/// A deployment's writable /etc, below its state directory.
pub const ETC: &str = "etc";
/// *Ours*: the new deployment's /etc before the merge; its presence says that the merged one is in place.
pub const ETC_ORIG: &str = "etc.orig";
/// *Ours*: a merge under way; always safe to delete.
pub const ETC_MERGING: &str = "etc.merging";
/// *Ours*: local files that the merge could not keep in place.
pub const ETC_CONFLICTS: &str = "etc.conflicts";
/// *Ours*: those of a merge under way; always safe to delete.
pub const ETC_CONFLICTS_MERGING: &str = "etc.conflicts.merging";
/// *Ours*: rubbish; always safe to delete.
pub const ETC_TRASH: &str = "etc.trash";
/// *Ours*: what the names of earlier /etc of a deployment that was finalized again begin with.
pub const ETC_PREVIOUS: &str = "etc.previous";
/// *Ours*: [`ETC_ORIG`] of a deployment that has booted, where the configuration keeps it.
pub const ETC_BACKUP: &str = "etc.backup";
/// *Ours*: which directory is the merged /etc, and in which boot it got its name.
pub const ETC_PLACED: &str = "etc.placed";

/// The marker's directory, below `/run`.
pub const MARKER_DIR: &str = "composefs";
/// The marker of a staged deployment, below `/run`.
pub const MARKER: &str = "composefs/staged-deployment";
/// The deployment that a soft reboot was asked for, as a word of a command line, below /run.
pub const SOFT_REBOOT: &str = "composefs/soft-reboot";
/// *Ours*: the staged deployment that a finalization of this boot has met, below `/run`.
pub const MET: &str = "composefs/met-deployment";
/// *Ours*: this boot is counted, and was not found good yet; below `/run`.
pub const TRIAL: &str = "composefs/trial";
/// *Ours*: what was done ahead for the finalization of the staged deployment, below `/run`; root's, and this program's own.
pub const PREPARED: &str = "composefs/prepared";
/// *Ours*: what will become of the staged update, for everybody, below `/run`.
pub const OUTLOOK: &str = "composefs/outlook.json";
/// *Ours*: what a person who logs in should know of the staged update, below `/run` (pam_motd(8)).
pub const MOTD: &str = "motd.d/composefs-finalize";

/// The directory of both entry directories, below the file system that holds the entries.
pub const LOADER: &str = "loader";
/// The live entries, below [`LOADER`].
pub const ENTRIES: &str = "entries";
/// The entries of the next boot, below [`LOADER`].
pub const ENTRIES_STAGED: &str = "entries.staged";
/// *Ours*: old entries that are being removed, below [`LOADER`]; always safe to delete.
pub const ENTRIES_TRASH: &str = "entries.trash";
/// The directory of GRUB's files, below the boot directory.
pub const GRUB: &str = "grub2";
/// GRUB's live menu entries for UKIs, below [`GRUB`].
pub const USER_CFG: &str = "user.cfg";
/// Those of the next boot, below [`GRUB`].
pub const USER_CFG_STAGED: &str = "user.cfg.staged";
/// The directory of kernels and UKIs on the ESP.
pub const EFI_LINUX: &str = "EFI/Linux";
/// The directory of our UKIs on the ESP.
pub const EFI_LINUX_BOOTC: &str = "EFI/Linux/bootc";
/// What the name of every kernel directory and UKI of ours begins with.
pub const BOOT_PREFIX: &str = "bootc_composefs-";

/// The deployment's state directory, below the physical root.
pub fn deployment(id: &DeploymentId) -> String {
    format!("{DEPLOYMENTS}/{id}")
}

/// The deployment's origin file, below its state directory.
pub fn origin(id: &DeploymentId) -> String {
    format!("{id}.origin")
}

/// The deployment's EROFS image, below the physical root.
pub fn image(id: &DeploymentId) -> String {
    format!("{IMAGES}/{id}")
}

/// The name of the directory with the deployment's kernel and initrd.
pub fn kernel_dir(id: &DeploymentId) -> String {
    format!("{BOOT_PREFIX}{id}")
}

/// The name of the deployment's UKI.
pub fn uki(id: &DeploymentId) -> String {
    format!("{BOOT_PREFIX}{id}.efi")
}

/// The last component of a path of this module.
pub fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}
