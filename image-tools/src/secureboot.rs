//! Secure Boot: EFI programs get their signatures, and the firmware's variables their signed content, by sbsigntool. What is
//! enrolled is one certificate in three places: the platform key PK, the key exchange key KEK, and the database db of what may
//! start (UEFI specification 2.10, 32.3), as `bootctl install --secure-boot-auto-enroll=yes` has it.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use uuid::Uuid;
use xshell::cmd;

use crate::program;

/// The variables that are enrolled; each of them is a file NAME.auth (systemd-boot(7)). PK is the last: it ends the setup mode.
pub const VARIABLES: [&str; 3] = ["db", "KEK", "PK"];

/// Beside them: the certificate in db, as text.
const CERTIFICATE: &str = "db.pem";

/// What those variables must be (UEFI specification 2.10, table 3.1).
const ATTRIBUTES: &str = "NON_VOLATILE,BOOTSERVICE_ACCESS,RUNTIME_ACCESS,TIME_BASED_AUTHENTICATED_WRITE_ACCESS";

/// A private key, and the certificate by which a firmware knows its signatures. Both are PEM.
#[derive(Debug, Clone)]
pub struct Signer {
    /// The private key.
    pub key: PathBuf,
    /// Its certificate.
    pub cert: PathBuf,
}

impl Signer {
    /// Looks whether both files can be read, before anything long begins.
    ///
    /// # Errors
    ///
    /// Which of them cannot.
    pub fn check(&self) -> Result<()> {
        let (key, cert) = ("--secureboot-key", "--secureboot-cert");
        for (what, path, option) in [("key", &self.key, key), ("certificate", &self.cert, cert)] {
            let opened = File::open(path).and_then(|file| file.metadata());
            let opening = || format!("opening the {what} {}, which {option} names", path.display());
            ensure!(opened.with_context(opening)?.is_file(), "{}: it is no file", opening());
        }
        Ok(())
    }

    /// Signs the EFI program `from`, called `name` in what is said, and writes it to `to`.
    ///
    /// # Errors
    ///
    /// When key and certificate do not belong together, or it is no EFI program: with what sbsign said.
    pub fn sign(&self, name: &str, (from, to): (&Path, &Path)) -> Result<()> {
        let Self { key, cert } = self;
        let shell = program::shell()?;
        let signed = program::run(cmd!(shell, "sbsign --key {key} --cert {cert} --output {to} {from}"));
        let by = format!("with the key {} and {}, which must be its certificate", key.display(), cert.display());
        signed.map(drop).with_context(|| format!("signing {name} {by}"))
    }

    /// Makes the directory `dir` with what a firmware in setup mode enrols: the certificate, signed with its own key. It is there
    /// when it is whole.
    ///
    /// # Errors
    ///
    /// When it exists, or a program fails: with what that said.
    pub fn enrolment(&self, dir: &Path) -> Result<()> {
        let Self { key, cert } = self;
        let (shell, scratch) = (program::shell()?, tempfile::tempdir()?);
        let (der, list) = (scratch.path().join("cert.der"), scratch.path().join("cert.esl"));
        let reading = || format!("reading the certificate {}", cert.display());
        program::run(cmd!(shell, "openssl x509 -in {cert} -outform DER -out {der}")).with_context(reading)?;
        // Who owns the entry: it says nothing, and the same certificate says the same.
        let owner = Uuid::new_v5(&Uuid::NAMESPACE_OID, &fs::read(&der)?).to_string();
        program::run(cmd!(shell, "sbsiglist --owner {owner} --type x509 --output {list} {der}"))?;
        let making = || format!("making {}", dir.display());
        ensure!(dir.symlink_metadata().is_err(), "{}: it is there already, and would be lost", making());
        let beside = dir.parent().filter(|beside| !beside.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let public = Permissions::from_mode(0o755);
        let part = tempfile::Builder::new().permissions(public).tempdir_in(beside).with_context(making)?;
        program::run(cmd!(shell, "openssl x509 -in {cert}").arg("-out").arg(part.path().join(CERTIFICATE)))
            .with_context(reading)?;
        for name in VARIABLES {
            let output = part.path().join(file(name));
            let options = ["--attr", ATTRIBUTES, "--key"];
            let command = cmd!(shell, "sbvarsign").args(options).arg(key).arg("--cert").arg(cert);
            let made = program::run(command.arg("--output").arg(&output).arg(name).arg(&list));
            made.with_context(|| format!("making {name} of {}", dir.display()))?;
        }
        fs::rename(part.path(), dir).with_context(making)?;
        _ = part.keep();
        Ok(())
    }
}

/// The files of the directory `dir`, name and content: what [`Signer::enrolment`] has made, or somebody else.
///
/// # Errors
///
/// Which of them cannot be read.
pub fn keys(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let read = |variable: &&str| {
        let path = dir.join(file(variable));
        let reading = || format!("reading {}: image-tools seal --secureboot-keys makes it", path.display());
        Ok((file(variable), fs::read(&path).with_context(reading)?))
    };
    VARIABLES.iter().map(read).collect()
}

/// The file with the content of a variable.
fn file(variable: &str) -> String {
    format!("{variable}.auth")
}

/// Why a firmware that has the keys of the directory `keys` would not start the EFI program; nothing where it would. Where there
/// is no certificate beside the keys, any signature will do.
///
/// # Errors
///
/// When it is no EFI program.
pub fn why_not(program: &Path, keys: &Path) -> Result<Option<String>> {
    let (shell, cert) = (program::shell()?, keys.join(CERTIFICATE));
    // It says on standard error that there is none, and that is no failure.
    if !program::run(cmd!(shell, "sbverify --list {program}"))?.starts_with("signature ") {
        return Ok(Some("has no signature".to_owned()));
    }
    let is_ours = !cert.exists() || program::output(cmd!(shell, "sbverify --cert {cert} {program}"))?.status.success();
    Ok((!is_ours).then(|| format!("has no signature of {}", cert.display())))
}
