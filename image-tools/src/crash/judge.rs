//! Whether a disk is whole: what its boot loader starts exists, and has its own /etc, entirely.
//!
//! It is judged twice: as the power cut left it, and after the repairs that the next boot makes (fsck.fat -a and
//! e2fsck -p). The boot loader's view is [`super::eyes`]; the booted system's is ext4 with its journal replayed.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Range,
    path::Path,
    rc::Rc,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use finalize::{digest::DeploymentId, layout};

use super::{
    case::Part,
    deployed::{Deployed, ext4},
    etc::{Etc, etc, same},
    eyes::{Choice, Eyes, Menu},
    scratch::{ForGrub, Scratch},
    staged::{Staged, Waits, marker},
};
use crate::inspect::{Disk, fat::Fat, grub::GrubFs};

/// What a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The old deployment boots, and is whole.
    Old,
    /// The new one does; where it is only being staged, the old one boots, and the new one is staged as a whole.
    New,
    /// Neither: why.
    Broken(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Old => f.write_str("old"),
            Self::New => f.write_str("new"),
            Self::Broken(why) => write!(f, "BROKEN: {why}"),
        }
    }
}

/// What was seen of a file system, or of two.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// What the boot loader offers, where it reads that here.
    choices: Option<Result<Vec<Choice>, String>>,
    /// Whether the files that entries name are whole.
    files: BTreeMap<String, bool>,
    /// Whether a deployment is whole.
    deployments: BTreeMap<DeploymentId, Result<(), String>>,
    /// Whether the next finalization would find the image's /etc whole.
    original: Option<Result<(), String>>,
    /// The update that waits, where one is staged while the machine is watched.
    waits: Option<Waits>,
}

/// The same, as the power cut left it, and after the repairs of the next boot.
#[derive(Debug, Default)]
struct Twice {
    as_is: Seen,
    repaired: Seen,
}

/// What was seen of the ESP and of the rest, by what had been written to it. Most power cuts differ in one of them only.
#[derive(Debug, Default)]
pub struct Memory {
    esp: HashMap<Vec<Part>, Twice>,
    root: HashMap<Vec<Part>, Twice>,
    /// What GRUB sees of the rest.
    grub: HashMap<Vec<Part>, Rc<Seen>>,
}

