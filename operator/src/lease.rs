//! Leader election: of all replicas of the operator, the one that holds a Lease works.
//!
//! [`decide`] is pure: it says what to do about the record that was read. What counts is for how long *this* process has seen
//! the same record, by its own monotonic clock; the holder's clock is never compared with ours. Whoever cannot renew in
//! time stops the process, so that two never work at once.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Name of the Lease, in the operator's namespace.
const NAME: &str = "postroad-leader";

/// Name of the Lease of an operator that works in this one namespace only, if any: several of these may live together.
fn name(watched: Option<&str>) -> String {
    match watched {
        Some(namespace) => format!("{NAME}-{namespace}"),
        None => NAME.into(),
    }
}

/// Others take over when the record has not changed for this long.
const DURATION: Duration = Duration::from_secs(15);
/// The holder stops when it could not renew for this long: before anyone may take over.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often the holder renews.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How often everyone else looks, and the holder tries again.
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// A request that takes longer is as good as lost: another try must fit into the deadline.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

const _: () = assert!(RENEW_DEADLINE.as_secs() < DURATION.as_secs());
const _: () = assert!(RENEW_EVERY.as_secs() + REQUEST_TIMEOUT.as_secs() < RENEW_DEADLINE.as_secs());

/// The Lease as it was read, and since when it reads like that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who holds it; empty: given up.
    holder: String,
    /// Changes with every write.
    version: String,
    /// For how long the holder wants it.
    duration: Duration,
    /// When this process first read this version.
    since: Instant,
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Write our name: it is free, or its holder is silent.
    Acquire,
    /// Write again: it is ours.
    Renew,
    /// Somebody else holds it.
    Wait,
}

/// Decides on the record that was seen last; `None`: there is none yet.
pub fn decide(seen: Option<&Seen>, me: &str, now: Instant) -> Next {
    match seen {
        None => Next::Acquire,
        Some(seen) if seen.holder == me => Next::Renew,
        Some(seen) if seen.holder.is_empty() => Next::Acquire,
        Some(seen) if now.duration_since(seen.since) > seen.duration => Next::Acquire,
        Some(_) => Next::Wait,
    }
}

/// Waits until this replica leads; false when the election ended before. What the channel lends must not outlive this
/// function: while it is held, the election cannot write, and so not renew.
pub async fn won(leading: &mut watch::Receiver<bool>) -> bool {
    leading.wait_for(|leads| *leads).await.is_ok()
}

/// Why this replica must not work any more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// No write came through in time; somebody else may take over soon.
    #[error(
        "its Lease could not be renewed for {RENEW_DEADLINE:?}: {0}; another replica takes over, this one starts again"
    )]
    Silent(String),
    /// Somebody else wrote their name.
    #[error(
        "its Lease was taken by {0}, which happens after a long pause of this process; it starts again"
    )]
    Taken(String),
}

/// One replica's view of the Lease.
pub struct Election {
    api: Api<Lease>,
    name: String,
    me: String,
    seen: Option<Seen>,
    /// When our last write came through.
    renewed: Option<Instant>,
}

impl Election {
    /// `watched`: the one namespace to work in. `me` must be unlike the name of any other replica, and of this one before it
    /// started again.
    pub fn new(client: Client, namespace: &str, watched: Option<&str>, me: String) -> Election {
        Election {
            api: Api::namespaced(client, namespace),
            name: name(watched),
            me,
            seen: None,
            renewed: None,
        }
    }

