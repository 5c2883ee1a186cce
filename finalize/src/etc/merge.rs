//! The three-way rule for one path, as one total function: no path, no file and no error in it.

use serde::{Deserialize, Serialize};

/// Whether a side has a node at a path, and of which shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Nothing there.
    Absent,
    /// A file or a symlink.
    Leaf,
    /// A directory.
    Dir,
}

/// How the three sides of a path compare. A directory that is to become a leaf counts as changed when anything below it
/// is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sides {
    /// The live /etc.
    pub current: Shape,
    /// The staged deployment's /etc.
    pub new: Shape,
    /// The live node is not the pristine one.
    pub current_changed: bool,
    /// The new node is not the pristine one.
    pub new_changed: bool,
    /// The live node and the new one are equal.
    pub equal: bool,
}

/// What the merged tree has at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Not changed locally: the image's node, or its absence.
    Image,
    /// Changed only locally: the local node, or its absence.
    Local,
    /// Not changed locally, and yet the local node, or its absence, stays: a rule, a flag or the rest of its store holds it.
    Held,
    /// Changed on both sides in the same way.
    Converged,
    /// An account file that both sides changed: merged by record.
    Records,
    /// Changed on both sides: the local node stays.
    ContentConflict,
    /// Removed locally, changed in the image: stays removed.
    RemovedConflict,
    /// A directory on one side, a leaf on the other: the image's node is in place, the local one is kept beside.
    TypeConflict,
}

/// Whose node the merged tree takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Take {
    /// The new tree's, which may be none.
    New,
    /// The live tree's, which may be none.
    Current,
}

impl Reason {
    /// Whether a person has to be told.
    pub fn is_conflict(self) -> bool {
        matches!(self, Self::ContentConflict | Self::RemovedConflict | Self::TypeConflict)
    }

    /// Whose node is in place.
    pub fn take(self) -> Take {
        match self {
            Self::Image | Self::Converged | Self::TypeConflict => Take::New,
            Self::Local | Self::Held | Self::Records | Self::ContentConflict | Self::RemovedConflict => Take::Current,
        }
    }
}

/// Resolves one path.
pub fn resolve(sides: Sides) -> Reason {
    use Shape::{Absent, Dir, Leaf};
    match (sides.current_changed, sides.new_changed) {
        (false, _) => Reason::Image,
        (true, false) => Reason::Local,
        (true, true) if sides.equal => Reason::Converged,
        (true, true) => match (sides.current, sides.new) {
            (Absent, _) => Reason::RemovedConflict,
            (Leaf, Leaf | Absent) | (Dir, Dir | Absent) => Reason::ContentConflict,
            (Leaf, Dir) | (Dir, Leaf) => Reason::TypeConflict,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table() {
        use Shape::{Absent, Dir, Leaf};
        let check = |current, new, changed: (bool, bool), equal, want| {
            let sides = Sides { current, new, current_changed: changed.0, new_changed: changed.1, equal };
            assert_eq!(resolve(sides), want, "{sides:?}");
        };
        check(Leaf, Absent, (false, true), false, Reason::Image);
        check(Leaf, Leaf, (true, false), false, Reason::Local);
        check(Absent, Leaf, (true, false), false, Reason::Local);
        check(Leaf, Leaf, (true, true), true, Reason::Converged);
        check(Leaf, Leaf, (true, true), false, Reason::ContentConflict);
        check(Leaf, Absent, (true, true), false, Reason::ContentConflict);
        check(Absent, Leaf, (true, true), false, Reason::RemovedConflict);
        check(Dir, Leaf, (true, true), false, Reason::TypeConflict);
        check(Leaf, Dir, (true, true), false, Reason::TypeConflict);
    }
}
