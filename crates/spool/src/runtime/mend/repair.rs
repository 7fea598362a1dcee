//! Repairs: a damaged body that something refers to is fetched, proved, written again, and its reference moved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Mender;
use super::proof::Proof;
use crate::collect::BodyIndex as _;
use crate::directory::group_of;
use crate::event::{LogEvent, Mailboxes, StateEvent};
use crate::log::Location;
use crate::state::Sworn;

/// Pause after a repair: at most 20 entries a second, 25 MiB of big ones. Mail must not wait for repairs.
const MEND_PAUSE: Duration = Duration::from_millis(50);

/// Bodies that could not be mended (no other replica had them, no room) are tried again after this.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// What the rows say of damaged entries, by replica: looked up when it is needed, once a round, because all messages are
/// passed by for it.
type Said = Option<BTreeMap<u32, Vec<Sworn>>>;

enum Mending {
    /// Written soon.
    UnderWay,
    /// Nothing refers to the damage.
    Over,
}

impl Mender {
    /// Mends what is damaged and referred to, one after another, until the node ends.
    pub async fn run(self, mail: Mailboxes, log: Sender<LogEvent>) {
        loop {
            let all: Vec<_> = self.damaged().iter().map(|(key, at)| (*key, *at)).collect();
            let mut said = None;
            for ((group, index), from) in all {
                match self.mend(&mail, &log, group, index, from, &mut said).await {
                    // Until the state refers to the new place, or to none, it is looked at again.
                    Ok(Mending::UnderWay) => {}
                    Ok(Mending::Over) => {
                        let mut damaged = self.damaged();
                        if damaged.get(&(group, index)) == Some(&from) {
                            damaged.remove(&(group, index));
                        }
                        metrics::gauge!("postroad_bodies_damaged").set(damaged.len() as f64);
                    }
                    Err(why) => {
                        tracing::error!(group, index, why, "a damaged body is not mended yet")
                    }
                }
                tokio::time::sleep(MEND_PAUSE).await;
            }
            let _ = tokio::time::timeout(TRY_AGAIN, self.inner.found.notified()).await;
        }
    }

    async fn mend(
        &self,
        mail: &Mailboxes,
        log: &Sender<LogEvent>,
        group: u32,
        index: u64,
        from: Location,
        said: &mut Said,
    ) -> Result<Mending, String> {
        let (reply, located) = oneshot::channel();
        let asked = mail.state.send(StateEvent::LocateBody {
            group,
            index,
            reply,
        });
        asked.map_err(|_| "the node ends".to_owned())?;
        let located = located.await.map_err(|_| "the node ends".to_owned())?;
        let Some((replica, _)) = located.filter(|(_, at)| *at == from) else {
            // Settled, or whole elsewhere.
            return Ok(Mending::Over);
        };
        let data = self.proved(replica, index, from, said).await?;
        let mend = LogEvent::Mend {
            replica,
            index,
            from,
            data,
        };
        log.send(mend).map_err(|_| "the node ends".to_owned())?;
        metrics::counter!("postroad_bodies_mended_total").increment(1);
        tracing::info!(
            group,
            index,
            "a damaged body came from another replica and is written again"
        );
        Ok(Mending::UnderWay)
    }

    /// The data of a damaged entry as another replica has it, and as the edges took it.
    async fn proved(
        &self,
        replica: u32,
        index: u64,
        from: Location,
        said: &mut Said,
    ) -> Result<Bytes, String> {
        let group = group_of(replica);
        let mut refused = BTreeSet::new();
        let mut proofs: Option<Vec<Proof>> = None;
        loop {
            let fetched = self.fetch_but_from(&refused, group, index, from, None);
            let fetched = fetched.await?;
            if proofs.is_none() {
                proofs = Some(self.proofs(replica, index, said).await?);
            }
            if proofs
                .iter()
                .flatten()
                .all(|proof| proof.holds(&fetched.data))
            {
                return Ok(fetched.data);
            }
            tracing::error!(
                group,
                index,
                node = fetched.node,
                "another replica's copy of a damaged body is not what its edge took; look at the disk of that node"
            );
            refused.insert(fetched.node);
        }
    }

    /// What the messages that refer to an entry say of it. Empty: none does durably.
    ///
    /// # Errors
    /// It cannot be looked up now, or what they consist of beside cannot be had now: without a proof nothing is written.
    async fn proofs(
        &self,
        replica: u32,
        index: u64,
        said: &mut Said,
    ) -> Result<Vec<Proof>, String> {
        if said.is_none() {
            *said = self.said().await;
        }
        let Some(all) = said.as_ref() else {
            return Err("its messages cannot be looked up now".to_owned());
        };
        let mut proofs = Vec::new();
        for sworn in all.get(&replica).into_iter().flatten() {
            if sworn.extents.iter().all(|extent| extent.index != index) {
                continue;
            }
            let mut others = BTreeMap::new();
            for other in Proof::others(sworn, index) {
                let Some(data) = self.other(replica, other).await else {
                    return Err(format!(
                        "entry {other} of its message cannot be had now, so it cannot be proved"
                    ));
                };
                others.insert(other, data);
            }
            proofs.push(Proof::new(sworn, index, others));
        }
        Ok(proofs)
    }

    /// The messages that refer to anything that is damaged now.
    async fn said(&self) -> Said {
        let rows = self.inner.rows.upgrade()?;
        let replica = |group| rows.replica_of(group);
        let damaged: Vec<(u32, u64)> = self.damaged().keys().copied().collect();
        let damaged = damaged
            .into_iter()
            .filter_map(|(group, index)| Some((replica(group)?, index)))
            .collect();
        let helper = self.inner.helpers.helper();
        let looking =
            tokio::task::spawn_blocking(move || rows.sworn(&damaged, || helper.must_end()));
        match looking.await {
            Ok(Ok(said)) => Some(said),
            Ok(Err(error)) => {
                tracing::error!(%error, "it cannot be looked up which messages damaged bodies are of");
                None
            }
            Err(_) => None,
        }
    }

    /// The data of an undamaged entry of the same message: from the log, or else from another replica.
    async fn other(&self, replica: u32, index: u64) -> Option<Bytes> {
        let rows = self.inner.rows.upgrade()?;
        let reader = self.inner.reader.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let location = rows.locate(replica, index).ok()??;
            let read = reader.read_entry(location, replica, index);
            Some((location, read.ok().map(|entry| entry.data)))
        });
        match reading.await.ok()?? {
            (_, Some(data)) => Some(data),
            (location, None) => {
                let fetched = self.fetch(group_of(replica), index, location, None);
                fetched.await.ok().map(|fetched| fetched.data)
            }
        }
    }
}
