//! A layer: read once, from the blob to the bytes of its archive, and checked on the way at both ends.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use oci_spec::image::Descriptor;
use sha2::{Digest, Sha256};
use zlib_rs::{Inflate, InflateFlush, Status};

use super::{
    Corrupt,
    blob::{Blob, Blobs},
};
use crate::progress::{Counted, Progress};

/// How much is inflated at once, in bytes, and how many of that may wait.
const CHUNK: usize = 1 << 18;
const WAITING: usize = 32;

/// A window of 32 KiB in gzip's format, to zlib.
const GZIP: u8 = 16 + 15;

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its blob.
    pub descriptor: Descriptor,
    /// `sha256:` of its archive, as the configuration has it.
    pub diff_id: String,
}

impl Layer {
    /// Hands the archive to `each`, while one thread reads and inflates the blob, and another hashes the archive. Whether the
    /// blob is gzip, zstd or neither is seen from its first bytes, as the container engines do. `progress` counts
    /// the bytes of the blob.
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
            let [(sender, receiver), (to_be_hashed, hashed)] = [(); 2].map(|()| sync_channel(WAITING));
            let inflating = scope.spawn(move || inflate(progress.count(blob), &[to_be_hashed, sender]));
            let hashing = scope.spawn(move || hash(&hashed));
            let mut archive = Archive { receiver, chunk: Chunk::default(), at: 0 };
            let found = each(&mut archive);
            // To its end also when that failed: that the blob is corrupt is the better reason.
            let rest = io::copy(&mut archive, &mut io::sink());
            inflating.join().map_err(|_| anyhow!("a thread panicked"))??;
            rest?;
            let diff_id = hashing.join().map_err(|_| anyhow!("a thread panicked"))?;
            Ok::<_, anyhow::Error>((found, diff_id))
        })?;
        let wanted = &self.diff_id;
        ensure!(
            diff_id == *wanted,
            Corrupt(format!("the layer {digest} holds {diff_id}, and the image's configuration wants {wanted} there"))
        );
        found
    }
}

/// Some bytes of an archive, for all who want them.
type Chunk = Arc<Vec<u8>>;

/// The `diff_id` of an archive.
fn hash(archive: &Receiver<Chunk>) -> String {
    let mut hasher = Sha256::new();
    archive.iter().for_each(|chunk| hasher.update(&*chunk));
    format!("sha256:{}", hex::encode(hasher.finalize()))
}

fn inflate(blob: Counted<'_, Blob>, to: &[SyncSender<Chunk>]) -> Result<()> {
    let mut blob = BufReader::with_capacity(CHUNK, blob);
    let sent = send(&mut blob, to).context("inflating the blob");
    blob.into_inner().into_inner().finish()?;
    sent
}

fn send(blob: &mut impl BufRead, to: &[SyncSender<Chunk>]) -> io::Result<()> {
    let mut inflated: Box<dyn Read + '_> = match blob.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(Gunzip { blob, inflate: Inflate::new(true, GZIP), has_ended: false }),
        // A frame, or one to be skipped (RFC 8878, 3.1).
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::Decoder::with_buffer(blob)?)
        }
        _ => Box::new(blob),
    };
    loop {
        let mut chunk = vec![0; CHUNK];
        let mut filled = 0;
        while filled < CHUNK {
            match inflated.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        chunk.truncate(filled);
        let chunk = Chunk::new(chunk);
        // Nobody listens any more when another thread panics.
        if chunk.is_empty() || to.iter().any(|to| to.send(chunk.clone()).is_err()) {
            return Ok(());
        }
    }
}

/// What a gzip file holds, all its members one after the other (RFC 1952), each checked against its own checksum.
struct Gunzip<R> {
    blob: R,
    inflate: Inflate,
    /// Whether the last member is complete.
    has_ended: bool,
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            let input = self.blob.fill_buf()?;
            if self.has_ended {
                if input.is_empty() {
                    return Ok(0);
                }
                self.inflate = Inflate::new(true, GZIP);
                self.has_ended = false;
            }
            let is_cut_off = input.is_empty();
            let before = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(input, buffer, InflateFlush::NoFlush);
            let status = status.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.as_str()))?;
            let [read, written] = [self.inflate.total_in() - before.0, self.inflate.total_out() - before.1]
                .map(|count| usize::try_from(count).unwrap_or(usize::MAX));
            self.blob.consume(read);
            self.has_ended = status == Status::StreamEnd;
            if written > 0 {
                return Ok(written);
            }
            if is_cut_off && !self.has_ended {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the gzip file is cut off"));
            }
        }
        Ok(0)
    }
}

/// The archive as it comes from the other thread.
struct Archive {
    receiver: Receiver<Chunk>,
    chunk: Chunk,
    at: usize,
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            let Ok(chunk) = self.receiver.recv() else { return Ok(0) };
            (self.chunk, self.at) = (chunk, 0);
        }
        let rest = &self.chunk[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}
