//! Whether a disk is whole: what its boot loader starts exists, and has its own /etc, entirely.
//!
//! It is judged twice: as the power cut left it, and after the repairs that the next boot makes (fsck.fat -a and
//! e2fsck -p). The boot loader's view is [`super::eyes`]; the booted system's is ext4 with its journal replayed.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ext4_view::Ext4;
use finalize::{
    boot::Loader,
    digest::DeploymentId,
    layout,
    staged::{Marker, Origin},
};
use xshell::cmd;

use super::{
    case::Part,
    etc::{Etc, etc, same},
    eyes::{Choice, Eyes, Menu},
    scratch::{ForGrub, Scratch},
};
use crate::{
    inspect::{self, Disk, fat::Fat, grub::GrubFs, xfs},
    program, sparse,
    verity::BLOCK,
};

/// What a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The old deployment boots, and is whole.
    Old,
    /// The new one does.
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
    old_etc: Vec<Etc>,
    /// The merged /etc; and what a boot has made of it, where one is watched.
    new_etc: Vec<Etc>,
    /// What is there of the new deployment when its merged /etc is in place.
    mark: &'static str,
    /// The new deployment's /etc as its image has it.
    image_etc: Vec<Etc>,
}

impl Judge {
    /// Learns from the disk `before` the finalization, and from what it became `after` it.
    ///
    /// # Errors
    ///
    /// When nothing is staged before, or the staged deployment is not what boots after, with a merged /etc.
    pub fn learn(before: &Path, after: &Path) -> Result<Self> {
        let disk = Disk::open(before, None)?;
        let report = disk.report()?;
        let staged = disk.root()?.read(&format!("/{}", layout::STAGED))?.context("nothing is staged on the disk")?;
        let mut judge = Self {
            menu: menu(&disk, report.loader.context("the disk has no boot loader")?)?,
            old: report.entries.iter().find_map(|entry| entry.deployment.clone()).context("no deployment boots")?,
            new: staged.parse::<Marker>()?.depl_id,
            files: BTreeMap::new(),
            for_grub: for_grub(&disk)?,
            old_etc: vec![],
            new_etc: vec![],
            mark: layout::ETC_ORIG,
            image_etc: vec![],
        };
        let dirs = [tempfile::tempdir()?, tempfile::tempdir()?];
        let copy = |disk, dir: &tempfile::TempDir| Scratch::copy(disk, dir.path(), &judge.for_grub);
        let (first, last) = (copy(before, &dirs[0])?, copy(after, &dirs[1])?);
        judge.old_etc = vec![etc(&ext4(&first)?, &judge.old, layout::ETC)?];
        judge.new_etc = vec![etc(&ext4(&last)?, &judge.new, layout::ETC)?];
        for (disk, id) in [(&first, &judge.old), (&last, &judge.new)] {
            let eyes = judge.eyes(disk)?;
            let choice = eyes.choices()?.into_iter().next().context("there is no entry")?;
            ensure!(choice.id == *id, "{} boots first, not {}: was it finalized?", choice.id.short(), id.short());
            for file in choice.files {
                let blocks = eyes.blocks(&file)?;
                judge.files.insert(file, blocks);
            }
        }
        judge.image_etc = vec![etc(&ext4(&last)?, &judge.new, layout::ETC_ORIG)?];
        let is_merged = judge.image_etc != judge.new_etc;
        ensure!(is_merged, "the merged /etc is the image's: without local changes nothing is proven");
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
            self.new_etc.push(etc(&ext4, &self.new, layout::ETC)?);
        }
        self.mark = layout::ETC;
        Ok(self)
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
            Seen { files: self.files_seen(eyes, choices.as_ref()), choices, ..Seen::default() }
        };
        let eyes = self.eyes(scratch)?;
        let as_is = look(&eyes);
        let repaired = match repaired_esp(scratch.partition("esp").context("the disk has no ESP")?) {
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
        let deployments = || {
            let all = [(&self.old, &self.old_etc, layout::ETC), (&self.new, &self.new_etc, self.mark)];
            all.map(|(id, wanted, mark)| (id.clone(), said(deployment_is_whole(scratch, (id, mark), wanted)))).into()
        };
        let with = |seen| {
            let original = Some(said(self.original_is_whole(scratch)));
            Seen { deployments: deployments(), original, ..seen }
        };
        let look = || Ok(with(self.look_as_grub(scratch)?));
        let as_is = with(grub.clone());
        let repaired = scratch.repaired("boot", || scratch.repaired("root", look));
        let gave_up = |why: anyhow::Error| {
            let all = [&self.old, &self.new].map(|id| (id.clone(), Err(format!("{why:#}"))));
            Seen { choices: Some(Err(format!("{why:#}"))), deployments: all.into(), ..Seen::default() }
        };
        Ok(Twice { as_is, repaired: repaired.unwrap_or_else(gave_up) })
    }

    /// Whether `etc.orig` is the image's /etc, where there is one: the next finalization merges from it.
    fn original_is_whole(&self, scratch: &Scratch) -> Result<()> {
        let ext4 = ext4(scratch)?;
        let original = format!("{}/{}", layout::deployment(&self.new), layout::ETC_ORIG);
        if !ext4.exists(format!("/{original}").as_str())? {
            return Ok(());
        }
        same(&etc(&ext4, &self.new, layout::ETC_ORIG)?, &self.image_etc)
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
        Ok(if *first == self.new { Verdict::New } else { Verdict::Old })
    }
}

