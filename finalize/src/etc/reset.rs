//! Puts paths of the live /etc back to what the booted image ships.
//!
//! The image's nodes are built aside in a directory `.etc-reset` of /etc itself, on the same mount; the local ones are
//! copied to where conflicts are kept, durably; then each path is exchanged by one rename. Stopped at any instant, each
//! path is whole: the local one or the image's. A crash leaves `.etc-reset`, which the next reset removes.

use std::{collections::BTreeSet, io, os::fd::AsFd};

use anyhow::{Context, Result, anyhow, ensure};
use cap_std::fs::Dir;

use super::{
    Merge, Sources,
    apply::{self, Links, Roots},
    at, fresh,
    merge::{Reason, Take},
    plan::{Plan, Step, Trees},
    policy::{Keep, Policy, Rule},
    scan::{DIR, Walker},
    tree::{Node, RelPath, Tree},
    view::View,
};
use crate::{stop::Stop, sys};

const ASIDE: &str = ".etc-reset";

/// A reset that is decided, and has written nothing.
#[derive(Debug)]
pub struct Reset<'a> {
    merge: Merge<'a>,
    paths: BTreeSet<RelPath>,
}

/// A path in /etc as a person writes it: absolute, or relative to /etc.
///
/// # Errors
///
/// When it leads out of /etc, or names /etc itself.
pub fn parse(path: &str) -> Result<RelPath> {
    let below = path.strip_prefix("/etc/").unwrap_or(path);
    ensure!(!below.starts_with('/'), "{path} is not below /etc");
    let names: Vec<&str> = below.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    ensure!(!names.is_empty() && !names.contains(&".."), "{path}: name a path below /etc, without \"..\"");
    Ok(RelPath::from(names.join("/").as_str()))
}

impl<'a> Reset<'a> {
    /// Reads what there is at `paths` and below.
    ///
    /// # Errors
    ///
    /// When the image ships no /etc; when neither it nor the live /etc has a path; when something above a path is no
    /// directory in the live /etc; when something cannot be read.
    pub fn plan(sources: Sources<'a>, paths: BTreeSet<RelPath>) -> Result<Self> {
        let new = sources.pristine.context("the booted image ships no /etc: nothing to reset to")?;
        let mut policy = Policy::default();
        for path in &paths {
            // What a rule names is read as a whole.
            let literal = globset::escape(&path.to_string());
            policy.rules.extend([Rule::new(&literal, Keep::Image)?, Rule::new(&format!("{literal}/**"), Keep::Image)?]);
        }
        let merge = Merge::plan(Sources { new, ..sources }, &policy)?;
        let (pristine, current) = (&merge.trees.pristine.nodes, &merge.trees.current.nodes);
        for path in &paths {
            let found = pristine.contains_key(path) || current.contains_key(path);
            ensure!(found, "/etc/{path} exists neither here nor in the image");
            for above in std::iter::successors(path.parent(), RelPath::parent) {
                let is_dir = current.get(&above).is_none_or(Node::is_dir);
                ensure!(is_dir, "/etc/{path}: /etc/{above} is no directory here: reset /etc/{above} itself");
            }
        }
        let mut this = Self { merge, paths };
        let view = this.view()?;
        let differs = |path: &RelPath| view.rows.keys().any(|row| row == path || row.is_below(path));
        let is_nested = |path: &RelPath| this.paths.iter().any(|top| path.is_below(top));
        let paths = this.paths.iter().filter(|path| differs(path) && !is_nested(path)).cloned().collect();
        drop(view);
        this.paths = paths;
        Ok(this)
    }

