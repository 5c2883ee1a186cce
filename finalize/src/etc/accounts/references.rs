//! What refers to what across account files: a user to its group, a group to its members, a file of /etc to its owner.
//! A merge leaves no reference without its record that had it before.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    File, Owners, Sides, Table, Work, field, names_in, number,
    table::{Field, Record, Records},
    text,
};

/// A record that something refers to, and which the merged files lack.
struct Wanted {
    file: File,
    name: Field,
    record: Record,
    note: String,
}

impl Work<'_> {
    /// Users and groups stay while something local refers to them; what is kept may itself refer to others.
    pub(super) fn keep_what_is_referred_to(&mut self, owners: &Owners) {
        loop {
            let mut wanted = self.owners(owners);
            wanted.extend(self.members());
            wanted.extend(self.primary_groups());
            wanted.extend(self.ranges());
            if wanted.is_empty() {
                return;
            }
            for Wanted { file, name, record, note } in wanted {
                let Some(records) = self.records.get_mut(&file) else { continue };
                if records.insert(name, record).is_none() {
                    self.notes.push(note);
                }
            }
        }
    }

    /// A file's three sides, and what is merged so far.
    fn of(&self, file: File) -> Option<(&Sides, &Records)> {
        Some((self.files.get(&file)?, self.records.get(&file)?))
    }

    /// Records of the local file that the image dropped, so that the merged one lacks them.
    fn dropped(&self, file: File) -> impl Iterator<Item = (&Field, &Record)> {
        let (sides, merged) = self.of(file).unzip();
        let all = sides.into_iter().flat_map(|sides| sides.current.records.iter().map(move |record| (sides, record)));
        all.filter(move |(sides, (name, _))| {
            !sides.new.records.contains_key(*name) && merged.is_some_and(|merged| !merged.contains_key(*name))
        })
        .map(|(_, record)| record)
    }

    fn owners(&self, owners: &Owners) -> Vec<Wanted> {
        let mut wanted = vec![];
        for (file, what, owned) in [(File::Passwd, "user", &owners.uids), (File::Group, "group", &owners.gids)] {
            for (name, record) in self.dropped(file) {
                let owned = number(record).and_then(|number| Some((number, owned.get(&number)?)));
                let Some((number, reference)) = owned else { continue };
                let kept = format!("{}: kept {what} {} ({number}), removed from the image", file.name(), text(name));
                let note = format!("{kept}, because {reference}");
                wanted.push(Wanted { file, name: name.clone(), record: record.clone(), note });
            }
        }
        wanted
    }

    /// Users that were made members of a group here.
    fn members(&self) -> Vec<Wanted> {
        let Some((sides, merged)) = self.of(File::Group) else { return vec![] };
        let mut made: BTreeMap<&[u8], &Field> = BTreeMap::new();
        for (name, record) in merged {
            let [pristine, current] = [&sides.pristine, &sides.current].map(|side| members(side, name));
            let members = record.iter().filter_map(|line| line.get(3)).flat_map(|list| names_in(list));
            made.extend(members.filter(|m| current.contains(m) && !pristine.contains(m)).map(|m| (m, name)));
        }
        let kept = |(name, record): (&Field, &Record)| {
            let group = made.get(&name[..])?;
            let kept = format!("passwd: kept user {}, removed from the image", text(name));
            let note = format!("{kept}, because it was made a member of {} here", text(group));
            Some(Wanted { file: File::Passwd, name: name.clone(), record: record.clone(), note })
        };
        self.dropped(File::Passwd).filter_map(kept).collect()
    }

    /// The groups of users that are local or kept; and those that the image gives to users, where they were removed here.
    fn primary_groups(&self) -> Vec<Wanted> {
        let (Some((users, merged)), Some((groups, merged_groups))) = (self.of(File::Passwd), self.of(File::Group))
        else {
            return vec![];
        };
        let numbers: BTreeSet<u32> = merged_groups.values().filter_map(number).collect();
        let [current, new] = [&groups.current.records, &groups.new.records].map(by_number);
        let mut wanted = vec![];
        for (user, record) in merged {
            let [p, c, n] = [&users.pristine, &users.current, &users.new].map(|side| side.records.get(user));
            let Some(gid) = field(record, 3).filter(|gid| !numbers.contains(gid)) else { continue };
            let is_local = c.is_some() && (c != p || n.is_none());
            let is_the_images = n.is_some() && c.and_then(|record| field(record, 3)) != Some(gid);
            let here = current.get(&gid).filter(|_| is_local).or_else(|| new.get(&gid).filter(|_| is_the_images));
            let Some((name, group)) = here else { continue };
            let kept = format!("group: kept {} ({gid})", text(name));
            let note = format!("{kept}, because it is the group of {}", text(user));
            wanted.push(Wanted { file: File::Group, name: (*name).clone(), record: (*group).clone(), note });
        }
        // A name of another number is in the way: then there is nothing to bring back.
        wanted.retain(|wanted| !merged_groups.contains_key(&wanted.name));
        wanted
    }

    /// Subordinate numbers of users that are kept.
    fn ranges(&self) -> Vec<Wanted> {
        let mut wanted = vec![];
        for file in [File::Subuid, File::Subgid] {
            for (name, record) in self.dropped(file) {
                let user = self.of(File::Passwd);
                let kept = user
                    .is_some_and(|(sides, merged)| merged.contains_key(name) && !sides.new.records.contains_key(name));
                if kept {
                    let note = format!("{}: kept the range of {}, as the user is kept", file.name(), text(name));
                    wanted.push(Wanted { file, name: name.clone(), record: record.clone(), note });
                }
            }
        }
        wanted
    }

    /// No name in one file of a pair that the merge left out of the other.
    pub(super) fn keep_consistent(&mut self) {
        for file in [File::Passwd, File::Group] {
            let Some(shadow) = file.shadow() else { continue };
            let (Some((sides, merged)), Some((secret, passwords))) = (self.of(file), self.of(shadow)) else { continue };
            let sides_of =
                |name: &Field| [&sides.pristine, &sides.current, &sides.new].map(|s| s.records.contains_key(name));
            let was_alone =
                |name: &Field| secret.current.records.contains_key(name) && !sides.current.records.contains_key(name);
            let mut passwords = passwords.clone();
            passwords.retain(|name, _| merged.contains_key(name) || !sides_of(name).contains(&true) || was_alone(name));
            for name in merged.keys() {
                let record = secret.current.records.get(name).or_else(|| secret.new.records.get(name));
                if let (Some(record), false) = (record, passwords.contains_key(name)) {
                    passwords.insert(name.clone(), record.clone());
                }
            }
            self.records.insert(shadow, passwords);
        }
    }

    /// Users that the merge left out are members of nothing, where they were members only while they were there.
    pub(super) fn drop_members_that_are_gone(&mut self) {
        let Some((users, merged)) = self.of(File::Passwd) else { return };
        let is_there = |records: &Records, member: &[u8]| records.contains_key(member);
        let is_gone = |member: &[u8]| {
            !is_there(merged, member) && [&users.current, &users.new].iter().any(|side| is_there(&side.records, member))
        };
        let mut changed = vec![];
        for file in [File::Group, File::Gshadow] {
            let Some((sides, groups)) = self.of(file) else { continue };
            let mut groups = groups.clone();
            for (name, record) in &mut groups {
                let here = members(&sides.current, name);
                let was_dangling = |member: &[u8]| !is_there(&users.current.records, member) && here.contains(member);
                for at in file.shape().1 {
                    let list = &mut record[0][*at];
                    let (gone, stay): (Vec<&[u8]>, Vec<&[u8]>) =
                        names_in(list).partition(|member| is_gone(member) && !was_dangling(member));
                    if !gone.is_empty() {
                        *list = stay.join(&b',');
                    }
                }
            }
            changed.push((file, groups));
        }
        self.records.extend(changed);
    }
}

/// Everyone whom the record of `group` names: members, and who may add some.
fn members<'a>(side: &'a Table, group: &Field) -> BTreeSet<&'a [u8]> {
    let lines = side.records.get(group).into_iter().flatten();
    lines.flat_map(|line| line.iter().skip(2)).flat_map(|list| names_in(list)).collect()
}

/// The first record of each number.
fn by_number(records: &Records) -> BTreeMap<u32, (&Field, &Record)> {
    let mut found = BTreeMap::new();
    for (name, record) in records {
        if let Some(number) = number(record) {
            found.entry(number).or_insert((name, record));
        }
    }
    found
}
