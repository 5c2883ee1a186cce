//! Access lists (acl(5)), as the kernel keeps them in extended attributes: a version, 2, in four bytes; then for each
//! entry its tag and its permissions in two bytes each, and a number in four; all little-endian
//! (linux/posix_acl_xattr.h).

use crate::etc::accounts::File;

/// The attributes that hold access lists, with what people call these.
pub const LISTS: [(&[u8], &str); 2] =
    [(b"system.posix_acl_access", "access list"), (b"system.posix_acl_default", "default access list")];

const HEADER: [u8; 4] = 2u32.to_le_bytes();

/// Tag, permissions, number.
type Entry = (u16, u16, u32);

fn entries(value: &[u8]) -> Option<Vec<Entry>> {
    let (entries, []) = value.strip_prefix(&HEADER)?.as_chunks::<8>() else { return None };
    let entry = |[a, b, c, d, e, f, g, h]: &[u8; 8]| {
        (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]), u32::from_le_bytes([*e, *f, *g, *h]))
    };
    Some(entries.iter().map(entry).collect())
}

/// The account file that has the names of an entry's numbers: those of the owner and of all others have none.
fn file((tag, _, _): &Entry) -> Option<File> {
    match tag {
        2 => Some(File::Passwd),
        8 => Some(File::Group),
        _ => None,
    }
}

/// Users and groups that a list names by their numbers; none where it is of a version that nobody knows.
pub fn named(value: &[u8]) -> Vec<(File, u32)> {
    entries(value).into_iter().flatten().filter_map(|entry| Some((file(&entry)?, entry.2))).collect()
}

/// The list with the numbers that `new` gives for those that it names, in the order that acl(5) tools keep. None where it
/// would then name one number twice, so that nobody knew which entry counts.
pub fn renumbered(value: &[u8], new: impl Fn(File, u32) -> u32) -> Option<Vec<u8>> {
    let mut entries = entries(value)?;
    for entry in &mut entries {
        if let Some(file) = file(entry) {
            entry.2 = new(file, entry.2);
        }
    }
    entries.sort_by_key(|(tag, _, number)| (*tag, *number));
    let twice = entries.windows(2).any(|pair| (pair[0].0, pair[0].2) == (pair[1].0, pair[1].2));
    let bytes = |(tag, permissions, number): Entry| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &number.to_le_bytes()].concat()
    };
    (!twice).then(|| HEADER.into_iter().chain(entries.into_iter().flat_map(bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[Entry]) -> Vec<u8> {
        let bytes = |(tag, permissions, number): &Entry| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &number.to_le_bytes()].concat()
        };
        [HEADER.to_vec(), entries.iter().flat_map(bytes).collect()].concat()
    }

    #[test]
    fn numbers_of_users_and_groups_are_found_and_changed() {
        let (owner, others) =
            ((1, 6, u32::MAX), [(4, 4, u32::MAX), (8, 4, 7), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)]);
        let before = list(&[&[owner, (2, 4, 7), (2, 6, 9)][..], &others].concat());
        assert_eq!(named(&before), [(File::Passwd, 7), (File::Passwd, 9), (File::Group, 7)]);
        let swapped = |file, number| if file == File::Passwd { 16 - number } else { number };
        let after = list(&[&[owner, (2, 6, 7), (2, 4, 9)][..], &others].concat());
        assert_eq!(renumbered(&before, swapped), Some(after));
        assert_eq!(renumbered(&before, |_, number| number), Some(before.clone()));
        assert_eq!(renumbered(&before, |_, _| 7), None);
    }

    #[test]
    fn what_is_no_list_names_nobody() {
        for odd in [&b""[..], b"\x02\0\0", b"\x03\0\0\0\x02\0\x04\0\x07\0\0\0", b"\x02\0\0\0\x02\0\x04\0\x07\0\0"] {
            assert_eq!((named(odd), renumbered(odd, |_, _| 1)), (vec![], None), "{odd:?}");
        }
    }
}
