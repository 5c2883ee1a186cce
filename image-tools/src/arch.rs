//! The kinds of machines that disks are made for, and everything that differs between them. Nothing else here knows an
//! architecture by name.

use std::fmt;

use gpt::partition_types::{LINUX_ROOT_ARM_64, LINUX_ROOT_X64, Type};

/// Those that are supported.
pub static TABLE: [Arch; 2] = [
    Arch {
        go: "amd64",
        linux: "x86_64",
        efi: "x64",
        root: LINUX_ROOT_X64,
        grub: "x86_64-efi",
        console: "ttyS0",
        qemu: Qemu {
            program: "qemu-system-x86_64",
            package: "qemu-system-x86",
            // Without the controllers that nothing is attached to: the guest would load drivers and look.
            machine: "q35,sata=off,i8042=off,smbus=off",
            // Left out is what QEMU's translator is slow at and software takes when it is there: wide vectors, string
            // instructions that it runs byte by byte (the kernel and the C library copy and clear memory by them), and page
            // walks of five levels; and virtualization, for which the guest would load a driver.
            processor: "max,la57=off,avx=off,avx2=off,erms=off,fsrm=off,fzrm=off,fsrs=off,pku=off,svm=off",
            panic: "pvpanic",
            firmware: "/usr/share/OVMF/OVMF_CODE_4M.fd",
            variables: "/usr/share/OVMF/OVMF_VARS_4M.fd",
            secure: Some(Secure {
                machine: "smm=on",
                // The firmware alone writes its variables, and a machine that wakes up would not know.
                globals: &["driver=cfi.pflash01,property=secure,value=on", "ICH9-LPC.disable_s3=1"],
                firmware: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
            }),
            firmware_package: "ovmf",
        },
    },
    Arch {
        go: "arm64",
        linux: "aarch64",
        efi: "aa64",
        root: LINUX_ROOT_ARM_64,
        grub: "arm64-efi",
        console: "ttyAMA0",
        qemu: Qemu {
            program: "qemu-system-aarch64",
            package: "qemu-system-arm",
            machine: "virt,gic-version=max",
            // One without pointer authentication and scalable vectors, at which the translator is slow, but with atomic
            // instructions, which it turns into the host's.
            processor: "neoverse-n1",
            panic: "pvpanic-pci",
            firmware: "/usr/share/AAVMF/AAVMF_CODE.fd",
            variables: "/usr/share/AAVMF/AAVMF_VARS.fd",
            secure: None,
            firmware_package: "qemu-efi-aarch64",
        },
    },
];

/// A kind of machine, and what others call its things.
#[derive(Debug, PartialEq, Eq)]
pub struct Arch {
    /// In OCI images: Go's name (the OCI image specification, "Properties" of the configuration). Debian's is the same.
    pub go: &'static str,
    /// Linux's name, as uname(1) prints it.
    pub linux: &'static str,
    /// In names of EFI programs (UEFI specification 2.10, 3.5.1.1), and in boot entries (the Boot Loader Specification).
    pub efi: &'static str,
    /// The type of a partition with its root (the Discoverable Partitions Specification).
    pub root: Type,
    /// GRUB's name of the platform.
    pub grub: &'static str,
    /// The terminal that Linux has on the first serial port of its virtual machine.
    pub console: &'static str,
    /// Its virtual machine.
    pub qemu: Qemu,
}

/// A virtual machine in QEMU.
#[derive(Debug, PartialEq, Eq)]
pub struct Qemu {
    /// The program.
    pub program: &'static str,
    /// Debian's package of it.
    pub package: &'static str,
    /// The machine (`-machine`).
    pub machine: &'static str,
    /// The processor where QEMU's translator runs it (`-cpu`).
    pub processor: &'static str,
    /// The device by which a kernel says that it has panicked.
    pub panic: &'static str,
    /// UEFI firmware, as Debian has it.
    pub firmware: &'static str,
    /// The variables that it begins with.
    pub variables: &'static str,
    /// What it takes to have Secure Boot; nothing where nobody has tried.
    pub secure: Option<Secure>,
    /// Debian's package of the firmware.
    pub firmware_package: &'static str,
}

/// A virtual machine with Secure Boot, beyond what it is without. The variables begin without keys.
#[derive(Debug, PartialEq, Eq)]
pub struct Secure {
    /// More words for the machine (`-machine`).
    pub machine: &'static str,
    /// Properties of its devices (`-global`).
    pub globals: &'static [&'static str],
    /// Firmware that knows Secure Boot, as Debian has it.
    pub firmware: &'static str,
}

