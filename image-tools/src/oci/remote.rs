//! An image that is somewhere else, in a registry say: fetched by skopeo, with its own authentication
//! (containers-auth.json(5)), mirrors (containers-registries.conf(5)) and policy (containers-policy.json(5)), one blob at a time.

use std::{
    io::{self, Read},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, ensure};
use containers_image_proxy::{ImageProxy, ImageProxyConfig, OpenedImage};
use oci_spec::image::{Arch, Descriptor, DescriptorBuilder, MediaType};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    runtime::Handle,
    sync::mpsc::{Receiver, Sender, channel},
};
use xshell::cmd;

use super::{Corrupt, blob::DOCUMENT};
use crate::program;

/// How much is handed on at once, in bytes, and how many of that may wait.
const PIECE: usize = 1 << 18;
const WAITING: usize = 8;

/// skopeo takes no image that its policy rejects, and nor do we.
#[derive(Debug, thiserror::Error)]
#[error("{0}: the policy of this machine (containers-policy.json(5)) refuses the image")]
pub struct Rejected(String);

/// An image that skopeo has opened.
#[derive(Debug)]
pub struct Remote {
    runtime: Handle,
    proxy: ImageProxy,
    image: OpenedImage,
    name: String,
}

impl Remote {
    /// Opens the image `name`, of one of containers-transports(5), for `arch` or this machine.
    ///
    /// # Errors
    ///
    /// When skopeo is missing, or cannot open the image: with its own words. [`Rejected`] where its policy says no.
    pub fn open(runtime: &Handle, name: &str, arch: Option<&Arch>) -> Result<Self> {
        let shell = program::shell()?;
        let version = program::run(cmd!(shell, "skopeo --version"))?;
        ensure!(
            obeys_policy(&version),
            "{} does not look at the policy of this machine: skopeo 1.13 or later is needed",
            version.trim()
        );
        let arch = arch.map(|arch| format!("--override-arch={arch}"));
        let skopeo = Command::from(cmd!(shell, "setpriv --pdeathsig SIGTERM -- skopeo {arch...}"));
        let mut config = ImageProxyConfig::default();
        config.skopeo_cmd = Some(skopeo);
        let open = async {
            let proxy = ImageProxy::new_with_config(config).await.context("starting skopeo")?;
            let image = proxy.open_image(name).await;
            Ok::<_, anyhow::Error>((proxy, image))
        };
        let (proxy, image) = runtime.block_on(open)?;
        let image = image.map_err(|why| match why.to_string() {
            words if words.contains("rejected") => anyhow!(Rejected(words)),
            words => anyhow!(words),
        })?;
        Ok(Self { runtime: runtime.clone(), proxy, image, name: name.to_owned() })
    }

    /// The manifest, as OCI has it, and its descriptor. What is Docker's is converted by skopeo, and has a digest of its own.
    ///
    /// # Errors
    ///
    /// Those of skopeo.
    pub fn manifest(&self) -> Result<(Vec<u8>, Descriptor)> {
        let (_, bytes) = self.wait(self.proxy.fetch_manifest_raw_oci(&self.image)).context("fetching the manifest")?;
        let digest: oci_spec::image::Digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes))).parse()?;
        let descriptor = DescriptorBuilder::default().media_type(MediaType::ImageManifest).digest(digest);
        Ok((bytes.clone(), descriptor.size(bytes.len() as u64).build()?))
    }

    /// The configuration, which must be what the manifest says. What was converted is in no registry.
    ///
    /// # Errors
    ///
    /// [`Corrupt`], and those of skopeo.
    pub fn configuration(self: &Arc<Self>, wanted: &Descriptor) -> Result<Vec<u8>> {
        let digest = wanted.digest();
        let is_that = |bytes: &[u8]| {
            let found = hex::encode(Sha256::digest(bytes));
            let is_that = found == digest.digest() && bytes.len() as u64 == wanted.size();
            ensure!(is_that, Corrupt(format!("the configuration of {} is sha256:{found}, not {digest}", self.name)));
            Ok(())
        };
        let fetch = || {
            let mut bytes = vec![];
            self.blob(wanted).take(DOCUMENT).read_to_end(&mut bytes)?;
            is_that(&bytes)?;
            Ok::<_, anyhow::Error>(bytes)
        };
        fetch().or_else(|why| {
            let bytes = self.wait(self.proxy.fetch_config_raw(&self.image))?;
            is_that(&bytes).map_err(|_| why.context("fetching the configuration"))?;
            Ok(bytes)
        })
    }

    /// The bytes of a blob; nobody has checked them.
    pub fn blob(self: &Arc<Self>, descriptor: &Descriptor) -> impl Read + Send + use<> {
        let (sender, receiver) = channel(WAITING);
        let (this, descriptor) = (self.clone(), descriptor.clone());
        self.runtime.spawn(async move {
            let sent = this.send(&descriptor, &sender).await;
            // Whoever reads may have gone.
            if let Err(error) = sent {
                _ = sender.send(Err(io::Error::other(format!("{error:#}")))).await;
            }
        });
        Piecewise { receiver, piece: vec![], at: 0 }
    }

    async fn send(&self, descriptor: &Descriptor, to: &Sender<io::Result<Vec<u8>>>) -> Result<()> {
        let stream = self.proxy.get_blob_stream(&self.image, descriptor.digest(), descriptor.size()).await;
        let (mut reader, driver) = stream.map_err(|why| anyhow!("{why}"))?.into_parts();
        let copying = async {
            while let Some(piece) = piece(&mut reader).await? {
                if to.send(Ok(piece)).await.is_err() {
                    break;
                }
            }
            drop(reader);
            Ok::<_, io::Error>(())
        };
        let (copied, driven) = tokio::join!(copying, driver);
        driven.map_err(|why| anyhow!("{why}"))?;
        Ok(copied?)
    }

    fn wait<T>(&self, what: impl Future<Output = containers_image_proxy::Result<T>>) -> Result<T> {
        self.runtime.block_on(what).map_err(|why| anyhow!("{why}"))
    }

    /// What it was asked for by.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Whether this version of skopeo asks its policy when it opens an image: since 1.13 (skopeo's pull request 2029).
fn obeys_policy(version: &str) -> bool {
    let number = version.split_ascii_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let mut parts = number.unwrap_or_default().split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (1, 13)
}

async fn piece(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut piece = Vec::with_capacity(PIECE);
    let count = reader.take(PIECE as u64).read_to_end(&mut piece).await?;
    Ok(Some(piece).filter(|_| count > 0))
}

/// What another task sends.
struct Piecewise {
    receiver: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Piecewise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            let Some(piece) = self.receiver.blocking_recv() else { return Ok(0) };
            (self.piece, self.at) = (piece?, 0);
        }
        let rest = &self.piece[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::obeys_policy;

    #[test]
    fn an_old_skopeo_is_known_by_its_version() {
        for (version, obeys) in [
            ("skopeo version 1.9.3\n", false),
            ("skopeo version 1.13.0-dev", true),
            ("skopeo version 2.0", true),
            ("", false),
        ] {
            assert_eq!(obeys_policy(version), obeys, "{version}");
        }
    }
}
