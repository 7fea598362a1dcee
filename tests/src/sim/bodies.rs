//! Which bodies live, by what applying an entry did.

use queue::Effect;
use spool::node::Committed;

use crate::sim::replica::{Place, Replica};

/// Which entries have bodies that live, and where they lie: what the state store knows of the log.
pub fn count_bodies(
    replica: &mut Replica,
    entry: &Committed,
    effects: &[Effect],
) -> Result<(), String> {
    for effect in effects {
        match effect {
            Effect::BodyKept(extent) => {
                let Some(at) = entry.location else {
                    return Err(format!("entry {} is applied and lies nowhere", entry.index));
                };
                let place = replica.live.entry(extent.index);
                place.or_insert(Place { octets: 0, at }).octets += extent.length;
            }
            Effect::BodyDropped(extent) => {
                let place = replica.live.get_mut(&extent.index);
                let left = place.map(|place| {
                    place.octets = place.octets.saturating_sub(extent.length);
                    place.octets
                });
                match left {
                    None => {
                        return Err(format!("a body in entry {} dies twice", extent.index));
                    }
                    Some(0) => drop(replica.live.remove(&extent.index)),
                    Some(_) => {}
                }
            }
            _ => {}
        }
    }
    Ok(())
}
