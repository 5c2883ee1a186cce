//! A plan, as people and programs read it.

use std::fmt;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{FileSystem, MIB, Partition, Plan, size::cluster};
use crate::node::{Content, Device, Node};

/// Text counts what is below this directory; JSON has it all.
const COUNTED: &str = "composefs/objects";

/// Their identifiers are long: below, the deployments are called BOOTED and STAGED.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text: String = self.partitions.iter().map(|partition| format!("{partition}\n")).collect();
        text.push_str("programs\n");
        text.extend(self.programs.iter().map(|program| format!("  {program}\n")));
        for (name, id) in [("BOOTED", Some(&self.booted)), ("STAGED", self.staged.as_ref())] {
            let Some(id) = id.map(ToString::to_string) else { continue };
            writeln!(f, "{name}  {id}")?;
            text = text.replace(&id, name);
        }
        writeln!(f, "disk    {} MiB, {}, {}\n", self.size / MIB, self.format.name(), self.uuid)?;
        f.write_str(&text)
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, start, size) = (self.purpose.name(), self.start / MIB, self.size / MIB);
        writeln!(f, "{name}  {size} MiB at {start} MiB, {}, {}", self.file_system, self.uuid)?;
        writeln!(f, "  # {}", self.purpose.reason())?;
        writeln!(f, "  # {}", Reason(self))?;
        let counted = |node: &&Node| node.path.starts_with(COUNTED) && node.path.to_str() != Some(COUNTED);
        self.nodes.iter().filter(|node| !counted(node)).try_for_each(|node| writeln!(f, "  {node}"))?;
        let files = self.nodes.iter().filter(counted).filter(|node| !matches!(node.content, Content::Dir));
        let (number, bytes) = files.fold((0, 0), |(number, bytes), node| (number + 1, bytes + node.size()));
        if number > 0 {
            writeln!(f, "  and {number} objects of {bytes} bytes below {COUNTED}")?;
        }
        Ok(())
    }
}

/// Why a partition has its size.
struct Reason<'a>(&'a Partition);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Partition { room, size, file_system, .. } = self.0;
        let mib = |bytes: u64| bytes.div_ceil(MIB);
        let name = match file_system {
            FileSystem::Fat(_) => "FAT32",
            FileSystem::Ext4(_) => "ext4",
            FileSystem::Xfs(_) => "XFS",
        };
        write!(f, "{} MiB of files", mib(room.files))?;
        if room.deployments > 0 {
            let more = if room.deployments == 1 { "deployment" } else { "deployments" };
            write!(f, ", {} MiB for {} more {more}", mib(room.later), room.deployments)?;
        }
        let free = size.saturating_sub(room.files + room.later + room.own);
        write!(f, ", {} MiB of {name}'s own, {} MiB free", mib(room.own), free / MIB)?;
        match (room.inodes, file_system) {
            (Some(inodes), _) => write!(f, "; {inodes} inodes"),
            (None, FileSystem::Fat(_)) => write!(f, "; clusters of {} bytes", cluster(*size)),
            (None, _) => Ok(()),
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fat(serial) => write!(f, "FAT32 {serial:08x}"),
            Self::Ext4(uuid) => write!(f, "ext4 {uuid}"),
            Self::Xfs(uuid) => write!(f, "XFS {uuid}"),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match &self.content {
            Content::Dir => 'd',
            Content::Bytes(_) | Content::File(_) | Content::Packed(_) => 'f',
            Content::Sealed(_) => 'v',
            Content::Link(_) => 'l',
            Content::HardLink(_) => 'h',
            Content::Fifo => 'p',
            Content::Device(Device::Block, ..) => 'b',
            Content::Device(Device::Character, ..) => 'c',
        };
        let (mode, uid, gid, path) = (self.meta.mode, self.meta.uid, self.meta.gid, self.path.display());
        write!(f, "{letter} {mode:04o} {uid}:{gid} {path}")?;
        match &self.content {
            Content::Dir | Content::Fifo => {}
            Content::Device(_, number) => write!(f, " {number:#x}")?,
            Content::Bytes(bytes) => write!(f, " {} bytes, sha256:{:.12}", bytes.len(), digest(bytes))?,
            Content::File(_) | Content::Packed(_) | Content::Sealed(_) => write!(f, " {} bytes", self.size())?,
            Content::Link(target) | Content::HardLink(target) => write!(f, " -> {}", target.display())?,
        }
        let mut keys = self.meta.xattrs.iter().map(|(key, _)| String::from_utf8_lossy(key));
        keys.try_for_each(|key| write!(f, " {key}"))
    }
}

impl Plan {
    /// All of it, every node included.
    pub fn to_json(&self) -> Value {
        json!({
            "booted": self.booted,
            "staged": self.staged,
            "arch": self.arch,
            "size": self.size,
            "uuid": self.uuid,
            "format": self.format.name(),
            "time": self.time,
            "partitions": self.partitions.iter().map(partition).collect::<Vec<_>>(),
            "programs": self.programs,
        })
    }
}

fn partition(partition: &Partition) -> Value {
    json!({
        "name": partition.purpose.name(),
        "reason": partition.purpose.reason(),
        "uuid": partition.uuid,
        "start": partition.start,
        "size": partition.size,
        "room": {
            "files": partition.room.files,
            "later": partition.room.later,
            "deployments": partition.room.deployments,
            "own": partition.room.own,
            "inodes": partition.room.inodes,
        },
        "file_system": partition.file_system.to_string(),
        "nodes": partition.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

fn node(node: &Node) -> Value {
    let mut value = match &node.content {
        Content::Dir => json!({ "type": "directory" }),
        Content::Bytes(bytes) => json!({ "type": "file", "size": bytes.len(), "sha256": digest(bytes) }),
        Content::File(_) | Content::Packed(_) => json!({ "type": "file", "size": node.size() }),
        Content::Sealed(_) => json!({ "type": "file", "size": node.size(), "verity": true }),
        Content::Link(target) => json!({ "type": "symlink", "target": target }),
        Content::HardLink(target) => json!({ "type": "hard link", "target": target }),
        Content::Fifo => json!({ "type": "fifo" }),
        Content::Device(Device::Block, number) => json!({ "type": "block device", "number": number }),
        Content::Device(Device::Character, number) => {
            json!({ "type": "character device", "number": number })
        }
    };
    value["path"] = json!(node.path);
    value["mode"] = json!(format!("{:04o}", node.meta.mode));
    value["uid"] = json!(node.meta.uid);
    value["gid"] = json!(node.meta.gid);
    value["mtime"] = json!(node.meta.mtime);
    let xattrs = node.meta.xattrs.iter();
    let xattrs = xattrs.map(|(key, bytes)| (String::from_utf8_lossy(key).into_owned(), json!(hex::encode(bytes))));
    value["xattrs"] = Value::Object(xattrs.collect());
    value
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
