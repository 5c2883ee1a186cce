//! Which accelerator runs a guest. KVM is asked by a guest, not by its device: a kernel that only emulates virtualization
//! makes a virtual processor, and stops it at the firmware's first instruction that it does not know.

use std::{
    fmt, fs,
    io::{Read, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Error, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{Vm, qemu, watch::Ending};
use crate::arch::Arch;

/// The device.
const KVM: &str = "/dev/kvm";

/// How long the firmware may take to its first words under KVM; where it works that is less than a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// What runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor itself.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Wanted {
    /// KVM where a guest runs under it, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// TCG.
    Tcg,
}

/// What was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// The accelerator.
    pub accelerator: Accel,
    /// Why not KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not_kvm: Option<String>,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.accelerator, &self.why_not_kvm) {
            (Accel::Kvm, _) => f.write_str("accelerator: KVM"),
            (Accel::Tcg, None) => f.write_str("accelerator: TCG, as asked for"),
            (Accel::Tcg, Some(why)) => write!(f, "accelerator: TCG, not KVM: {why}"),
        }
    }
}

/// What somebody wants, and where what a guest has answered is kept.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Which accelerator.
    pub wanted: Wanted,
    /// A directory that is gone when the host is off; the one for temporary files where there is none.
    pub answers: Option<PathBuf>,
}

/// The accelerator for a new machine.
///
/// # Errors
///
/// When KVM is wanted and no guest runs under it: says why.
pub fn choose(asked: &Asked, arch: &Arch) -> Result<Taken> {
    if asked.wanted == Wanted::Tcg {
        return Ok(Taken { accelerator: Accel::Tcg, why_not_kvm: None });
    }
    match (why_not_kvm(asked, arch), asked.wanted) {
        (None, _) => Ok(Taken { accelerator: Accel::Kvm, why_not_kvm: None }),
        (Some(why), Wanted::Kvm) => bail!("KVM does not work here: {why}: leave --accel out to go on with TCG"),
        (why, _) => Ok(Taken { accelerator: Accel::Tcg, why_not_kvm: why }),
    }
}

/// The accelerator for a machine that was saved under `saved`: the same, for a guest goes on under nothing else.
///
/// # Errors
///
/// When the other one is wanted, or the machine was saved under KVM and no guest runs under it any more: says why.
pub fn choose_again(saved: Accel, asked: &Asked, arch: &Arch) -> Result<Taken> {
    let wanted = asked.wanted;
    let refused = matches!((saved, wanted), (Accel::Kvm, Wanted::Tcg) | (Accel::Tcg, Wanted::Kvm));
    ensure!(!refused, "the machine was saved under {saved}, and goes on under nothing else: save another one");
    match (saved, wanted) {
        (Accel::Kvm, _) => match why_not_kvm(asked, arch) {
            Some(why) => bail!("the machine was saved under kvm, which does not work here: {why}: save another one"),
            None => Ok(Taken { accelerator: saved, why_not_kvm: None }),
        },
        (Accel::Tcg, Wanted::Tcg) => Ok(Taken { accelerator: saved, why_not_kvm: None }),
        (Accel::Tcg, _) => {
            Ok(Taken { accelerator: saved, why_not_kvm: Some("the machine was saved under tcg".into()) })
        }
    }
}

/// Why no guest runs under KVM; nothing where one does. A guest is asked once a boot of the host.
fn why_not_kvm(asked: &Asked, arch: &Arch) -> Option<String> {
    if !arch.is_host() {
        return Some(format!("the guest is for {arch}, and this machine is none"));
    }
    if let Some(why) = why_not(Path::new(KVM)) {
        return Some(why);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // Another device may lie over it, in a container for instance.
    let device = fs::metadata(KVM).map_or(0, |found| found.rdev());
    let file = asked.answers.clone().filter(|dir| dir.is_absolute()).unwrap_or_else(std::env::temp_dir);
    let file = file.join(format!("image-tools-kvm-{}", rustix::process::geteuid().as_raw()));
    let memory = Memory { file, boot: format!("{} {device:x}", boot.trim()) };
    if let Some(answer) = memory.read() {
        return answer;
    }
    let (answer, lasting) = ask_a_guest(arch);
    if lasting {
        memory.write(answer.as_deref());
    }
    answer
}

/// Why the device cannot be used, as far as it tells without a guest.
fn why_not(device: &Path) -> Option<String> {
    let name = device.display();
    match fs::metadata(device) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(format!("there is no {name}")),
        Err(error) => return Some(format!("looking at {name}: {error}")),
        Ok(found) if !found.file_type().is_char_device() => return Some(format!("{name} is no device")),
        Ok(_) => {}
    }
    let opened = fs::OpenOptions::new().read(true).write(true).open(device);
    opened.err().map(|error| format!("opening {name}: {error}"))
}