    /// Takes part until `stop`, then gives the Lease up. `leading` turns true once and never back: who loses the Lease ends.
    pub async fn run(
        mut self,
        leading: watch::Sender<bool>,
        stop: CancellationToken,
    ) -> Result<(), Lost> {
        loop {
            let step = tokio::select! {
                step = tokio::time::timeout(REQUEST_TIMEOUT, self.step()) => step,
                () = stop.cancelled() => break,
            };
            let problem = match step {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!(
                    "no answer from the API server for {REQUEST_TIMEOUT:?}"
                )),
            };
            self.check(problem.as_deref())?;
            let held = self.renewed.is_some();
            if held && !leading.send_replace(true) {
                tracing::info!(me = self.me, "this replica leads");
            }
            metrics::gauge!("postroad_operator_leader").set(f64::from(u8::from(held)));
            if let Some(problem) = &problem {
                tracing::warn!(
                    problem,
                    lease = self.name,
                    "the Lease could not be read or written"
                );
            }
            let pause = match problem {
                None if held => RENEW_EVERY,
                _ => RETRY_EVERY,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        self.release().await;
        Ok(())
    }

    /// Fails when this replica led and must not any more.
    fn check(&self, problem: Option<&str>) -> Result<(), Lost> {
        let Some(renewed) = self.renewed else {
            return Ok(());
        };
        if let Some(seen) = &self.seen
            && seen.holder != self.me
        {
            return Err(Lost::Taken(seen.holder.clone()));
        }
        if renewed.elapsed() > RENEW_DEADLINE {
            let problem = problem.unwrap_or("the process stood still");
            return Err(Lost::Silent(problem.into()));
        }
        Ok(())
    }

    /// Reads the Lease and writes it, if that is ours to do.
    async fn step(&mut self) -> kube::Result<()> {
        let found = self.api.get_opt(&self.name).await?;
        self.observe(found.as_ref());
        if decide(self.seen.as_ref(), &self.me, Instant::now()) == Next::Wait {
            return Ok(());
        }
        // By the time of sending: what is later than that is not known.
        let sent = Instant::now();
        let record = self.record(found.as_ref());
        let written = match &found {
            None => self.api.create(&PostParams::default(), &record).await,
            // With the version that was read: whoever wrote in between has won.
            Some(_) => {
                self.api
                    .replace(&self.name, &PostParams::default(), &record)
                    .await
            }
        };
        match written {
            Ok(lease) => {
                self.observe(Some(&lease));
                self.renewed = Some(sent);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let now = self.api.get_opt(&self.name).await?;
                self.observe(now.as_ref());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn observe(&mut self, lease: Option<&Lease>) {
        let Some(lease) = lease else {
            self.seen = None;
            return;
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self
            .seen
            .as_ref()
            .is_some_and(|seen| seen.version == version)
        {
            return;
        }
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.unwrap_or_default();
        self.seen = Some(Seen {
            holder: spec.holder_identity.unwrap_or_default(),
            version,
            duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
            since: Instant::now(),
        });
    }

    /// The Lease with our name in it.
    fn record(&self, before: Option<&Lease>) -> Lease {
        record(&self.name, &self.me, before)
    }

    /// Gives the Lease up, so that the next one need not wait. A failure only costs that wait.
    async fn release(mut self) {
        if self.renewed.is_none() {
            return;
        }
        let written = tokio::time::timeout(REQUEST_TIMEOUT, async {
            let found = self.api.get(&self.name).await?;
            self.observe(Some(&found));
            if self
                .seen
                .as_ref()
                .is_some_and(|seen| seen.holder != self.me)
            {
                return Ok(());
            }
            let mut record = self.record(Some(&found));
            if let Some(spec) = &mut record.spec {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
            }
            self.api
                .replace(&self.name, &PostParams::default(), &record)
                .await
                .map(drop)
        });
        match written.await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "gave the Lease up"),
            Ok(Err(error)) => {
                tracing::warn!(%error, lease = self.name, "could not give the Lease up");
            }
            Err(_) => tracing::warn!(lease = self.name, "could not give the Lease up in time"),
        }
    }
}

/// The Lease of this name, held by `me` from now on: `before` written again, or a new one.
fn record(name: &str, me: &str, before: Option<&Lease>) -> Lease {
    let now = MicroTime(jiff::Timestamp::now());
    let old = before
        .and_then(|lease| lease.spec.clone())
        .unwrap_or_default();
    let ours = old.holder_identity.as_deref() == Some(me);
    let changes = old.lease_transitions.unwrap_or_default();
    let spec = LeaseSpec {
        holder_identity: Some(me.into()),
        lease_duration_seconds: Some(DURATION.as_secs() as i32),
        acquire_time: if ours {
            old.acquire_time
        } else {
            Some(now.clone())
        },
        lease_transitions: Some(if ours {
            changes
        } else {
            changes.saturating_add(1)
        }),
        renew_time: Some(now),
        ..LeaseSpec::default()
    };
    let metadata = match before {
        Some(lease) => lease.metadata.clone(),
        None => ObjectMeta {
            name: Some(name.into()),
            ..ObjectMeta::default()
        },
    };
    Lease {
        metadata,
        spec: Some(spec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: &str, since: Instant) -> Seen {
        Seen {
            holder: holder.into(),
            version: "1".into(),
            duration: DURATION,
            since,
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_free_ours_or_silent_for_its_whole_duration() {
        let start = Instant::now();
        let later = start + DURATION;
        assert_eq!(decide(None, "a", start), Next::Acquire);
        assert_eq!(decide(Some(&seen("", start)), "a", start), Next::Acquire);
        assert_eq!(decide(Some(&seen("a", start)), "a", later), Next::Renew);
        assert_eq!(decide(Some(&seen("b", start)), "a", later), Next::Wait);
        let silent = later + Duration::from_millis(1);
        assert_eq!(decide(Some(&seen("b", start)), "a", silent), Next::Acquire);
    }

    /// An operator of one namespace made the Lease of the others, never found its own, and led for ten seconds in its life.
    #[test]
    fn a_lease_that_is_made_is_the_one_that_is_read() {
        let mine = name(Some("mail"));
        let made = record(&mine, "a", None);
        assert_eq!(made.metadata.name.as_deref(), Some("postroad-leader-mail"));
        let again = record(&mine, "b", Some(&made)).spec.unwrap_or_default();
        assert_eq!(again.holder_identity.as_deref(), Some("b"));
        assert_eq!(again.lease_transitions, Some(2));
    }

    #[tokio::test]
    async fn who_won_holds_up_no_renewal() {
        let (election, mut leading) = watch::channel(false);
        election.send_replace(true);
        assert!(won(&mut leading).await);
        // On a thread of its own: a lock that is held would stop the test as well.
        let renewed = std::thread::spawn(move || election.send_replace(true));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(
            renewed.is_finished(),
            "the next renewal waits for the work to end"
        );
        drop(leading);
    }
}
