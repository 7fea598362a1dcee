//! The nodes of the cluster as this node last heard of them: the `NODES` file. A node that holds no replica of the control
//! group could not find the others after a restart without it. It is a memory aid and no promise: when it is lost or damaged,
//! the control group's leader says it again.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message as _;
use proto::v1;
use queue::control::NodeRow;

use super::file::{DirError, replace};
use crate::log::Disk;
use crate::wire::control::{node_from_wire, node_to_wire};

const NAME: &str = "NODES";
/// More than the largest cluster needs, bytes.
const MOST_BYTES: u64 = 1 << 20;

/// Who there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// By id; an incarnation of zeros: added, and not heard of yet.
    pub nodes: BTreeMap<u64, NodeRow>,
    /// The highest id that was ever used.
    pub highest: u64,
}

impl Roster {
    /// What the file says; nothing when there is none that can be believed.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Roster {
        Roster::read(disk, dir).unwrap_or_default()
    }

    fn read(disk: &dyn Disk, dir: &Path) -> Option<Roster> {
        let file = disk.open(&dir.join(NAME)).ok()?;
        let mut bytes = vec![0; file.size().ok()?.min(MOST_BYTES) as usize];
        let read = file.read_at(&mut bytes, 0).ok()?;
        let (sum, body) = bytes[..read].split_first_chunk()?;
        if u32::from_le_bytes(*sum) != crc32c::crc32c(body) {
            return None;
        }
        let row = v1::ControlStateRow::decode(body).ok()?;
        let nodes = row.nodes.into_iter().map(node_from_wire);
        Some(Roster {
            nodes: nodes.collect::<Result<_, _>>().ok()?,
            highest: row.highest_node,
        })
    }

    /// Writes it; a crash leaves the old one or this one.
    ///
    /// # Errors
    /// The disk refused.
    pub fn save(&self, disk: &dyn Disk, dir: &Path) -> Result<(), DirError> {
        let nodes = self.nodes.iter().map(|(id, row)| node_to_wire(*id, row));
        let row = v1::ControlStateRow {
            nodes: nodes.collect(),
            highest_node: self.highest,
            ..Default::default()
        };
        let body = row.encode_to_vec();
        let sum = crc32c::crc32c(&body).to_le_bytes();
        replace(disk, dir, NAME, &[&sum[..], &body].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::SimDisk;

    #[test]
    fn what_is_damaged_is_forgotten_and_what_is_whole_comes_back() -> Result<(), DirError> {
        let disk = SimDisk::new(1 << 20, 7);
        let dir = Path::new("/data");
        assert_eq!(Roster::load(&disk, dir), Roster::default());
        let row = NodeRow {
            incarnation: [9; 16],
            peer_address: "a:7101".into(),
            client_address: "a:7100".into(),
            zone: "z".into(),
        };
        let roster = Roster {
            nodes: [(3, row)].into(),
            highest: 9,
        };
        roster.save(&disk, dir)?;
        assert_eq!(Roster::load(&disk, dir), roster);
        let damaged = disk
            .open(&dir.join(NAME))
            .and_then(|file| file.write_at(&[1], 9));
        assert!(damaged.is_ok());
        assert_eq!(Roster::load(&disk, dir), Roster::default());
        Ok(())
    }
}
