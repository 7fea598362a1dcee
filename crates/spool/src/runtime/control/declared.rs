//! What is declared: Puts that come in, and the rows that they make.

use std::collections::BTreeMap;

use proto::v1;
use queue::config::{Configuration, Put, PutRefusal};
use queue::control::{ControlCommand, ControlState};
use queue::version::DOCUMENTS;

use super::Control;
use crate::event::{PutCall, Ticket};
use crate::node::Proposal;
use crate::oversee::What;
use crate::state::{ConfigRow, GroupState};
use crate::wire::config;
use crate::wire::log::WireError;

/// Whether this program knows the version of the state machine that the group has come to.
pub fn check_version(state: &ControlState, known: u32) -> Result<(), WireError> {
    let found = state.version_in_force();
    match found <= known {
        true => Ok(()),
        false => Err(WireError::Version { found, known }),
    }
}

/// The documents of the rows.
///
/// # Errors
/// A row is damaged.
pub fn recover(rows: &GroupState) -> Result<Configuration, WireError> {
    let documents = rows.config(ConfigRow::Document);
    let documents = documents.values().map(|row| config::held_from_bytes(row));
    let writers = rows.config(ConfigRow::Writer);
    let writers = writers
        .iter()
        .map(|(name, row)| Ok((name.clone(), config::writer_from_bytes(row)?)));
    Ok(Configuration::recovered(
        documents.collect::<Result<Vec<_>, _>>()?,
        writers.collect::<Result<BTreeMap<_, _>, WireError>>()?,
    ))
}

impl Control {
    /// Answers a Put, or proposes it; then the answer comes with the entry. `leader`: the address to go to instead.
    pub fn put(&mut self, call: PutCall, leader: String) -> Option<Proposal> {
        if !self.ready || self.leads.is_none() || self.state.cluster.is_none() {
            put_elsewhere(call, leader);
            return None;
        }
        let PutCall { put, answer } = call;
        if self.state.version_in_force() < DOCUMENTS {
            let _ = answer.send(v1::PutConfigResponse {
                outcome: v1::PutConfigOutcome::NotYet.into(),
                text: "some queue node was not heard of yet, or its program does not know documents: see \
                       `postroad members list`, start or upgrade it, then write again"
                    .to_owned(),
                ..Default::default()
            });
            return None;
        }
        if let Err(why) = self.settings.desk.read(|all| all.judge(&put)) {
            let _ = answer.send(refused(&why));
            return None;
        }
        let proposal = self.proposal(&ControlCommand::PutConfig(put.into()));
        self.puts.insert(proposal.ticket, answer);
        Some(proposal)
    }

    /// Applies a Put: its rows belong to the entry at `index`.
    pub(super) fn put_applied(&mut self, index: u64, put: &Put) {
        let done = self.settings.desk.write(|all| all.apply(index, put));
        let answer = match &done {
            Ok(accepted) => {
                self.write_rows(&put.writer, &accepted.keys);
                v1::PutConfigResponse {
                    outcome: v1::PutConfigOutcome::Accepted.into(),
                    revision: accepted.revision,
                    ..Default::default()
                }
            }
            Err(why) => refused(why),
        };
        let later = self.by_index.split_off(&(index + 1));
        let reached = std::mem::replace(&mut self.by_index, later);
        let waits = |ticket: &Ticket| self.puts.remove(ticket);
        if let Some(waits) = reached.get(&index).and_then(waits) {
            let _ = waits.send(answer);
        }
    }

    fn write_rows(&mut self, writer: &std::sync::Arc<str>, keys: &[std::sync::Arc<str>]) {
        let rows = &mut self.rows;
        self.settings.desk.read(|all| {
            for key in keys {
                let row = all.documents().get(key).map(config::held_to_bytes);
                rows.set_config(ConfigRow::Document, key, row.as_deref());
            }
            let row = all.writers().get(writer).map(config::writer_to_bytes);
            rows.set_config(ConfigRow::Writer, writer, row.as_deref());
        });
    }

    /// The state machine's version goes up when the program of every voter knows the next one.
    pub(super) fn raise_version(&self, members_know: u32) -> Option<(What, ControlCommand)> {
        let version = members_know;
        let command = ControlCommand::SetVersion { version };
        let news = version >= command.since() && version > self.state.version_in_force();
        news.then_some((What::Version, command))
    }
}

fn refused(why: &PutRefusal) -> v1::PutConfigResponse {
    let mut answer = v1::PutConfigResponse {
        text: why.to_string(),
        ..Default::default()
    };
    let outcome = match why {
        PutRefusal::Conflict { revision, .. } => {
            answer.revision = *revision;
            v1::PutConfigOutcome::Conflict
        }
        PutRefusal::Owned { key, owner } => {
            (answer.key, answer.owner) = (key.to_string(), owner.to_string());
            v1::PutConfigOutcome::Owned
        }
        PutRefusal::TooLarge { .. } | PutRefusal::Full { .. } | PutRefusal::Writers { .. } => {
            v1::PutConfigOutcome::TooLarge
        }
        PutRefusal::Invalid(_) => v1::PutConfigOutcome::Invalid,
    };
    answer.outcome = outcome.into();
    answer
}

/// Sends whoever puts to the leader.
pub fn put_elsewhere(call: PutCall, leader_address: String) {
    let not_leader = Some(v1::NotLeader { leader_address });
    let _ = call.answer.send(v1::PutConfigResponse {
        not_leader,
        ..Default::default()
    });
}
