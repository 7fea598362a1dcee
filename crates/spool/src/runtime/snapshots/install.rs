//! Installing a staged snapshot, in a thread of its own: bodies into the log, rows into a slot of the store, then one
//! batch that makes both the group's. Only after that is Raft told, and the log made to begin at the snapshot. A crash
//! before the batch leaves the old state; one after it is completed at the next start (see `recover`).

use std::io;
use std::sync::mpsc::{self, Sender};

use bytes::Bytes;

use crate::directory::group_of;
use crate::event::LogEvent;
use crate::log::{Location, WriteError};
use crate::node::Made;
use crate::runtime::Helper;
use crate::snapshot::{Record, Staging};
use crate::state::{Import, Importer, StoreError, Switched};

/// Octets of bodies in one write to the log.
const WRITE_BYTES: usize = 2 << 20;

/// Why a snapshot was not installed. The state is the old one; the replica node opens again with it.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The staged file cannot be read, or is not what was staged.
    #[error("what was staged of the snapshot cannot be read: {0}")]
    Staged(#[from] io::Error),
    /// The metadata store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log.
    #[error("the snapshot's bodies cannot be written: {0}")]
    Log(String),
    /// The node ends.
    #[error("this node ends")]
    Ends,
}

/// Installs what is staged into the rows of a replica, which is named as the log does. Blocking; for as long as it takes to write it.
///
/// # Errors
/// [`Failed`]: nothing has changed.
pub fn install(
    staging: &Staging,
    helper: &Helper,
    replica: u32,
    made: &Made,
    importer: &Importer,
    log: &Sender<LogEvent>,
) -> Result<Switched, Failed> {
    let mut bodies = Bodies {
        helper,
        log,
        replica,
        id: made.id,
        waiting: Vec::new(),
        octets: 0,
    };
    let mut import = importer.begin(replica)?;
    staging.read(group_of(replica), made.id, |record| {
        match record {
            Record::Row { table, key, value } => import.row(table, &key, &value)?,
            Record::Body {
                index,
                extents,
                octets,
                data,
            } => bodies.add(index, extents, octets, data, &mut import)?,
            Record::End => {}
        }
        match bodies.helper.must_end() {
            true => Err(Failed::Ends),
            false => Ok(()),
        }
    })?;
    bodies.write(&mut import)?;
    Ok(import.switch((made.index, made.term))?)
}

/// Bodies on their way into the log.
struct Bodies<'a> {
    helper: &'a Helper,
    log: &'a Sender<LogEvent>,
    replica: u32,
    id: u64,
    waiting: Vec<(u64, u32, u64, Bytes)>,
    octets: usize,
}

impl Bodies<'_> {
    fn add(
        &mut self,
        index: u64,
        extents: u32,
        octets: u64,
        data: Bytes,
        import: &mut Import,
    ) -> Result<(), Failed> {
        self.octets += data.len();
        self.waiting.push((index, extents, octets, data));
        match self.octets >= WRITE_BYTES {
            true => self.write(import),
            false => Ok(()),
        }
    }

    fn write(&mut self, import: &mut Import) -> Result<(), Failed> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.octets = 0;
        let waiting = std::mem::take(&mut self.waiting);
        let (reply, answer) = mpsc::channel();
        let bodies = waiting.iter().map(|it| (it.0, it.3.clone())).collect();
        let _ = self.log.send(LogEvent::Bodies {
            who: self.id,
            replica: self.replica,
            bodies,
            reply,
        });
        let locations: Result<Vec<Location>, WriteError> =
            answer.recv().map_err(|_| Failed::Ends)?;
        let locations = locations.map_err(|error| Failed::Log(error.to_string()))?;
        for ((index, extents, octets, _), location) in waiting.into_iter().zip(locations) {
            import.body(index, extents, octets, location)?;
        }
        Ok(())
    }
}
