//! The collector's thread: copies while there is something to collect, scrubs slowly at all times.
//!
//! It has a thread of its own because it reads and writes whole segments, and nobody's mail shall wait for that. It
//! never touches rows: the state thread moves them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::Mender;
use super::recover::Recovered;
use crate::collect::{
    BodyIndex, BodyReader, CollectConfig, CollectError, CollectEvent, Collector, Moves, OnDamage,
    Pace, Scrub, Step,
};
use crate::directory::group_of;
use crate::event::{Mailboxes, RaftEvent, StateEvent};
use crate::log::Segments;
use crate::state::StoredBodies;

/// How long an idle collector sleeps: what makes a segment worth collecting comes with a flush of the state, which wakes
/// it, or with age.
const IDLE: Duration = Duration::from_millis(500);

/// How often metrics are set.
const LOOK: Duration = Duration::from_secs(2);

/// What the thread holds.
pub struct CollectThread {
    pub collector: Collector,
    pub config: CollectConfig,
    pub segments: Segments,
    pub mail: Receiver<CollectEvent>,
    pub to: Mailboxes,
    pub health: super::Health,
    pub on_damage: OnDamage,
}

/// What changes while it runs.
struct Turn {
    begun: Instant,
    pace: Pace,
    scrub: Scrub,
    next_look: Instant,
    idle: bool,
    copied: u64,
    scrubbed: u64,
}

impl CollectThread {
    /// Over what was recovered, with the reader of bodies that may be moved. What is damaged and lives is mended.
    pub fn new(
        recovered: &Recovered,
        mail: Receiver<CollectEvent>,
        to: Mailboxes,
        health: super::Health,
        mender: Mender,
        index: Arc<StoredBodies>,
    ) -> (CollectThread, BodyReader) {
        let store = &recovered.state.store;
        let index: Arc<dyn BodyIndex> = index;
        let reader = recovered.reader.clone();
        let bodies = BodyReader::new(reader.clone(), &index);
        let (config, live) = (CollectConfig::default(), store.segments_live());
        let thread = CollectThread {
            collector: Collector::new(config.clone(), &recovered.writer, reader, index, live),
            config,
            segments: recovered.writer.segments(),
            mail,
            to,
            health,
            on_damage: Arc::new(move |it| {
                mender.report(group_of(it.replica), it.index, it.location)
            }),
        };
        (thread, bodies)
    }

    /// Runs until told to stop, or until the disk fails.
    pub fn run(mut self) {
        let mut turn = Turn {
            begun: Instant::now(),
            pace: Pace::default(),
            scrub: Scrub::default(),
            next_look: Instant::now(),
            idle: false,
            copied: 0,
            scrubbed: 0,
        };
        loop {
            let now_us = turn.begun.elapsed().as_micros() as u64;
            let copy = if turn.idle {
                IDLE
            } else {
                turn.pace.wait(now_us)
            };
            let mut next = self
                .mail
                .recv_timeout(copy.min(turn.scrub.wait(now_us)).min(IDLE));
            loop {
                match next {
                    Ok(event) => {
                        turn.idle = false;
                        if !self.take(event, &turn) {
                            return;
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                next = self.mail.recv_timeout(Duration::ZERO);
            }
            if let Err(error) = self.work(&mut turn) {
                return self.failed(&error);
            }
        }
    }

    fn take(&mut self, event: CollectEvent, turn: &Turn) -> bool {
        match event {
            CollectEvent::Durable { moves, live } => {
                let now_ms = turn.begun.elapsed().as_millis() as u64;
                self.collector.durable(moves, live, now_ms);
            }
            CollectEvent::Stop => return false,
        }
        true
    }

    /// One step of each kind that is due.
    fn work(&mut self, turn: &mut Turn) -> Result<(), CollectError> {
        let now_us = turn.begun.elapsed().as_micros() as u64;
        if turn.pace.wait(now_us).is_zero() {
            let step = self.collector.step(now_us / 1_000)?;
            turn.idle = matches!(step, Step::Idle | Step::NoRoom(_));
            self.tell(step);
            let copied = self.collector.copied_bytes - turn.copied;
            turn.copied = self.collector.copied_bytes;
            metrics::counter!("postroad_collect_copied_bytes_total").increment(copied);
            if !self.pressed() {
                turn.pace.did(copied, self.config.rate, now_us);
            }
        }
        if turn.scrub.wait(now_us).is_zero() {
            let segment_bytes = self.segments.segment_bytes();
            if let Some(segment) = turn.scrub.step(&self.segments, segment_bytes, now_us) {
                tracing::error!(
                    segment,
                    "the scrubber met damage in a segment of the log: bodies that live in it are looked at, and it is given \
                     back as soon as the log needs it no longer. If this node is stopped before, it may not start again; \
                     then replace it"
                );
                metrics::counter!("postroad_scrub_damaged_segments_total").increment(1);
                self.collector.suspect(segment);
                turn.idle = false;
            }
            let read = turn.scrub.read_bytes - turn.scrubbed;
            turn.scrubbed = turn.scrub.read_bytes;
            metrics::counter!("postroad_scrub_read_bytes_total").increment(read);
        }
        let now = Instant::now();
        if now >= turn.next_look {
            turn.next_look = now + LOOK;
            self.look(now_us / 1_000);
        }
        Ok(())
    }

    fn tell(&self, step: Step) {
        match step {
            Step::Idle | Step::Worked { .. } => {}
            Step::Moved(moves) | Step::NoRoom(moves) => self.moved(moves, self.pressed()),
            Step::Examined { moves, damages } => {
                damages.iter().for_each(|damage| (self.on_damage)(damage));
                if let Some(moves) = moves {
                    self.moved(moves, self.pressed());
                }
            }
        }
    }

    fn moved(&self, moves: Moves, hurry: bool) {
        let _ = self.to.state.send(StateEvent::Moved { moves, hurry });
    }

    /// Is room short, so that nothing is spared and nobody waits?
    fn pressed(&self) -> bool {
        let disk = self.health.disk();
        disk.full || disk.percent > crate::collect::PRESSED_PERCENT
    }

    fn look(&self, now_ms: u64) {
        let look = self.collector.look(now_ms);
        self.health.set_space(look.space);
        for (generation, ratio) in look.ratio {
            metrics::gauge!("postroad_log_live_ratio", "generation" => generation.to_string())
                .set(ratio);
        }
        for reason in crate::collect::REASONS {
            let age = look.pinned.get(reason).copied().unwrap_or(0);
            metrics::gauge!("postroad_log_pinned_segment_age_seconds", "reason" => reason)
                .set(age as f64 / 1_000.0);
        }
        metrics::gauge!("postroad_log_damaged_segments").set(look.damaged_segments as f64);
        metrics::gauge!("postroad_log_dead_bytes").set(look.space.dead as f64);
        metrics::gauge!("postroad_log_live_bytes").set(look.space.live as f64);
    }

    fn failed(&self, error: &CollectError) {
        let reason = format!("{error}; this replica node stops for good");
        let _ = self.to.raft.send(RaftEvent::Failed(reason));
    }
}