fn said<T>(result: Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{error:#}"))
}

/// What the disks of a machine must be.
#[derive(Debug)]
pub struct Judge {
    menu: Menu,
    old: DeploymentId,
    new: DeploymentId,
    /// Where the bytes of kernels, initrds and UKIs are, in their file system.
    files: BTreeMap<String, Vec<Range<u64>>>,
    /// What GRUB reads, if it is GRUB.
    pub for_grub: ForGrub,
    /// The deployments that may boot.
    deployments: Vec<Deployed>,
    /// The new deployment's /etc as its image has it, where a finalization may leave that.
    image_etc: Option<Etc>,
    /// What may be staged, where the machine stages an update.
    staged: Option<Staged>,
}

impl Judge {
    /// Learns from the disk `before` the finalization, and from what it became `after` it.
    ///
    /// # Errors
    ///
    /// When nothing is staged before, or the staged deployment is not what boots after, with a merged /etc.
    pub fn learn(before: &Path, after: &Path) -> Result<Self> {
        let mut judge = Self::of(before)?;
        let dirs = [tempfile::tempdir()?, tempfile::tempdir()?];
        let (first, last) = judge.copies([before, after], &dirs)?;
        judge.new = marker(&ext4(&first)?)?.context("nothing is staged on the disk")?;
        let (old, new) = (judge.old.clone(), judge.new.clone());
        judge.learn_files(&first, &old)?;
        judge.learn_files(&last, &new)?;
        let merged = etc(&ext4(&last)?, &new, layout::ETC)?;
        let image_etc = etc(&ext4(&last)?, &new, layout::ETC_ORIG)?;
        ensure!(image_etc != merged, "the merged /etc is the image's: without local changes nothing is proven");
        judge.deployments = vec![
            Deployed { etc: vec![etc(&ext4(&first)?, &old, layout::ETC)?], id: old, mark: layout::ETC },
            Deployed { id: new, mark: layout::ETC_ORIG, etc: vec![merged] },
        ];
        judge.image_etc = Some(image_etc);
        Ok(judge)
    }

    /// The same for a boot of the new deployment with the disk `before`, which became `after`.
    ///
    /// # Errors
    ///
    /// When this boot was not the new deployment's, or has left `etc.orig` behind.
    pub fn at_next_boot(mut self, before: &Path, after: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        for (disk, leaves_original) in [(before, true), (after, false)] {
            let disk = Scratch::copy(disk, dir.path(), &self.for_grub)?;
            ensure!(self.boots_first(&disk)? == Verdict::New, "the new deployment does not boot");
            let ext4 = ext4(&disk)?;
            let original = format!("/{}/{}", layout::deployment(&self.new), layout::ETC_ORIG);
            let there = if leaves_original { "missing before" } else { "still there after" };
            ensure!(ext4.exists(original.as_str())? == leaves_original, "{original} is {there} the report");
            let seen = etc(&ext4, &self.new, layout::ETC)?;
            let new = self.deployments.iter_mut().find(|deployed| deployed.id == self.new);
            let new = new.context("the new deployment is not known")?;
            new.etc.push(seen);
            new.mark = layout::ETC;
        }
        Ok(self)
    }

    /// Learns from the disk `before` and `after` a program that has staged an update, or changed the order of the entries.
    ///
    /// # Errors
    ///
    /// When it has done neither.
    pub fn of_program(before: &Path, after: &Path) -> Result<Self> {
        let mut judge = Self::of(before)?;
        let dirs = [tempfile::tempdir()?, tempfile::tempdir()?];
        let (first, last) = judge.copies([before, after], &dirs)?;
        let old = judge.old.clone();
        judge.learn_files(&first, &old)?;
        let mut booting = vec![old.clone()];
        match marker(&ext4(&last)?)? {
            Some(new) if marker(&ext4(&first)?)?.as_ref() != Some(&new) => {
                judge.new = new;
                judge.staged = Some(Staged::learn((&first, &judge.eyes(&first)?), (&last, &judge.eyes(&last)?))?);
            }
            _ => {
                judge.new = first_of(&judge.eyes(&last)?)?.id;
                ensure!(judge.new != old, "the program has staged no update, and not changed what boots first");
                judge.learn_files(&last, &judge.new.clone())?;
                booting.push(judge.new.clone());
            }
        }
        for id in booting {
            let etc = [etc(&ext4(&first)?, &id, layout::ETC)?, etc(&ext4(&last)?, &id, layout::ETC)?];
            judge.deployments.push(Deployed { id, mark: layout::ETC, etc: etc.into() });
        }
        Ok(judge)
    }

    /// What is known of a disk before anything happens.
    fn of(disk: &Path) -> Result<Self> {
        let disk = Disk::open(disk, None)?;
        let report = disk.report()?;
        let old = report.entries.iter().find_map(|entry| entry.deployment.clone()).context("no deployment boots")?;
        Ok(Self {
            menu: Menu::of(&disk, report.loader.context("the disk has no boot loader")?)?,
            new: old.clone(),
            old,
            files: BTreeMap::new(),
            for_grub: ForGrub::of(&disk)?,
            deployments: vec![],
            image_etc: None,
            staged: None,
        })
    }

    fn copies(&self, disks: [&Path; 2], dirs: &[tempfile::TempDir; 2]) -> Result<(Scratch, Scratch)> {
        let [first, last] = [0, 1].map(|n: usize| Scratch::copy(disks[n], dirs[n].path(), &self.for_grub));
        Ok((first?, last?))
    }

    /// Where the files lie that boot the deployment, which must be the first one on that disk.
    fn learn_files(&mut self, disk: &Scratch, id: &DeploymentId) -> Result<()> {
        let eyes = self.eyes(disk)?;
        let choice = first_of(&eyes)?;
        ensure!(choice.id == *id, "{} boots first, not {}: was it finalized?", choice.id.short(), id.short());
        for file in choice.files {
            let blocks = eyes.blocks(&file)?;
            self.files.insert(file, blocks);
        }
        Ok(())
    }

    /// What the disk is, as it is and after the repairs of the next boot. What was seen of the same bytes before, `memory`
    /// knows.
    ///
    /// # Errors
    ///
    /// When it cannot be looked at; that it is broken is no error.
    pub fn judge(&self, scratch: &Scratch, memory: &mut Memory) -> Result<Verdict> {
        let applied = &scratch.applied;
        if !memory.esp.contains_key(&applied.esp) {
            memory.esp.insert(applied.esp.clone(), self.look_at_esp(scratch)?);
        }
        if !memory.grub.contains_key(&applied.grub) {
            memory.grub.insert(applied.grub.clone(), Rc::new(self.look_as_grub(scratch)?));
        }
        if !memory.root.contains_key(&applied.rest) {
            let grub = &memory.grub[&applied.grub];
            memory.root.insert(applied.rest.clone(), self.look_at_root(scratch, grub)?);
        }
        let (esp, root) = (&memory.esp[&applied.esp], &memory.root[&applied.rest]);
        let verdict = match self.whole(&esp.as_is, &root.as_is) {
            Ok(verdict) => verdict,
            Err(why) => return Ok(Verdict::Broken(format!("{why:#}"))),
        };
        Ok(match self.whole(&esp.repaired, &root.repaired) {
            Ok(_) => verdict,
            Err(why) => Verdict::Broken(format!("after the repairs of the next boot: {why:#}")),
        })
    }

    /// The partition that holds kernels or UKIs, and where their bytes are in it: nothing may write there, or they would
    /// have to be read again after each power cut.
    pub fn kernels(&self) -> (&str, impl Iterator<Item = &Range<u64>>) {
        let partition = match self.menu {
            Menu::Esp | Menu::UserCfg => "esp",
            Menu::Generated | Menu::Blsuki => &self.for_grub.partition,
        };
        (partition, self.files.values().flatten())
    }

    /// The deployment that a verdict speaks of; none of a broken disk.
    pub fn deployment(&self, verdict: &Verdict) -> Option<&DeploymentId> {
        match verdict {
            Verdict::New if self.staged.is_some() => Some(&self.old),
            Verdict::Old => Some(&self.old),
            Verdict::New => Some(&self.new),
            Verdict::Broken(_) => None,
        }
    }

    /// Which deployment the boot loader starts, whatever else is on the disk.
    ///
    /// # Errors
    ///
    /// When it starts neither.
    pub fn boots_first(&self, disk: &Scratch) -> Result<Verdict> {
        let choices = self.eyes(disk)?.choices()?;
        match choices.first().map(|choice| &choice.id) {
            Some(id) if *id == self.old => Ok(Verdict::Old),
            Some(id) if *id == self.new => Ok(Verdict::New),
            other => bail!("{other:?} boots first, which is neither the old nor the new deployment"),
        }
    }

    fn look_at_esp(&self, scratch: &Scratch) -> Result<Twice> {
        if matches!(self.menu, Menu::Generated | Menu::Blsuki) {
            return Ok(Twice::default());
        }
        let look = |eyes: &Eyes| {
            let choices = (self.menu == Menu::Esp).then(|| said(eyes.choices()));
            let waits = self.staged.as_ref().map(|staged| staged.on_esp(&eyes.esp));
            Seen { files: self.files_seen(eyes, choices.as_ref()), choices, waits, ..Seen::default() }
        };
        let eyes = self.eyes(scratch)?;
        let as_is = look(&eyes);
        let repaired = match scratch.repaired_esp() {
            Ok(copy) => look(&Eyes { esp: Fat::at(&copy, 0), ..eyes }),
            Err(why) => Seen { choices: Some(Err(format!("{why:#}"))), ..Seen::default() },
        };
        Ok(Twice { as_is, repaired })
    }

    /// The rest as GRUB sees it, which replays no journal.
    fn look_as_grub(&self, scratch: &Scratch) -> Result<Seen> {
        let eyes = self.eyes(scratch)?;
        let choices = (self.menu != Menu::Esp).then(|| said(eyes.choices()));
        let files = match self.menu {
            Menu::Generated | Menu::Blsuki => self.files_seen(&eyes, choices.as_ref()),
            Menu::Esp | Menu::UserCfg => BTreeMap::new(),
        };
        Ok(Seen { choices, files, ..Seen::default() })
    }

    /// The same, and the deployments as the booted system sees them.
    fn look_at_root(&self, scratch: &Scratch, grub: &Seen) -> Result<Twice> {
        let deployments = || self.deployments.iter().map(|it| (it.id.clone(), said(it.is_whole(scratch)))).collect();
        let with = |seen, is_repaired| {
            let original = Some(said(self.original_is_whole(scratch)));
            let waits = self.staged.as_ref().map(|staged| staged.on_root(scratch, is_repaired));
            Seen { deployments: deployments(), original, waits, ..seen }
        };
        let look = || Ok(with(self.look_as_grub(scratch)?, true));
        let as_is = with(grub.clone(), false);
        let repaired = scratch.repaired("boot", || scratch.repaired("root", look));
        let gave_up = |why: anyhow::Error| {
            let all = self.deployments.iter().map(|it| (it.id.clone(), Err(format!("{why:#}"))));
            Seen { choices: Some(Err(format!("{why:#}"))), deployments: all.collect(), ..Seen::default() }
        };
        Ok(Twice { as_is, repaired: repaired.unwrap_or_else(gave_up) })
    }

    /// Whether `etc.orig` is the image's /etc, where there is one: the next finalization merges from it.
    fn original_is_whole(&self, scratch: &Scratch) -> Result<()> {
        let Some(image_etc) = &self.image_etc else { return Ok(()) };
        let ext4 = ext4(scratch)?;
        let original = format!("{}/{}", layout::deployment(&self.new), layout::ETC_ORIG);
        if !ext4.exists(format!("/{original}").as_str())? {
            return Ok(());
        }
        same(&etc(&ext4, &self.new, layout::ETC_ORIG)?, std::slice::from_ref(image_etc))
            .with_context(|| format!("the next finalization merges from {original}, which is not whole"))
    }

    /// Whether the files that these entries name are whole; all files where the entries are elsewhere.
    fn files_seen(&self, eyes: &Eyes, choices: Option<&Result<Vec<Choice>, String>>) -> BTreeMap<String, bool> {
        let named = |path: &String| {
            let names = |choices: &Vec<Choice>| choices.iter().any(|choice| choice.files.contains(path));
            choices.is_none_or(|choices| choices.as_ref().is_ok_and(names))
        };
        let whole = |(path, wanted): (&String, &Vec<Range<u64>>)| {
            (path.clone(), eyes.blocks(path).is_ok_and(|blocks| blocks == *wanted))
        };
        self.files.iter().filter(|(path, _)| named(path)).map(whole).collect()
    }

    fn eyes(&self, disk: &Scratch) -> Result<Eyes> {
        let partition = |name: &str| disk.partition(name).with_context(|| format!("the disk has no partition {name}"));
        let (fs, prefix) = disk.partition("boot").map_or((partition("root")?, "/boot"), |boot| (boot, ""));
        Ok(Eyes { menu: self.menu, esp: Fat::at(partition("esp")?, 0), grub: GrubFs::at(fs), prefix })
    }

    /// Which deployment boots; an error says what is broken about it.
    fn whole(&self, esp: &Seen, root: &Seen) -> Result<Verdict> {
        let choices = esp.choices.as_ref().or(root.choices.as_ref()).context("nobody has looked")?;
        let choices = choices.as_ref().map_err(|why| anyhow!("{why}"))?;
        for choice in choices {
            for file in &choice.files {
                let whole = esp.files.get(file).or(root.files.get(file));
                // A file that no entry of ours names before or after is somebody else's.
                ensure!(whole != Some(&false), "{file}, which an entry of {} names, is not whole", choice.id.short());
            }
        }
        let state = |id: &DeploymentId| match root.deployments.get(id) {
            Some(Ok(())) => Ok(()),
            Some(Err(why)) => Err(anyhow!("{why}")),
            None => Err(anyhow!("{} boots first, which is neither the old nor the new deployment", id.short())),
        };
        state(&self.old).context("the old deployment has changed")?;
        if let Some(Err(why)) = &root.original {
            bail!("{why}");
        }
        let first = &choices.first().context("there is no entry")?.id;
        state(first).with_context(|| format!("{} boots", first.short()))?;
        let waiting = match &root.waits {
            Some(waits) => waits.whole_with(esp.waits.as_ref())?,
            None => None,
        };
        Ok(if *first == self.new || waiting == Some(&self.new) { Verdict::New } else { Verdict::Old })
    }
}

fn first_of(eyes: &Eyes) -> Result<Choice> {
    eyes.choices()?.into_iter().next().context("there is no entry")
}
