//! What stands where in a segment of the log, for tests that damage it. Reads the format as it is on disk (see
//! `spool::log::record`) without believing any of the program's own code.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const BLOCK: usize = 4096;
/// Octets of a record's header; the payload follows.
pub const HEADER: usize = 48;

/// A record of a segment.
#[derive(Clone, Debug)]
pub struct Record {
    /// The segment's file.
    pub file: PathBuf,
    /// Its kind as a number: 1 ENTRY, 2 HARDSTATE, 3 STATE, 6 RELOCATED_BODY, 7 DURABLE_MARK, 9 BATCH_END. There are no others:
    /// 4 and 5 are kept for cuts of the log's end and for snapshots, 8 for nothing, and no program ever wrote one.
    pub kind: u8,
    /// What the log calls the replica that it is of.
    pub group: u32,
    /// Raft index.
    pub index: u64,
    /// Of the header, in the file.
    pub offset: usize,
    /// Octets of the payload.
    pub payload: usize,
}

impl Record {
    /// The entry that it is of, as the program names it in its own log lines: group and index.
    pub fn entry(&self) -> (u32, u64) {
        (self.group & 0xffff, self.index)
    }

    /// An octet of the body in it, which has a hundred and more.
    pub fn in_body(&self) -> usize {
        self.offset + HEADER + self.payload - 100
    }

    /// The collector wrote its segment, which is no part of the Raft log.
    pub fn is_collected(&self) -> bool {
        self.file.extension().is_none_or(|of| of != "g0")
    }
}

/// The records of all segments in a node's log, oldest segment first, those of the collector last.
///
/// # Errors
/// A segment cannot be read, or has a kind of record that is not known here: then nobody flips its octets yet.
pub fn records(data: &Path) -> Result<Vec<Record>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(data.join("log"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|file| {
        file.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("seg-"))
    });
    files.sort();
    let mut all = Vec::new();
    for file in files {
        of_segment(&file, &mut all)?;
    }
    Ok(all)
}

fn of_segment(file: &Path, all: &mut Vec<Record>) -> Result<()> {
    let octets = std::fs::read(file)?;
    let number = |at: usize| -> Result<u32> {
        let bytes = octets.get(at..at + 4).context("a header is whole")?;
        Ok(u32::from_le_bytes(bytes.try_into()?))
    };
    let segment = number(16)?;
    let mut at = BLOCK;
    while octets.len() >= at + HEADER {
        let (kind, version) = (octets[at + 4], octets[at + 6]);
        if version != 1 || number(at + 8)? != segment {
            break;
        }
        ensure!(
            matches!(kind, 1..=3 | 6 | 7 | 9),
            "a record of kind {kind} at {at} of {}",
            file.display()
        );
        let payload = number(at)? as usize;
        all.push(Record {
            file: file.to_owned(),
            kind,
            group: number(at + 12)?,
            index: u64::from(number(at + 20)?),
            offset: at,
            payload,
        });
        at += HEADER + payload;
        if kind == 9 {
            at = at.next_multiple_of(BLOCK);
        }
    }
    Ok(())
}

/// Turns over one bit of a file. Twice is as if nothing had been.
pub fn flip(file: &Path, at: usize) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let open = std::fs::File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    open.read_exact_at(&mut byte, at as u64)
        .with_context(|| format!("octet {at} of {}", file.display()))?;
    byte[0] ^= 1;
    open.write_all_at(&byte, at as u64)?;
    Ok(())
}
