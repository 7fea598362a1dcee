//! Random histories on a disk that crashes at any operation, against a model of what was promised.

use std::collections::BTreeMap;

use super::super::{
    Entry, HardState, LogReader, LogWriter, RecoveredGroup, SimDisk, WriteError, WriteTask, Written,
};
use super::{entry, open};

/// What one group's log must say.
#[derive(Clone, Debug, Default, PartialEq)]
struct Group {
    hard_state: HardState,
    entries: BTreeMap<u64, Entry>,
    truncated: (u64, u64),
}

type Model = BTreeMap<u32, Group>;

/// One record as the writer may split a task.
#[derive(Clone, Debug)]
enum Step {
    HardState(u32, HardState),
    Entry(u32, Entry),
}

struct History {
    chance: u64,
    disk: SimDisk,
    writer: LogWriter,
    reader: LogReader,
    /// Everything acknowledged.
    model: Model,
    number: u64,
    crashes: u64,
}

fn steps(tasks: &[WriteTask]) -> Vec<Step> {
    let mut steps = Vec::new();
    for task in tasks {
        steps.extend(
            task.hard_state
                .map(|state| Step::HardState(task.group, state)),
        );
        steps.extend(
            task.entries
                .iter()
                .map(|entry| Step::Entry(task.group, entry.clone())),
        );
    }
    steps
}

fn apply(model: &mut Model, step: &Step) {
    match step {
        Step::HardState(group, state) => model.entry(*group).or_default().hard_state = *state,
        Step::Entry(group, entry) => {
            let group = model.entry(*group).or_default();
            group.entries.split_off(&entry.index);
            group.entries.insert(entry.index, entry.clone());
        }
    }
}

/// Is the recovered group what the model says? Its truncation may be older, its commit smaller.
fn same(model: &Group, found: &RecoveredGroup) -> bool {
    let votes = (model.hard_state.term, model.hard_state.vote)
        == (found.hard_state.term, found.hard_state.vote);
    let last = model.entries.keys().next_back().copied().unwrap_or(0);
    votes
        && found.hard_state.commit <= found.last_index()
        && found.truncated.0 <= model.truncated.0
        && found.last_index() == last
        && found.entries.iter().all(|entry| {
            let expected = model.entries.get(&entry.index);
            expected
                .is_some_and(|expected| (expected.term, expected.kind) == (entry.term, entry.kind))
        })
}

/// The group after some prefix of what was not acknowledged, the longest that fits what was recovered.
fn continuation(
    group: u32,
    model: &Model,
    steps: &[Step],
    found: &RecoveredGroup,
) -> Option<Group> {
    let mut candidate = model.clone();
    let mut matches = None;
    for at in 0..=steps.len() {
        let expected = candidate.entry(group).or_default();
        if same(expected, found) {
            matches = Some(expected.clone());
        }
        steps
            .get(at)
            .into_iter()
            .for_each(|step| apply(&mut candidate, step));
    }
    matches
}

/// A group without its bytes, for the failure's text.
fn brief(group: &Group) -> String {
    let entries: Vec<_> = group
        .entries
        .values()
        .map(|entry| (entry.index, entry.term))
        .collect();
    format!(
        "{:?}, truncated {:?}, {entries:?}",
        group.hard_state, group.truncated
    )
}

