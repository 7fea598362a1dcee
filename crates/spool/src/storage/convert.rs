//! Entries and hard states between raft-rs and the log.

use raft::eraftpb::{Entry as RaftEntry, EntryType, HardState as RaftHardState};

use crate::log::{self, EntryKind};

pub(super) fn entry_type_of(kind: EntryKind) -> EntryType {
    match kind {
        EntryKind::Normal => EntryType::EntryNormal,
        EntryKind::ConfChange => EntryType::EntryConfChange,
        EntryKind::ConfChangeV2 => EntryType::EntryConfChangeV2,
    }
}

pub(super) fn kind_of(kind: EntryType) -> EntryKind {
    match kind {
        EntryType::EntryNormal => EntryKind::Normal,
        EntryType::EntryConfChange => EntryKind::ConfChange,
        EntryType::EntryConfChangeV2 => EntryKind::ConfChangeV2,
    }
}

pub(crate) fn to_log(entry: &RaftEntry) -> log::Entry {
    log::Entry {
        index: entry.index,
        term: entry.term,
        kind: kind_of(entry.get_entry_type()),
        context: entry.context.clone(),
        data: entry.data.clone(),
    }
}

pub(crate) fn hard_state_to_log(state: &RaftHardState) -> log::HardState {
    log::HardState {
        term: state.term,
        vote: state.vote,
        commit: state.commit,
    }
}

pub(crate) fn hard_state_from_log(state: &log::HardState) -> RaftHardState {
    RaftHardState {
        term: state.term,
        vote: state.vote,
        commit: state.commit,
        ..RaftHardState::default()
    }
}
