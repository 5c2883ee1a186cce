//! What `main` hands down to whoever makes something: the one runtime, and temporary directories that go with the program,
//! even when a signal ends it; those of the crate `tempfile` too.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::runtime::Handle;

/// A place to work at.
#[derive(Debug, Clone)]
pub struct Workshop {
    /// The runtime of this program.
    pub runtime: Handle,
    scratch: Arc<Mutex<Vec<PathBuf>>>,
}

impl Workshop {
    /// From here on, whatever this program makes in the directory for temporary files is below one directory of its own.
    ///
    /// # Errors
    ///
    /// When that cannot be made: names where.
    pub fn open(runtime: Handle) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("image-tools-").tempdir();
        let dir =
            dir.with_context(|| format!("making a temporary directory in {}", std::env::temp_dir().display()))?.keep();
        // The first one stays, where there are two.
        _ = tempfile::env::override_temp_dir(&dir);
        Ok(Self { runtime, scratch: Arc::new(Mutex::new(vec![dir])) })
    }

    /// A temporary directory beside `output`, so that what is made there can be renamed to it; its directory is made.
    pub fn beside(&self, output: &Path) -> Result<TempDir> {
        let dir = output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let dir = tempfile::Builder::new().prefix(".image-tools-").tempdir_in(dir)?;
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner).push(dir.path().to_owned());
        Ok(dir)
    }

    /// A temporary directory from which nothing is kept.
    pub fn anywhere(&self) -> Result<TempDir> {
        tempfile::tempdir().context("making a temporary directory")
    }

    /// Removes all temporary directories; whoever still writes to them fails.
    pub fn clear(&self) {
        for dir in self.scratch.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // Somebody may be adding to it.
            for _ in 0..100 {
                if std::fs::remove_dir_all(&dir).is_ok() || !dir.exists() {
                    break;
                }
            }
        }
    }
}
