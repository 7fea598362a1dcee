//! The log against a real disk, a disk that crashes, and a model.

mod damage;
mod flips;
mod model;
mod real;
mod room;
mod snapshot;
mod survey;
mod walk;

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Entry, EntryKind, HardState, Log, LogConfig, LogReader, LogWriter, Recovered, SimDisk,
    WriteTask,
};
use crate::identity::ClusterId;

/// A small log: segments of about 64 KiB.
fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 64 << 10,
        max_entry_bytes: 16 << 10,
        batch_bytes: 24 << 10,
        background: false,
        ..LogConfig::new(ClusterId([7; 16]), 42)
    }
}

fn open(disk: &SimDisk) -> (LogWriter, LogReader, Recovered) {
    match Log::open_on(Arc::new(disk.clone()), "/log".as_ref(), small()) {
        Ok(opened) => opened,
        Err(error) => panic!("the log does not open: {error}"),
    }
}

/// An entry whose bytes follow from its index, its term and `salt`.
fn entry(index: u64, term: u64, len: usize, salt: u64) -> Entry {
    let byte = |at: usize| (index * 31 + term * 7 + salt * 3 + at as u64) as u8;
    Entry {
        index,
        term,
        kind: EntryKind::Normal,
        context: (0..len / 4).map(byte).collect::<Vec<_>>().into(),
        data: Bytes::from((0..len - len / 4).map(byte).collect::<Vec<_>>()),
    }
}

fn task(group: u32, number: u64, entries: Vec<Entry>) -> WriteTask {
    WriteTask {
        group,
        number,
        entries,
        hard_state: None,
        reset: None,
        urgent: false,
    }
}

fn voted(group: u32, number: u64, term: u64, vote: u64) -> WriteTask {
    let hard_state = Some(HardState {
        term,
        vote,
        commit: 0,
    });
    WriteTask {
        group,
        number,
        entries: Vec::new(),
        hard_state,
        reset: None,
        urgent: false,
    }
}