/// The physical root, its journal replayed.
fn ext4(disk: &Scratch) -> Result<Ext4> {
    let root = disk.partition("root").context("the disk has no partition root")?;
    Ext4::load_from_path(root).context("mounting the root file system")
}

/// Whether the deployment is there, with the /etc that it must have; `mark` is what is there when that is in place.
fn deployment_is_whole(scratch: &Scratch, (id, mark): (&DeploymentId, &str), wanted: &[Etc]) -> Result<()> {
    let ext4 = ext4(scratch)?;
    let mark = format!("/{}/{mark}", layout::deployment(id));
    ensure!(ext4.exists(mark.as_str())?, "{mark} is missing");
    same(&etc(&ext4, id, layout::ETC)?, wanted).with_context(|| format!("the /etc of {}", id.short()))?;
    let image = format!("/{}", layout::image(id));
    ensure!(ext4.exists(image.as_str())?, "{image} is missing");
    let origin = format!("/{}/{}", layout::deployment(id), layout::origin(id));
    let origin = ext4.read_to_string(origin.as_str()).with_context(|| format!("reading {origin}"))?;
    origin.parse::<Origin>().context("reading the origin file")?;
    Ok(())
}

/// Where GRUB's files are, and the journal there: inode 8 of ext4. XFS's log is taken for something that it reads.
fn for_grub(disk: &Disk) -> Result<ForGrub> {
    let mut inode = inspect::ext4::Inode::default();
    let partition = &disk.boot()?.partition;
    if !xfs::is_at(&disk.path, partition.start)? {
        let ext4 = inspect::ext4::Ext4::at(&disk.path, partition.start);
        inode = ext4.inodes(&["<8>".to_owned()])?.pop().unwrap_or_default();
    }
    let bytes = |(_, first, count): &(u64, u64, u64)| first * BLOCK as u64..(first + count) * BLOCK as u64;
    Ok(ForGrub { partition: partition.name.clone(), journal: inode.extents.iter().map(bytes).collect() })
}

/// A copy of the ESP, after what a boot does to it.
fn repaired_esp(esp: &Path) -> Result<PathBuf> {
    let copy = esp.with_extension("repaired");
    sparse::copy(esp, &copy)?;
    let shell = program::shell()?;
    let output = program::output(cmd!(shell, "fsck.fat -a {copy}"))?;
    match output.status.code() {
        // Nothing to do, or done (fsck.fat(8), "EXIT STATUS").
        Some(0 | 1) => Ok(copy),
        _ => bail!("fsck.fat -a gives up: {}", String::from_utf8_lossy(&output.stdout).trim()),
    }
}

/// What the boot loader reads on this machine.
fn menu(disk: &Disk, loader: Loader) -> Result<Menu> {
    if loader == Loader::SystemdBoot {
        return Ok(Menu::Esp);
    }
    let boot = disk.boot()?;
    let config = format!("{}/{}/grub.cfg", boot.prefix, layout::GRUB);
    let text = boot.grub.read(&config)?.context("there is no grub.cfg")?;
    Ok(match text {
        text if text.contains(layout::USER_CFG) => Menu::UserCfg,
        text if text.contains("blscfg") => Menu::Blsuki,
        _ => Menu::Generated,
    })
}
