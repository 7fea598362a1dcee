//! Where a snapshot is kept until it is installed: `<data directory>/snap-in/<group>/<id>`. Nothing in there outlives a
//! start: what was not installed is sent again, and what was is in the log and in the metadata.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::record::HEADER;
use super::{Checker, Damage, Record};

/// Octets after which what is staged is flushed: one flush of everything at the end would hold up everybody's mail.
const SYNC_BYTES: u64 = 16 << 20;

/// The directory of one node.
#[derive(Clone, Debug)]
pub struct Staging {
    dir: PathBuf,
}

/// A snapshot that is being written, or is complete.
#[derive(Debug)]
pub struct Staged {
    /// The file.
    pub path: PathBuf,
    file: File,
    unsynced: u64,
    /// Octets so far.
    pub octets: u64,
}

impl Staging {
    /// Of a data directory.
    pub fn new(data: &Path) -> Staging {
        Staging {
            dir: data.join("snap-in"),
        }
    }

    /// Removes everything: at a start none of it is of use.
    ///
    /// # Errors
    /// The file system's.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Begins a snapshot; an older one of the group is removed.
    ///
    /// # Errors
    /// The file system's.
    pub fn begin(&self, group: u32, id: u64) -> io::Result<Staged> {
        let dir = self.dir.join(group.to_string());
        self.remove_group(group)?;
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{id:016x}"));
        let file = File::options().write(true).create_new(true).open(&path)?;
        Ok(Staged {
            path,
            file,
            unsynced: 0,
            octets: 0,
        })
    }

    /// Removes what is staged of a group.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove_group(&self, group: u32) -> io::Result<()> {
        match fs::remove_dir_all(self.dir.join(group.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads a complete snapshot again, record by record, and checks it again: the disk had it in between.
    ///
    /// # Errors
    /// The file system's; [`io::ErrorKind::InvalidData`] with a [`Damage`]; or `take`'s.
    pub fn read<E: From<io::Error>>(
        &self,
        group: u32,
        id: u64,
        mut take: impl FnMut(Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let damaged = |damage: Damage| io::Error::new(io::ErrorKind::InvalidData, damage);
        let path = self.dir.join(group.to_string()).join(format!("{id:016x}"));
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut checker = Checker::new(id);
        loop {
            let mut header = [0; HEADER];
            match file.read_exact(&mut header) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                other => other?,
            }
            let mut payload = vec![0; checker.payload_len(&header).map_err(damaged)?];
            file.read_exact(&mut payload)?;
            let record = checker.record(&header, Bytes::from(payload));
            take(record.map_err(damaged)?)?;
        }
        Ok(checker.finish().map_err(damaged)?)
    }
}

impl Staged {
    /// Adds octets.
    ///
    /// # Errors
    /// The file system's: remove it then.
    pub fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        self.file.write_all(octets)?;
        self.octets += octets.len() as u64;
        self.unsynced += octets.len() as u64;
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// All is there: makes it durable, with its directories, and lets go of the page cache, so that it is read from the
    /// disk when it is installed.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?;
        for dir in self.path.ancestors().skip(1).take(3) {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    }
}
