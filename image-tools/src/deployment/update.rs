//! What an update adds to a machine that runs: its entries, made from those of the running deployment, so that what people have
//! written into these stays.

use anyhow::{Context, Result};
use finalize::{
    boot::{
        BootDir, EntriesPlace, Loader,
        bls::{Entry, Role},
        entries::Entries,
        grub,
        user_cfg::UserCfg,
    },
    cmdline::{Target, words},
    digest::DeploymentId,
    layout,
};

use crate::{
    node::{Content, HostFile, Node},
    system::{Boots, System, os::Os},
};

/// The deployment that runs, as far as its successor needs to know it.
#[derive(Debug)]
pub struct Running {
    /// Its name.
    pub id: DeploymentId,
    /// What it says of itself.
    pub os: Os,
    /// What it adds to the kernel command line.
    pub kargs: Vec<String>,
}

/// An update of it.
#[derive(Debug)]
pub struct Update<'a> {
    /// The deployment that runs.
    pub running: &'a Running,
    /// The next one.
    pub system: &'a System,
    /// What its command line names it by.
    pub target: Target,
}

/// What goes to a file system with entries; paths are relative to its root.
#[derive(Debug, Default)]
pub struct Added {
    /// What the new deployment boots.
    pub kernel: Vec<Node>,
    /// The entries of the next boot, and their directory.
    pub entries: Vec<Node>,
}