impl History {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(2 << 20, seed);
        let (writer, reader, _) = open(&disk);
        Self {
            chance: seed,
            disk,
            writer,
            reader,
            model: Model::new(),
            number: 0,
            crashes: 0,
        }
    }

    fn pick(&mut self, below: u64) -> u64 {
        self.chance = self
            .chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) % below
    }

    fn tasks(&mut self) -> Vec<WriteTask> {
        let mut ahead = self.model.clone();
        (0..1 + self.pick(4))
            .map(|_| self.task(&mut ahead))
            .collect()
    }

    /// What Raft could ask for next: entries at the end or over an untruncated suffix, terms that rise.
    fn task(&mut self, ahead: &mut Model) -> WriteTask {
        let id = self.pick(3) as u32;
        let group = ahead.entry(id).or_default().clone();
        self.number += 1;
        let last = group.entries.keys().next_back().copied().unwrap_or(0);
        let mut term = group.hard_state.term.max(1);
        let mut from = last + 1;
        let mut hard_state = None;
        if self.pick(4) == 0 {
            term += 1;
            let floor = group.truncated.0.max(group.hard_state.commit);
            from -= self.pick((last - floor).min(5) + 1);
            hard_state = Some(HardState {
                term,
                vote: self.pick(4),
                commit: group.hard_state.commit,
            });
        } else if self.pick(3) == 0 {
            let commit = group
                .hard_state
                .commit
                .max(last.saturating_sub(self.pick(3)));
            hard_state = Some(HardState {
                term,
                vote: group.hard_state.vote,
                commit,
            });
        }
        let mut entries = Vec::new();
        for index in from..from + self.pick(4) {
            let (len, salt) = (8 + self.pick(9_000) as usize, self.number);
            entries.push(entry(index, term, len, salt));
        }
        // A follower hears of the commit together with the entries.
        if let (Some(state), Some(last)) = (&mut hard_state, entries.last())
            && self.pick(2) == 0
        {
            state.commit = last.index;
        }
        let task = WriteTask {
            group: id,
            number: self.number,
            entries,
            hard_state,
            reset: None,
            urgent: self.pick(4) == 0,
        };
        steps(std::slice::from_ref(&task))
            .iter()
            .for_each(|step| apply(ahead, step));
        task
    }

    fn acknowledge(&mut self, tasks: &[WriteTask], written: &[Written]) {
        for task in tasks {
            let Some(written) = written.iter().find(|written| written.number == task.number) else {
                continue;
            };
            steps(std::slice::from_ref(task))
                .iter()
                .for_each(|step| apply(&mut self.model, step));
            for (entry, (index, location)) in task.entries.iter().zip(&written.locations) {
                if !self.disk.is_down() {
                    match self.reader.read_entry(*location, task.group, *index) {
                        Ok(read) => assert_eq!(&read, entry),
                        Err(error) => {
                            assert!(self.disk.is_down(), "an acknowledged entry: {error}")
                        }
                    }
                }
            }
        }
    }

    /// One call of `write`. A crash in it leaves some prefix of what was not acknowledged, and nothing else.
    fn write(&mut self) {
        let tasks = self.tasks();
        match self.writer.write(&tasks) {
            Ok(written) => {
                assert_eq!(written.len(), tasks.len());
                self.acknowledge(&tasks, &written);
            }
            Err(WriteError::NoSpace { written, unwritten }) => {
                assert_eq!(written.len() + unwritten.len(), tasks.len());
                self.acknowledge(&tasks, &written);
                // They are given again, or the node dies first; here it dies, which the model must survive as well.
                let left: Vec<WriteTask> = unwritten.iter().map(|at| tasks[*at].clone()).collect();
                if self.pick(2) == 0 {
                    self.restart(&left)
                } else {
                    self.try_again(&left)
                }
            }
            Err(WriteError::Fatal(_)) => self.restart(&tasks),
        }
    }

    fn try_again(&mut self, tasks: &[WriteTask]) {
        self.free_segments();
        let _ = self.writer.mark();
        if self.pick(2) == 0 {
            self.disk.set_foreign_bytes(0);
        }
        self.writer.segments().maintain();
        match self.writer.write(tasks) {
            Ok(written) => self.acknowledge(tasks, &written),
            Err(WriteError::NoSpace { written, unwritten }) => {
                self.acknowledge(tasks, &written);
                let left: Vec<WriteTask> = unwritten.iter().map(|at| tasks[*at].clone()).collect();
                if self.pick(3) == 0 {
                    self.restart(&left)
                } else {
                    self.try_again(&left)
                }
            }
            Err(WriteError::Fatal(_)) => self.restart(tasks),
        }
    }

    fn free_segments(&mut self) {
        for id in 0..3 {
            let group = self.model.entry(id).or_default();
            let index = group
                .hard_state
                .commit
                .min(group.entries.keys().next_back().copied().unwrap_or(0));
            let term = group.entries.get(&index).map_or(0, |entry| entry.term);
            if index > group.truncated.0 {
                group.truncated = (index, term);
                self.writer.set_group_state(id, (index, term));
            }
        }
        let segments = self.writer.segments();
        for segment in segments.truncatable() {
            if self.pick(3) > 0 {
                segments.release(segment);
            }
        }
    }

    fn restart(&mut self, unacknowledged: &[WriteTask]) {
        self.crashes += 1;
        if self.pick(2) == 0 {
            self.disk.restart();
        } else {
            self.disk.kill_process();
        }
        if self.pick(3) == 0 {
            // And once more while it recovers.
            let operations = self.pick(40);
            self.disk.crash_after(operations);
            let config = super::small();
            let opened = super::Log::open_on(
                std::sync::Arc::new(self.disk.clone()),
                "/log".as_ref(),
                config,
            );
            drop(opened);
            self.disk.restart();
        }
        let (writer, reader, recovered) = open(&self.disk);
        let steps = steps(unacknowledged);
        let mut model = Model::new();
        for id in 0..3 {
            let nothing = RecoveredGroup::default();
            let found = recovered.groups.get(&id).unwrap_or(&nothing);
            let Some(group) = continuation(id, &self.model, &steps, found) else {
                let entries: Vec<_> = found
                    .entries
                    .iter()
                    .map(|entry| (entry.index, entry.term))
                    .collect();
                panic!(
                    "group {id}: acknowledged {}\nrecovered {:?}, truncated {:?}, {entries:?}",
                    brief(&self.model.entry(id).or_default().clone()),
                    found.hard_state,
                    found.truncated,
                )
            };
            model.insert(id, group);
        }
        for (id, found) in &recovered.groups {
            for at in &found.entries {
                let read = reader.read_entry(at.location, *id, at.index);
                let expected = model.get(id).and_then(|group| group.entries.get(&at.index));
                assert_eq!(
                    read.ok().as_ref(),
                    expected,
                    "group {id}, entry {}",
                    at.index
                );
            }
            let group = model.entry(*id).or_default();
            group.truncated = found.truncated;
            group.hard_state.commit = found.hard_state.commit;
        }
        (self.writer, self.reader, self.model) = (writer, reader, model);
    }

    fn step(&mut self) {
        match self.pick(24) {
            0..=13 => self.write(),
            14..=16 => self.free_segments(),
            17 => {
                if self.writer.mark().is_err() {
                    self.restart(&[]);
                }
            }
            18 => self.writer.segments().maintain(),
            19 => self.restart(&[]),
            20 => self.disk.fail_next_sync(),
            21 => self.disk.fail_next_write(std::io::ErrorKind::StorageFull),
            22 => {
                let foreign = self.pick(3) * (700 << 10);
                self.disk.set_foreign_bytes(foreign);
            }
            _ => {
                let operations = self.pick(30);
                self.disk.crash_after(operations);
            }
        }
    }
}

/// Everything acknowledged is recovered, nothing else; terms and votes never go back; recycled bytes stay dead.
#[test]
fn a_crash_anywhere_loses_nothing_acknowledged_and_invents_nothing() {
    let (mut crashes, mut recycled) = (0, 0);
    for seed in 0..400 {
        let mut history = History::new(seed);
        for _ in 0..120 {
            history.step();
        }
        history.restart(&[]);
        crashes += history.crashes;
        recycled += history
            .writer
            .segments()
            .list()
            .first()
            .map_or(0, |first| first.id - 1);
    }
    assert!(
        crashes > 2_000 && recycled > 500,
        "{crashes} crashes, {recycled} segments recycled: the test proves little"
    );
}