/// There is no such architecture in the table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the architecture {0} is not supported, only {names}", names = names())]
pub struct Unsupported(pub String);

fn names() -> String {
    TABLE.each_ref().map(|arch| arch.go).join(" and ")
}

impl Arch {
    /// The one that Go, and so an OCI image, calls `name`, or Linux.
    ///
    /// # Errors
    ///
    /// When it is not supported: names those that are.
    pub fn named(name: &str) -> Result<&'static Self, Unsupported> {
        let found = TABLE.iter().find(|arch| [arch.go, arch.linux].contains(&name));
        found.ok_or_else(|| Unsupported(name.to_owned()))
    }

    /// That of this machine.
    ///
    /// # Errors
    ///
    /// When it is not supported: names those that are.
    pub fn host() -> Result<&'static Self, Unsupported> {
        Self::named(std::env::consts::ARCH)
    }

    /// Whether this machine is one.
    pub fn is_host(&self) -> bool {
        self.linux == std::env::consts::ARCH
    }

    /// What the firmware starts from a disk that it does not know yet, on the ESP (UEFI specification 2.10, 3.5.1.1).
    pub fn default_loader(&self) -> String {
        format!("EFI/BOOT/BOOT{}.EFI", self.efi.to_uppercase())
    }

    /// systemd-boot (systemd-boot(7)): the file's name, in the image and on the ESP.
    pub fn systemd_boot(&self) -> String {
        format!("systemd-boot{}.efi", self.efi)
    }

    /// The same with a signature, as Debian's packages and bootctl(1) have it in the image; on the ESP it has the name without.
    pub fn signed_systemd_boot(&self) -> String {
        format!("{}.signed", self.systemd_boot())
    }

    /// The stub that kernel and initrd become a UKI with (systemd-stub(7)): the file's name.
    pub fn stub(&self) -> String {
        format!("linux{}.efi.stub", self.efi)
    }

    /// Where Debian and its kin have GRUB's modules in the image.
    pub fn grub_modules(&self) -> String {
        format!("usr/lib/grub/{}", self.grub)
    }

    /// Where they have GRUB in one file.
    pub fn grub_loader(&self) -> String {
        format!("{}/monolithic/grub{}.efi", self.grub_modules(), self.efi)
    }

    /// Debian's package of both.
    pub fn grub_package(&self) -> String {
        format!("grub-efi-{}-bin", self.go)
    }

    /// The word that gives the kernel the serial port for its console, unless `words` name a console: a guest that says
    /// nothing there looks as if it hung.
    pub fn console(&self, words: &str) -> Option<String> {
        let is_named = words.split_whitespace().any(|word| word.starts_with("console="));
        (!is_named).then(|| format!("console={}", self.console))
    }
}

/// As Linux calls it.
impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.linux)
    }
}

impl serde::Serialize for Arch {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.go)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    /// Names that are made here, against those in Debian's packages systemd-boot-efi and grub-efi-*-bin, and in the
    /// specifications.
    #[test]
    fn files_have_the_names_that_others_look_for() {
        let check = |name: &str, wanted: [&str; 6]| {
            let arch = Arch::named(name).unwrap();
            let root = arch.root.guid.to_string();
            let made = [arch.default_loader(), arch.systemd_boot(), arch.stub(), arch.grub_loader()];
            assert_eq!([&made[..], &[arch.grub_package(), root]].concat(), wanted);
        };
        check(
            "amd64",
            [
                "EFI/BOOT/BOOTX64.EFI",
                "systemd-bootx64.efi",
                "linuxx64.efi.stub",
                "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi",
                "grub-efi-amd64-bin",
                "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
            ],
        );
        check(
            "arm64",
            [
                "EFI/BOOT/BOOTAA64.EFI",
                "systemd-bootaa64.efi",
                "linuxaa64.efi.stub",
                "usr/lib/grub/arm64-efi/monolithic/grubaa64.efi",
                "grub-efi-arm64-bin",
                "b921b045-1df0-41c3-af44-4c6f280d3fae",
            ],
        );
    }

    #[test]
    fn one_that_is_not_in_the_table_is_refused_with_those_that_are() {
        let said = Arch::named("riscv64").unwrap_err().to_string();
        assert_eq!(said, "the architecture riscv64 is not supported, only amd64 and arm64");
    }

    #[test]
    fn a_console_is_added_unless_there_is_one() {
        let arch = Arch::named("arm64").unwrap();
        assert_eq!(arch.console("quiet x.console=y").as_deref(), Some("console=ttyAMA0"));
        assert_eq!(arch.console("quiet console=tty0"), None);
    }
}