/// Starts the firmware under KVM, without a disk, and waits for its first words. Says why there are none, and whether that
/// was a guest's answer, which lasts: a QEMU that is not there, or ends at once because the device is busy, says nothing of
/// the next time, and asking it again costs little.
fn ask_a_guest(arch: &Arch) -> (Option<String>, bool) {
    let why = |error: Error| {
        let text = format!("{error:#}");
        Some(format!("a guest does not run under it: {}", text.lines().next().unwrap_or_default()))
    };
    let command = |scratch: &Path| qemu::firmware_under_kvm(arch, scratch);
    match Vm::firmware(command).map(|vm| vm.wait_for_any_word(Instant::now() + PATIENCE)) {
        Ok(Ok(())) => (None, true),
        Ok(Err((ending, error))) => (why(error), ending != Ending::Ended),
        Err(error) => (why(error), false),
    }
}

/// The answer of this boot of the host, in a file that nobody else can have written.
struct Memory {
    file: PathBuf,
    boot: String,
}

impl Memory {
    /// None where it is not known; the reason against KVM where there is one.
    fn read(&self) -> Option<Option<String>> {
        // Opening a pipe of somebody else would wait for its writer.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or(0);
        let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(&self.file).ok()?;
        let found = file.metadata().ok()?;
        if !found.is_file() || found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return None;
        }
        let mut text = String::new();
        file.take(4096).read_to_string(&mut text).ok()?;
        let (boot, answer) = text.split_once('\n')?;
        (boot == self.boot.trim()).then(|| Some(answer.trim().to_owned()).filter(|why| !why.is_empty()))
    }

    /// Best effort: it is asked again otherwise.
    fn write(&self, answer: Option<&str>) {
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        let Ok(mut part) = tempfile::NamedTempFile::new_in(dir) else { return };
        let text = format!("{}\n{}\n", self.boot.trim(), answer.unwrap_or_default());
        if part.write_all(text.as_bytes()).is_ok() {
            _ = part.persist(&self.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_no_device_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvm");
        assert!(why_not(&path).unwrap().contains("there is no"));
        fs::write(&path, "").unwrap();
        assert!(why_not(&path).unwrap().contains("is no device"));
        assert_eq!(why_not(Path::new("/dev/null")), None);
    }

    #[test]
    fn an_answer_is_kept_for_one_boot_and_only_if_nobody_else_can_have_written_it() {
        let dir = tempfile::tempdir().unwrap();
        let memory = |boot: &str| Memory { file: dir.path().join("kvm"), boot: boot.to_owned() };
        assert_eq!(memory("one").read(), None);
        memory("one").write(Some("it stops"));
        assert_eq!(memory("one").read(), Some(Some("it stops".to_owned())));
        assert_eq!(memory("two").read(), None);
        memory("two").write(None);
        assert_eq!(memory("two").read(), Some(None));
        fs::set_permissions(dir.path().join("kvm"), fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(memory("two").read(), None);
        fs::rename(dir.path().join("kvm"), dir.path().join("other")).unwrap();
        std::os::unix::fs::symlink("other", dir.path().join("kvm")).unwrap();
        assert_eq!(memory("two").read(), None);
        fs::remove_file(dir.path().join("kvm")).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("kvm"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(memory("two").read(), None);
    }
}
