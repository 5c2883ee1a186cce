//! A layer: read once, from the blob to the bytes of its archive, and checked on the way at both ends.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use flate2::bufread::MultiGzDecoder;
use oci_spec::image::Descriptor;
use sha2::{Digest, Sha256};

use super::{
    Corrupt,
    blob::{Blob, Blobs},
};
use crate::progress::{Counted, Progress};

/// How much is inflated at once, in bytes, and how many of that may wait.
const CHUNK: usize = 1 << 18;
const WAITING: usize = 8;

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its blob.
    pub descriptor: Descriptor,
    /// `sha256:` of its archive, as the configuration has it.
    pub diff_id: String,
}

impl Layer {
    /// Hands the archive to `each`, while another thread reads and inflates the blob. Whether that is gzip, zstd or neither
    /// is seen from its first bytes, as the container engines do. `progress` counts the bytes of the blob.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] when blob or archive are not what their digests say, whatever `each` made of them; else those of `each`.
    pub fn read<T>(
        &self,
        blobs: &Blobs,
        progress: &Progress,
        each: impl FnOnce(&mut dyn Read) -> Result<T>,
    ) -> Result<T> {
        let (blob, digest) = (blobs.open(&self.descriptor)?, self.descriptor.digest());
        let (found, diff_id) = thread::scope(|scope| {
            let (sender, receiver) = sync_channel(WAITING);
            let inflating = scope.spawn(move || inflate(progress.count(blob), &sender));
            let mut archive = Archive { receiver, chunk: vec![], at: 0, hasher: Sha256::new() };
            let found = each(&mut archive);
            // To its end also when that failed: that the blob is corrupt is the better reason.
            let rest = io::copy(&mut archive, &mut io::sink());
            inflating.join().map_err(|_| anyhow!("a thread panicked"))??;
            rest?;
            Ok::<_, anyhow::Error>((found, format!("sha256:{}", hex::encode(archive.hasher.finalize()))))
        })?;
        let wanted = &self.diff_id;
        ensure!(
            diff_id == *wanted,
            Corrupt(format!("the layer {digest} holds {diff_id}, and the image's configuration wants {wanted} there"))
        );
        found
    }
}

fn inflate(blob: Counted<'_, Blob>, to: &SyncSender<Vec<u8>>) -> Result<()> {
    let mut blob = BufReader::with_capacity(CHUNK, blob);
    let sent = send(&mut blob, to).context("inflating the blob");
    blob.into_inner().into_inner().finish()?;
    sent
}

fn send(blob: &mut impl BufRead, to: &SyncSender<Vec<u8>>) -> io::Result<()> {
    let mut inflated: Box<dyn Read + '_> = match blob.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(blob)),
        // A frame, or one to be skipped (RFC 8878, 3.1).
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::Decoder::with_buffer(blob)?)
        }
        _ => Box::new(blob),
    };
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        (&mut inflated).take(CHUNK as u64).read_to_end(&mut chunk)?;
        // Nobody listens any more when the other thread panics.
        if chunk.is_empty() || to.send(chunk).is_err() {
            return Ok(());
        }
    }
}

/// The archive as it comes from the other thread.
struct Archive {
    receiver: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    hasher: Sha256,
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            let Ok(chunk) = self.receiver.recv() else { return Ok(0) };
            self.hasher.update(&chunk);
            (self.chunk, self.at) = (chunk, 0);
        }
        let rest = &self.chunk[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}
