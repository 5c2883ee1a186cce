//! A plan for people, a line a path, and as JSON.

use std::{fmt, io};

use super::{Plan, Step};
use crate::etc::{
    merge::Reason,
    tree::{Kind, Node, RelPath},
};

/// Whether lines are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// For a terminal.
    On,
    /// For a file.
    Off,
}

impl From<bool> for Colour {
    fn from(terminal: bool) -> Self {
        if terminal && std::env::var_os("NO_COLOR").is_none() { Self::On } else { Self::Off }
    }
}

impl Plan {
    /// Writes a line per path that does not just follow the image, and a summary.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn print(&self, out: &mut dyn io::Write, colour: Colour) -> io::Result<()> {
        for (path, step) in self.steps.iter().filter(|(_, step)| step.reason != Reason::Image) {
            self.line(out, colour, path, step)?;
        }
        self.end(out)
    }

    /// The line of one path.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn line(&self, out: &mut dyn io::Write, colour: Colour, path: &RelPath, step: &Step) -> io::Result<()> {
        let (on, off) = match (colour, step.reason) {
            (Colour::Off, _) => ("", ""),
            (_, reason) if reason.is_conflict() => ("\x1b[31m", "\x1b[0m"),
            (_, Reason::Records) => ("\x1b[36m", "\x1b[0m"),
            _ => ("\x1b[32m", "\x1b[0m"),
        };
        writeln!(out, "{on}{:6}{off} /etc/{path}  ({})", step.action(), self.why(path, step))
    }

    /// What is not about single paths, and the summary.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn end(&self, out: &mut dyn io::Write) -> io::Result<()> {
        for path in &self.skipped {
            writeln!(out, "skip   /etc/{path}  (never carried)")?;
        }
        for note in &self.notes {
            writeln!(out, "note   {note}")?;
        }
        writeln!(out, "{}", self.counts())
    }

    fn why(&self, path: &RelPath, step: &Step) -> String {
        let text = match step.reason {
            Reason::Image => "the local change is given up",
            Reason::Local => "changed here",
            Reason::Held if step.node.is_some() => "not changed here, and stays",
            Reason::Held => "the image's is not taken",
            Reason::Converged => "changed alike on both sides",
            Reason::Records => "merged by record",
            Reason::ContentConflict => "CONFLICT: changed here and in the image",
            Reason::RemovedConflict => "CONFLICT: removed here, changed in the image",
            Reason::TypeConflict => "CONFLICT: another type in the image",
        };
        match self.beside.get(path) {
            Some(beside) => format!("{text}; the local copy is kept as /etc/{beside}"),
            None if self.aside.contains(path) => format!("{text}; the local copy is saved in etc.conflicts/{path}"),
            None => text.to_owned(),
        }
    }

    /// The plan as JSON: `schema` (1); `paths`, each with `path`, `action` (`take` the image's, `keep` the local,
    /// `merge`, `remove`), `reason` and `kind` (`file`, `directory`, `link`, or null where nothing is); paths that only
    /// follow the image are counted but not listed; `conflicts`, `skipped`, `refused`, `beside`, `aside`, `notes`, `counts`.
    ///
    /// Paths are text where they are printable UTF-8 without a backslash; in others every byte that is not printable
    /// ASCII, and the backslash, is written `\xHH`.
    pub fn to_json(&self) -> serde_json::Value {
        let row = |(path, step): (&RelPath, &Step)| {
            let kind = step.node.as_ref().map(kind);
            serde_json::json!({ "path": path, "action": step.action(), "reason": step.reason, "kind": kind })
        };
        let listed = |(_, step): &(&RelPath, &Step)| step.reason != Reason::Image;
        let beside = self.beside.iter().map(|(path, beside)| serde_json::json!({ "path": path, "kept_as": beside }));
        serde_json::json!({
            "schema": 1,
            "paths": self.steps.iter().filter(listed).map(row).collect::<Vec<_>>(),
            "conflicts": self.conflicts().map(|(path, _)| path).collect::<Vec<_>>(),
            "skipped": self.skipped,
            "refused": self.refused.keys().collect::<Vec<_>>(),
            "beside": beside.collect::<Vec<_>>(),
            "aside": self.aside.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "notes": self.notes,
            "counts": self.counts(),
        })
    }
}

/// What a node is, as one word.
pub(crate) fn kind(node: &Node) -> &'static str {
    match node.kind {
        Kind::Dir => "directory",
        Kind::File { .. } => "file",
        Kind::Link(_) => "link",
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = vec![];
        self.print(&mut text, Colour::Off).map_err(|_| fmt::Error)?;
        f.write_str(String::from_utf8_lossy(&text).trim_end())
    }
}
