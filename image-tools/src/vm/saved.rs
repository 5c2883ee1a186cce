//! A saved machine: a file that begins with a block of ours, which says what it was saved under, and goes on with what QEMU
//! writes of a machine on its way to another host.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::accel::Accel;

/// Where QEMU's part begins.
pub const OFFSET: u64 = 4096;

const MAGIC: &str = "a machine saved by image-tools\n";

/// What is known of a saved machine without QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// What it ran under: it can only go on under the same.
    pub accelerator: Accel,
}

impl Saved {
    /// The beginning of a file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is no saved machine.
    pub fn read(path: &Path) -> Result<Self> {
        let going_on = || format!("going on from {}", path.display());
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(error).context("save a machine first (image-tools boot --save)").with_context(going_on);
            }
            file => file.with_context(going_on)?,
        };
        let mut head = vec![];
        file.take(OFFSET).read_to_end(&mut head).with_context(going_on)?;
        let text = head.strip_prefix(MAGIC.as_bytes());
        ensure!(text.is_some(), "{}: the file is no saved machine: save one with image-tools boot --save", going_on());
        let text = text.unwrap_or_default().split(|byte| *byte == b'\n').next().unwrap_or_default();
        serde_json::from_slice(text).with_context(going_on)
    }

    /// Writes the beginning of a file; QEMU's part follows at [`OFFSET`].
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(self, file: &mut File) -> Result<()> {
        let mut head = format!("{MAGIC}{}\n", serde_json::to_string(&self)?).into_bytes();
        head.resize(usize::try_from(OFFSET)?, 0);
        Ok(file.write_all(&head)?)
    }
}
