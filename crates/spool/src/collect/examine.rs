//! A second look at a segment: by the rows that name it, instead of by what can be read of it.
//!
//! It is slow, because there is no table of rows by segment, and therefore only done where something is wrong: bodies
//! still live in a source after all that its records gave was moved, or the scrubber met damage.

use super::copy::{CollectError, read_whole, still_there};
use super::read::MISSING;
use super::{Collector, Damage, Step};
use crate::log::ReadError;

/// Rows that one step looks at.
const ROWS_A_STEP: usize = 4_096;

/// A segment that is looked at by its rows.
#[derive(Debug)]
pub(super) struct Examination {
    pub segment: u64,
    /// Copy what can be read: the segment is a source.
    pub generation: Option<u32>,
    pub from: (u32, u64),
    pub damaged: usize,
}

impl Collector {
    /// Looks at the next rows. `None`: all rows were looked at.
    pub(super) fn examine_some(
        &mut self,
        it: &mut Examination,
    ) -> Result<Option<Step>, CollectError> {
        let rows = self.index.rows(it.from, ROWS_A_STEP)?;
        let Some(&(replica, index, _)) = rows.last() else {
            return Ok(None);
        };
        it.from = after(replica, index);
        let mut bytes = 0;
        let mut bodies = Vec::new();
        let mut damages = Vec::new();
        for (replica, index, location) in rows {
            if location.segment != it.segment {
                continue;
            }
            match read_whole(&self.reader, location, replica, index) {
                Ok(_) if it.generation.is_none() => {}
                Ok(body) => {
                    bytes += body.data.len();
                    bodies.push((location, body));
                    if bytes >= self.config.step_bytes {
                        it.from = after(replica, index);
                        break;
                    }
                }
                // Recycled meanwhile, or moved: then the rows name another place by now.
                Err(error) if still_there(self.index.as_ref(), replica, index, location)? => {
                    let what = match error {
                        ReadError::Recycled { .. } => MISSING.to_owned(),
                        error => error.to_string(),
                    };
                    damages.push(Damage {
                        replica,
                        index,
                        location,
                        what,
                    });
                }
                Err(_) => {}
            }
        }
        it.damaged += damages.len();
        let moves = match it.generation {
            Some(generation) if !bodies.is_empty() => Some(self.write(generation, bodies)?),
            _ => None,
        };
        Ok(Some(Step::Examined { moves, damages }))
    }
}

fn after(replica: u32, index: u64) -> (u32, u64) {
    match index.checked_add(1) {
        Some(next) => (replica, next),
        None => (replica.saturating_add(1), 0),
    }
}
