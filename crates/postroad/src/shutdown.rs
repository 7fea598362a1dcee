//! Waits while the roles run, and leaves in order: first nothing new comes in, then what was begun is finished, and last
//! the queue gives its leadership away, because the others still needed it.

use std::collections::HashMap;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::role::{Probe, Role};

/// Between two looks at whether all roles are ready, at the start.
const LOOK: Duration = Duration::from_millis(20);
/// When it takes longer than this to get ready, it is said why.
const IMPATIENCE: Duration = Duration::from_secs(10);

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let on = |kind| {
            signal(kind).map_err(|e| Failure::Failed(format!("cannot listen for signals: {e}")))
        };
        Ok(Signals {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The roles that still run. A stage is what leaves together.
struct Running {
    tasks: JoinSet<Result<(), Failure>>,
    names: HashMap<Id, (usize, String)>,
    stops: Vec<CancellationToken>,
}

/// How a role ended.
struct Ended {
    stage: usize,
    outcome: Result<(), Failure>,
}

impl Running {
    fn start(stages: Vec<Vec<Role>>) -> Running {
        let mut running = Running {
            tasks: JoinSet::new(),
            names: HashMap::new(),
            stops: Vec::new(),
        };
        for (stage, roles) in stages.into_iter().enumerate() {
            let all = CancellationToken::new();
            for role in roles {
                let (leave, stop) = (all.clone(), role.stop);
                tokio::spawn(async move {
                    leave.cancelled().await;
                    stop.cancel();
                });
                let task = running.tasks.spawn(role.task);
                running.names.insert(task.id(), (stage, role.probe.name));
            }
            running.stops.push(all);
        }
        running
    }

    /// The next role that ends; pends for ever when none is left.
    async fn ended(&mut self) -> Ended {
        let Some(joined) = self.tasks.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let (id, outcome) = match joined {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => (
                error.id(),
                Err(Failure::Failed(
                    "a bug: it panicked; the text stands above in the log".into(),
                )),
            ),
        };
        let (stage, name) = self.names.remove(&id).unwrap_or_default();
        let outcome = outcome.map_err(|failure| Failure::Failed(format!("{name}: {failure}")));
        Ended { stage, outcome }
    }

    fn left(&self, stage: usize) -> usize {
        self.names.values().filter(|(of, _)| *of == stage).count()
    }
}

/// Runs the roles until a signal comes, or until all of one stage have ended by themselves; while they were not all
/// ready yet, one is enough. Then the stages leave one after the other. A second signal ends everything at once.
///
/// # Errors
/// What the first role to fail said, or that the end was not orderly.
pub async fn run(stages: Vec<Vec<Role>>, announce: impl FnOnce()) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let probes: Vec<Probe> = stages
        .iter()
        .flatten()
        .map(|role| role.probe.clone())
        .collect();
    let mut running = Running::start(stages);
    let mut announce = Some(announce);
    let ready = all_ready(&probes);
    tokio::pin!(ready);
    let mut failure = Ok(());
    loop {
        tokio::select! {
            name = signals.next() => {
                tracing::info!(signal = name, "leaving; a second signal ends at once");
                break;
            }
            () = &mut ready, if announce.is_some() => {
                if let Some(announce) = announce.take() {
                    announce();
                }
            }
            ended = running.ended() => {
                if let Err(error) = &ended.outcome {
                    tracing::error!(%error, "ended");
                }
                failure = failure.and(ended.outcome);
                if announce.is_some() || running.left(ended.stage) == 0 {
                    break;
                }
            }
        }
    }
    tokio::select! {
        left = leave(&mut running) => failure.and(left),
        name = signals.next() => Err(Failure::Failed(format!("ended at once by a second signal ({name})"))),
    }
}

async fn leave(running: &mut Running) -> Result<(), Failure> {
    let mut failure = Ok(());
    for stage in 0..running.stops.len() {
        running.stops[stage].cancel();
        while running.left(stage) > 0 {
            let ended = running.ended().await;
            failure = failure.and(ended.outcome);
        }
    }
    failure
}

async fn all_ready(probes: &[Probe]) {
    let mut patience = tokio::time::Instant::now() + IMPATIENCE;
    loop {
        let waiting = probes
            .iter()
            .find_map(|probe| Some((&probe.name, probe.ask().err()?)));
        let Some((name, why)) = waiting else { return };
        if tokio::time::Instant::now() >= patience {
            tracing::warn!(role = name, %why, "not ready yet");
            patience += IMPATIENCE;
        }
        tokio::time::sleep(LOOK).await;
    }
}