/// What an entry boots: keys, and paths in its file system.
type Boot = Vec<(&'static str, String)>;

impl Update<'_> {
    /// What the update adds to a place whose entries are `live`.
    ///
    /// # Errors
    ///
    /// When no entry boots the running deployment, or its entry boots something that an image of this kind does not bring.
    pub fn at(&self, place: &EntriesPlace, live: &Entries) -> Result<Added> {
        let (_, running) = live
            .of_deployment(place.loader, &self.running.id)
            .context("no entry in loader/entries boots the running deployment")?;
        let (boots, kernel) = self.kernel(&running)?;
        let (own, other) = (&self.system.os, &self.running.os);
        // GRUB sorts by file name, in which the version stands before the priority: both roles are named alike.
        let named_by = if place.loader == Loader::SystemdBoot { other } else { own };
        let next = self.successor(&running, &boots);
        let before = running.with("sort-key", &Role::Secondary.sort_key(&own.id));
        let entries: Entries = [
            (Role::Primary.file_name(&own.id, &own.version), next.to_string()),
            (Role::Secondary.file_name(&named_by.id, &named_by.version), before.to_string()),
        ]
        .into_iter()
        .collect();
        let loader = if place.boot == BootDir::Boot { "boot/loader" } else { layout::LOADER };
        let dir = format!("{loader}/{}", layout::ENTRIES_STAGED);
        let file = |name: &str, text: String| Node::file(format!("{dir}/{name}"), Content::Bytes(text.into_bytes()), 0);
        let mut nodes = vec![Node::dir(&dir, 0)];
        nodes.extend(entries.files().map(|(name, text)| file(name, text.to_owned())));
        if live.get(grub::GENERATED).is_some() {
            nodes.push(file(grub::GENERATED, grub::menuentries(&entries)));
        }
        Ok(Added { kernel, entries: nodes })
    }

    /// What the update adds to GRUB's menu of UKIs, and to the ESP.
    ///
    /// # Errors
    ///
    /// When the menu does not boot the running deployment.
    pub fn in_menu(&self, live: &UserCfg) -> Result<Added> {
        let running = &self.running;
        let uki = live.uki(&running.id).context("no menuentry in grub2/user.cfg boots the running deployment")?;
        let (_, kernel) = self.kernel(&Entry::new([("efi", uki.as_str())]))?;
        let items = [(&self.system.os, &self.system.id), (&running.os, &running.id)];
        let menu = grub::user_cfg(&items.map(|(os, id)| (os.title.as_str(), id)));
        let staged = Node::file(layout::USER_CFG_STAGED, Content::Bytes(menu.into_bytes()), 0);
        Ok(Added { kernel, entries: vec![staged] })
    }

    /// What the update boots, beside what `running` boots: as paths in an entry, and as nodes.
    fn kernel(&self, running: &Entry) -> Result<(Boot, Vec<Node>)> {
        let key = match &self.system.boots {
            Boots::Kernel(_) => "linux",
            Boots::Uki(_) => ["efi", "uki"].into_iter().find(|key| running.value(key).is_some()).unwrap_or("efi"),
        };
        let path = running.value(key).with_context(|| {
            let id = self.running.id.short();
            format!("the entry of the running deployment {id} has no line {key}: the image boots otherwise than that")
        })?;
        let dir = parent(path);
        let file =
            |path: &str, from: &HostFile| Node::file(path.trim_start_matches('/'), Content::File(from.clone()), 0);
        Ok(match &self.system.boots {
            Boots::Kernel(kernel) => {
                let dir = format!("{}/{}", parent(dir), layout::kernel_dir(&self.system.id));
                let (vmlinuz, initrd) = (format!("{dir}/vmlinuz"), format!("{dir}/initrd"));
                let node = Node::dir(dir.trim_start_matches('/'), 0);
                let nodes = vec![node, file(&vmlinuz, &kernel.vmlinuz), file(&initrd, &kernel.initrd)];
                (vec![("linux", vmlinuz), ("initrd", initrd)], nodes)
            }
            Boots::Uki(uki) => {
                let at = format!("{dir}/{}", layout::uki(&self.system.id));
                let extra = format!("{at}.extra.d");
                let mut nodes = vec![file(&at, &uki.file)];
                nodes.extend((!uki.addons.is_empty()).then(|| Node::dir(extra.trim_start_matches('/'), 0)));
                nodes.extend(uki.addons.iter().map(|addon| file(&format!("{extra}/{}", addon.name), &addon.file)));
                (vec![(key, at)], nodes)
            }
        })
    }

    /// The entry of the update: that of the running deployment, with what is the update's own in it. Somebody's words, keys and
    /// further initrds stay.
    fn successor(&self, running: &Entry, boots: &[(&str, String)]) -> Entry {
        let os = &self.system.os;
        let sort_key = Role::Primary.sort_key(&os.id);
        let own = running.value("linux").map(parent).unwrap_or_default().to_owned();
        let mut has_initrd = false;
        let line = |line: &str| -> Option<String> {
            let (key, value) = line.trim().split_once(|c: char| c.is_ascii_whitespace())?;
            let value = value.trim();
            let new = match key {
                "title" => os.title.clone(),
                "version" => os.version.clone(),
                "sort-key" => sort_key.clone(),
                "initrd" if parent(value) != own || std::mem::replace(&mut has_initrd, true) => return None,
                "options" => self.options(value),
                _ => boots.iter().find(|(name, _)| *name == key)?.1.clone(),
            };
            Some(format!("{key} {new}"))
        };
        let text = running.to_string();
        let mut line = line;
        let lines: Vec<_> = text.lines().map(|text| line(text).unwrap_or_else(|| text.to_owned())).collect();
        let Ok(entry) = (lines.join("\n") + "\n").parse::<Entry>();
        let set = |entry: Entry, key: &str, value: &str| match entry.value(key) {
            None => entry.with(key, value),
            Some(_) => entry,
        };
        let entry = set(set(entry, "version", &os.version), "sort-key", &sort_key);
        boots.iter().fold(entry, |entry, (key, value)| set(entry, key, value))
    }

    /// A line of options for the update: what names the running deployment names the update, and what the images add to the
    /// command line follows them.
    fn options(&self, line: &str) -> String {
        let names = |word: &str| Target::find(word).is_some();
        let (new, old) = (&self.system.kargs, &self.running.kargs);
        let mut found: Vec<String> = vec![];
        let mut is_named = false;
        for word in words(line) {
            if names(word) {
                is_named = true;
                found.push(self.target.to_string());
            } else if new.iter().any(|own| own == word) || !old.iter().any(|own| own == word) {
                found.push(word.to_owned());
            }
        }
        if is_named {
            let added = new.iter().filter(|word| !old.contains(word) && !found.contains(word));
            let added: Vec<_> = added.cloned().collect();
            found.extend(added);
        }
        found.join(" ")
    }
}

/// The directory of a path in an entry.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}
