//! One source: a walk through its records, and copies of those that live.

use std::io;

use super::{BodyIndex, Collector, Move, Moves, Step};
use crate::directory::group_of;
use crate::log::Location;
use crate::log::{Found, LogReader, ReadError, Relocated, Walk};
use crate::state::StoreError;

/// Records that one step looks at, at most: of a segment in which nothing lives all are passed over.
const RECORDS_A_STEP: usize = 16_384;

/// A source that is being copied.
#[derive(Debug)]
pub(super) struct Job {
    pub source: u64,
    pub generation: u32,
    pub walk: Walk,
}

/// Why a step did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The disk failed while copies were written: the replica node stops for good.
    #[error("the collector cannot write its copies: {0}")]
    Write(#[source] io::Error),
    /// The metadata cannot be read: the replica node stops.
    #[error("the collector cannot read where bodies lie: {0}")]
    Index(#[from] StoreError),
}

impl Collector {
    /// Copies what lives of the next records. `None`: the source is at its end.
    pub(super) fn copy_some(&mut self, job: &mut Job) -> Result<Option<Step>, CollectError> {
        let mut looked = 0;
        let mut bytes = 0;
        let mut failed = None;
        let mut ended = false;
        let mut bodies = Vec::new();
        let (index, reader, most) = (&self.index, &self.reader, self.config.step_bytes);
        let walked = job.walk.go(|found| {
            looked += 1;
            match found {
                Found::End => ended = true,
                Found::Gap | Found::Entry { intact: false, .. } => {}
                Found::Entry {
                    group: replica,
                    index: at,
                    location,
                    intact: true,
                } => match index.locate(replica, at) {
                    Ok(Some(named)) if named == location => {
                        // What cannot be read is looked at when the rest is moved.
                        if let Ok(body) = read_whole(reader, location, replica, at) {
                            bytes += body.data.len();
                            bodies.push((location, body));
                        }
                    }
                    Ok(_) => {}
                    Err(error) => failed = Some(error),
                },
            }
            !ended && failed.is_none() && bytes < most && looked < RECORDS_A_STEP
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        if let Err(error) = walked {
            tracing::error!(segment = job.source, %error, "a segment cannot be read to its end");
            ended = true;
        }
        if bodies.is_empty() {
            return Ok((!ended).then_some(Step::Worked { bytes: 0 }));
        }
        let wanted = bodies.len();
        let moves = self.write(job.generation, bodies)?;
        Ok(Some(match moves.moves.len() == wanted {
            true => Step::Moved(moves),
            false => Step::NoRoom(moves),
        }))
    }

    /// Makes copies durable.
    pub(super) fn write(
        &mut self,
        generation: u32,
        bodies: Vec<(Location, Relocated)>,
    ) -> Result<Moves, CollectError> {
        let (from, bodies): (Vec<_>, Vec<_>) = bodies.into_iter().unzip();
        let copies = self
            .writer
            .write(generation, &bodies)
            .map_err(CollectError::Write)?;
        let places = from.into_iter().zip(copies.locations);
        let moves: Vec<Move> = places
            .zip(&bodies)
            .map(|((from, to), body)| Move {
                replica: body.group,
                index: body.index,
                from,
                to,
            })
            .collect();
        self.number += 1;
        let copied = moves
            .iter()
            .map(|it| u64::from(it.to.data_len) + super::plan::COPY_OVERHEAD);
        self.copied_bytes += copied.sum::<u64>();
        Ok(Moves {
            number: self.number,
            moves,
            pin: copies.pin,
        })
    }
}

/// A body, with every check that there is: the record's own, the digest that a former copy took, and for a first copy
/// the digest that the edge took.
///
/// # Errors
/// As [`LogReader::read_entry`].
pub fn read_whole(
    reader: &LogReader,
    location: Location,
    replica: u32,
    index: u64,
) -> Result<Relocated, ReadError> {
    let (body, command) = reader.read_body(location, replica, index)?;
    match edge_digest(replica, &command) {
        Some(digest) if digest != body.digest => Err(ReadError::Corrupt {
            segment: location.segment,
            offset: location.offset,
            what: "the body has not the digest that the edge took",
        }),
        _ => Ok(body),
    }
}

/// The digest that the edge took of the body that is the data of the entry with this command; `None`: it is no message that
/// came in one entry.
pub fn edge_digest(replica: u32, command: &[u8]) -> Option<mail::Digest> {
    if command.is_empty() || group_of(replica) == crate::CONTROL_GROUP {
        return None;
    }
    // What cannot be understood is not for us to judge: it was applied long ago.
    let facts = crate::wire::log::decode(command, crate::wire::log::STATE_MACHINE_VERSION);
    match facts.ok()?.command {
        queue::Command::Append(append) if append.facts.chunks == 0 => Some(append.facts.digest),
        _ => None,
    }
}

/// Is `index` of `replica` still said to lie at `location`?
pub(super) fn still_there(
    index: &dyn BodyIndex,
    replica: u32,
    at: u64,
    location: Location,
) -> Result<bool, StoreError> {
    Ok(index.locate(replica, at)? == Some(location))
}
