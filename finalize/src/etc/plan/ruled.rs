//! Local files whose bytes decide nothing: a rule says that the image's are taken. They are never opened, so that one
//! that cannot be read does not keep a machine from its update.

use std::io;

use super::{SameBytes, Side};
use crate::etc::{
    policy::{Keep, Policy},
    tree::RelPath,
};

/// The files of the three trees, without local ones that nobody needs.
pub struct Ruled<'a> {
    /// All files.
    pub bytes: &'a mut dyn SameBytes,
    /// The rules.
    pub policy: &'a Policy,
}

impl Ruled<'_> {
    fn is_given_up(&self, path: &RelPath) -> bool {
        self.policy.rule(path) == Some(Keep::Image)
    }
}

impl SameBytes for Ruled<'_> {
    fn same_bytes(&mut self, one: Side, other: Side, path: &RelPath) -> io::Result<bool> {
        if [one, other].contains(&Side::Current) && self.is_given_up(path) {
            // Nobody has changed it, as far as is known; but what has changed by its size is not like the image's new one.
            return Ok([one, other].contains(&Side::Pristine));
        }
        self.bytes.same_bytes(one, other, path)
    }

    fn read(&mut self, side: Side, path: &RelPath) -> io::Result<Option<Vec<u8>>> {
        if side == Side::Current && self.is_given_up(path) {
            return Ok(None);
        }
        self.bytes.read(side, path)
    }
}
