//! The screen: first the deployments, each with what tells it from the others, then the machine, then what needs attention.

use std::fmt;

use super::{Deployed, Role, Staged, Status};
use crate::{digest::DeploymentId, record::Record};

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for deployed in &self.deployments {
            let staged = self.staged.as_ref().filter(|staged| staged.id == deployed.id);
            show(f, deployed, staged)?;
        }
        writeln!(f)?;
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
        if self.staged.is_none() {
            writeln!(f, "staged    nothing")?;
        }
        if self.next.is_none() {
            writeln!(f, "next      unknown, or no deployment")?;
        }
        if let Some(pinned) = &self.pinned {
            writeln!(f, "next by   {pinned}")?;
        }
        writeln!(f, "loader    {}", or_unknown(self.loader.map(|loader| loader.to_string())))?;
        match &self.record {
            None => writeln!(f, "record    none")?,
            Some(record) => show_record(f, record)?,
        }
        self.attention.iter().try_for_each(|line| writeln!(f, "attention {line}"))
    }
}

/// What became of the last finalization, and since; the beginning of a long story.
fn show_record(f: &mut fmt::Formatter<'_>, record: &Record) -> fmt::Result {
    const LINES: usize = 8;
    let text = record.to_string();
    write!(f, "record    {}: ", record.finished)?;
    let (shown, rest): (Vec<_>, Vec<_>) = text.lines().enumerate().partition(|(number, _)| *number < LINES);
    // What failed is always said.
    let is_error = |line: &str| record.error.iter().any(|error| error.lines().any(|part| part == line.trim()));
    let (errors, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, line)| is_error(line));
    for (number, line) in shown.into_iter().chain(errors) {
        writeln!(f, "{}{line}", if number == 0 { "" } else { "          " })?;
    }
    if !rest.is_empty() {
        writeln!(f, "          and {} lines more: composefs-finalize status --json", rest.len())?;
    }
    match &record.next_boot {
        Some(next) => writeln!(f, "          then {} booted, {}", next.booted.short(), next.at),
        None => Ok(()),
    }
}

fn show(f: &mut fmt::Formatter<'_>, deployed: &Deployed, staged: Option<&Staged>) -> fmt::Result {
    let Deployed { id, title, version, image_reference, manifest_digest, boot_type, boots, .. } = deployed;
    let mark = if deployed.roles.contains(&Role::Booted) { '*' } else { ' ' };
    let mut words: Vec<_> = deployed.roles.iter().map(ToString::to_string).collect();
    if words.is_empty() {
        words.push("unused".to_owned());
    }
    words.extend(staged.filter(|staged| staged.locked).map(|_| "locked".to_owned()));
    write!(f, "{mark} {}  {}", id.short(), words.join(", "))?;
    if deployed.complete == Some(false) {
        f.write_str(" (INCOMPLETE)")?;
    }
    writeln!(f)?;
    let mut line = |name: &str, text: &str| writeln!(f, "    {name:<9} {text}");
    match (title, version) {
        (Some(title), Some(version)) if !title.contains(version.as_str()) => {
            line("system", &format!("{title}, version {version}"))?
        }
        (Some(text), _) | (None, Some(text)) => line("system", text)?,
        (None, None) => {}
    }
    if let Some(reference) = image_reference {
        line("image", reference.strip_prefix("ostree-unverified-image:").unwrap_or(reference))?;
    }
    if let Some(digest) = manifest_digest {
        line("manifest", digest)?;
    }
    let mut how: Vec<String> = boot_type.iter().map(ToString::to_string).collect();
    how.extend(
        deployed.verity_required.map(|required| if required { "sealed" } else { "verity not required" }.to_owned()),
    );
    how.extend(boots.first().map(|path| shortened(path)));
    if how.is_empty() { Ok(()) } else { line("boots", &how.join(", ")) }
}

/// A path with the digest in it as short as digests are shown elsewhere.
fn shortened(path: &str) -> String {
    let parts = path.split_inclusive(['/', '-', '.']);
    let short = |part: &str| {
        let (digest, end) = part.split_at(part.len() - part.len().min(usize::from(part.ends_with(['/', '-', '.']))));
        match digest.parse::<DeploymentId>() {
            Ok(id) => format!("{}…{end}", id.short()),
            Err(_) => part.to_owned(),
        }
    };
    parts.map(short).collect()
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Booted => "booted",
            Self::Staged => "staged",
            Self::Next => "boots next",
            Self::Fallback => "fallback",
            Self::Pinned => "pinned",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_in_paths_are_shown_as_elsewhere() {
        let id = "ab".repeat(64);
        let check = |path: &str, want: &str| assert_eq!(shortened(&path.replace("ID", &id)), want);
        check("/EFI/Linux/bootc_composefs-ID/vmlinuz", "/EFI/Linux/bootc_composefs-abababababab…/vmlinuz");
        check("/EFI/Linux/bootc/ID.efi", "/EFI/Linux/bootc/abababababab….efi");
        check("/é/x", "/é/x");
        check("", "");
    }
}