    /// What differs at the paths and below.
    ///
    /// # Errors
    ///
    /// When something cannot be read.
    pub fn view(&self) -> Result<View<'_>> {
        let mut view = View::of(&self.merge)?;
        let is_in = |path: &RelPath| self.paths.iter().any(|top| path == top || path.is_below(top));
        view.rows.retain(|path, row| row.local.is_some() && is_in(path));
        Ok(view)
    }

    /// Resets the paths in `current`, the live /etc. The local nodes are kept in a new directory of `conflicts.0`, whose
    /// name, `conflicts.1` or that with a number behind it, is returned; none where nothing local was there.
    ///
    /// # Errors
    ///
    /// Names the path. Each path is then reset or untouched.
    pub fn write(&self, current: &Dir, conflicts: (&Dir, &str), stop: &Stop) -> Result<Option<String>> {
        let kept = self.keep(conflicts, stop)?;
        let result = self.put(current, stop);
        let cleaned = sys::remove::tree(current, ASIDE).with_context(|| format!("removing /etc/{ASIDE}"));
        result.and(cleaned)?;
        Ok(kept)
    }

    fn roots<'r>(&'r self, output: &'r Dir, stop: &'r Stop) -> Roots<'r> {
        let Sources { current, new, .. } = self.merge.sources;
        Roots { current, new, output: output.as_fd(), stop, links: Links::Copy }
    }

    /// Copies the local nodes to where they are kept.
    fn keep(&self, (parent, name): (&Dir, &str), stop: &Stop) -> Result<Option<String>> {
        let trees = &self.merge.trees;
        let aside: BTreeSet<_> =
            self.paths.iter().filter(|path| trees.current.nodes.contains_key(*path)).cloned().collect();
        if aside.is_empty() {
            return Ok(None);
        }
        let plan = Plan::keeping(aside, self.merge.plan.skipped.clone());
        let building = format!("{name}.merging");
        let output = fresh(parent, &building).with_context(|| format!("creating {building}"))?;
        apply::set_aside(&plan, &trees.current, self.roots(&output, stop)).map_err(at("keeping"))?;
        let place = || {
            sys::sync::file_system(output.open(".")?)?;
            let mut names = (2..).map(|number| format!("{name}.{number}"));
            let mut free = name.to_owned();
            while parent.symlink_metadata(&free).is_ok() {
                free = names.next().unwrap_or_default();
            }
            sys::rename::move_to(parent, &building, &free)?;
            sys::sync::fsync(parent.open(".")?)?;
            Ok::<_, io::Error>(free)
        };
        place().map(Some).with_context(|| format!("keeping the local files in {name}"))
    }

    /// Builds the image's nodes aside, and exchanges them with the local ones.
    fn put(&self, current: &Dir, stop: &Stop) -> Result<()> {
        let prepare = || {
            let aside = fresh(current, ASIDE)?;
            Ok::<_, io::Error>((fresh(&aside, "new")?, fresh(&aside, "old")?))
        };
        let (new, old) = prepare().with_context(|| format!("creating /etc/{ASIDE}"))?;
        let trees = &self.merge.trees;
        let image = Trees { new: trees.pristine.clone(), ..Trees::default() };
        apply::apply(&self.image(), &image, self.roots(&new, stop)).map_err(at("building"))?;
        new.open(".").and_then(sys::sync::file_system).context("syncing /etc")?;
        for (number, path) in self.paths.iter().enumerate() {
            let exchange = || -> io::Result<()> {
                let mut live = Walker::new(current.as_fd());
                let mut built = Walker::new(new.as_fd());
                let top = self.top(path);
                let there = (live.parent_of(&top)?, top.name());
                match (trees.pristine.nodes.contains_key(path), trees.current.nodes.contains_key(path)) {
                    (true, true) => sys::rename::exchange_between(there, (built.parent_of(&top)?, top.name()))?,
                    (true, false) => sys::rename::move_node((built.parent_of(&top)?, top.name()), there)?,
                    (false, _) => sys::rename::move_node(there, (old.as_fd(), number.to_string().as_bytes()))?,
                }
                sys::sync::fsync(rustix::fs::openat(there.0, c".", DIR, rustix::fs::Mode::empty())?)
            };
            let hint = || format!("resetting /etc/{path} (lsattr shows whether a flag forbids a change)");
            exchange().map_err(|error| anyhow!(error)).with_context(hint)?;
        }
        Ok(())
    }

    /// What is put in place for `path`: the path itself, or the outermost directory above it that is missing here.
    fn top(&self, path: &RelPath) -> RelPath {
        let is_missing = |above: &RelPath| !self.merge.trees.current.nodes.contains_key(above);
        let above = std::iter::successors(path.parent(), RelPath::parent).take_while(is_missing);
        above.last().unwrap_or_else(|| path.clone())
    }

    /// The image's nodes at the paths, below them and above them.
    fn image(&self) -> Plan {
        let Tree { nodes, .. } = &self.merge.trees.pristine;
        let mut plan = Plan::default();
        for path in &self.paths {
            let below =
                nodes.range::<RelPath, _>(path..).take_while(|(other, _)| *other == path || other.is_below(path));
            let above = std::iter::successors(path.parent(), RelPath::parent);
            let above: Vec<_> = above.filter_map(|dir| nodes.get_key_value(&dir)).collect();
            for (path, node) in below.chain(above) {
                let step = Step { take: Take::New, reason: Reason::Image, node: Some(node.clone()), content: None };
                plan.steps.insert(path.clone(), step);
            }
        }
        plan
    }
}
