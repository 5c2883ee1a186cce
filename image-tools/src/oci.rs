//! OCI images, in layouts and elsewhere: which one is meant, that everything in it is what its digest says, and new ones.

mod blob;
mod image;
mod layer;
mod reference;
mod remote;
mod select;
mod write;

pub use image::{Image, Means};
pub use layer::Layer;
pub use oci_spec::image::Arch;
pub use reference::{Layout, Reference};
pub use remote::{Rejected, Remote};
pub use write::Added;

/// An image is not what its digests say, or leads out of itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Corrupt(pub String);
