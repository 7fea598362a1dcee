//! What the state machine should do, written a second time as simply as possible: no index rows, no counts, no bodies.

use std::collections::{BTreeMap, BTreeSet};

use mail::Ulid;
use queue::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Waiting(u64),
    Leased(u64, u64),
    Held,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fate {
    Delivered,
    Failed,
    Dropped,
}

#[derive(Clone, PartialEq, Debug)]
pub struct ModelItem {
    pub place: Place,
    pub open: BTreeSet<u32>,
    pub lost: u32,
    pub mark: Option<AdminAction>,
    pub noticed: bool,
}

#[derive(Clone, Debug)]
pub struct ModelMessage {
    pub facts: MessageFacts,
    pub appended: u64,
    pub expires: u64,
    pub notice: Option<u64>,
    pub report: bool,
}

#[derive(Clone, Default, Debug)]
pub struct Model {
    pub now: u64,
    pub index: u64,
    pub messages: BTreeMap<Ulid, ModelMessage>,
    pub items: BTreeMap<ItemId, ModelItem>,
    /// Node and boot id, and the sequence of the request.
    pub sessions: BTreeMap<u64, ((String, String), u64)>,
    version: u32,
    pub chunks: BTreeMap<Ulid, (u32, u64)>,
    /// Ids whose every recipient met its fate, with the time until which they must be remembered.
    pub finished: BTreeMap<Ulid, u64>,
    /// What became of each recipient, once for all.
    pub fates: BTreeMap<(ItemId, u32), Fate>,
    /// Every message that was created, with its recipients.
    pub created: BTreeMap<Ulid, Vec<(ItemId, u32)>>,
    /// Ids that the state machine remembers of finished messages, before the entry: it may remember longer than it must.
    pub remembered: BTreeSet<Ulid>,
    /// Answers to the last Settle.
    pub outcomes: Vec<SettleOutcome>,
    /// Grants so far, by item.
    pub grants: BTreeMap<ItemId, Vec<(u64, u64)>>,
}

impl Model {
    fn fate(&mut self, id: ItemId, recipient: u32, fate: Fate) {
        if self
            .items
            .get_mut(&id)
            .is_some_and(|item| item.open.remove(&recipient))
        {
            assert_eq!(
                self.fates.insert((id, recipient), fate),
                None,
                "{id:?} {recipient} met two fates"
            );
        }
    }

    /// All that is left of an item meets the same fate; true: something was left.
    fn rest(&mut self, id: ItemId, fate: Fate) -> bool {
        let open = self
            .items
            .get(&id)
            .map(|item| item.open.clone())
            .unwrap_or_default();
        open.iter()
            .for_each(|recipient| self.fate(id, *recipient, fate));
        self.reap(id);
        !open.is_empty()
    }

    fn reap(&mut self, id: ItemId) -> bool {
        if !self.items.get(&id).is_some_and(|item| item.open.is_empty()) {
            return false;
        }
        self.items.remove(&id);
        if !self.items.keys().any(|other| other.message == id.message) {
            let message = self.messages.remove(&id.message).expect("lives");
            self.finished
                .insert(id.message, message.appended.saturating_add(DEDUPE_MS));
        }
        true
    }

    fn create(&mut self, message: ModelMessage, grants: &[ExpressGrant]) {
        let id = message.facts.message;
        // An id that was forgotten is as good as new.
        self.finished.remove(&id);
        self.fates.retain(|(item, _), _| item.message != id);
        self.grants.retain(|item, _| item.message != id);
        let mut all = Vec::new();
        for (number, facts) in (0..).zip(&message.facts.items) {
            let item = ItemId {
                message: id,
                number,
            };
            let grant = grants
                .iter()
                .find(|g| g.number == number && self.sessions.contains_key(&g.session.0));
            let place = match grant {
                Some(grant) => self.lease(item, grant.session.0),
                None => Place::Waiting(self.now),
            };
            let open: BTreeSet<u32> = (0..facts.recipients.len() as u32).collect();
            all.extend(open.iter().map(|recipient| (item, *recipient)));
            self.items.insert(
                item,
                ModelItem {
                    place,
                    open,
                    lost: 0,
                    mark: None,
                    noticed: false,
                },
            );
        }
        self.created.insert(id, all);
        self.messages.insert(id, message);
    }

    fn lease(&mut self, id: ItemId, session: u64) -> Place {
        self.grants
            .entry(id)
            .or_default()
            .push((session, self.index));
        Place::Leased(session, self.index)
    }

    fn end_lease(&mut self, id: ItemId, due: u64) {
        let (now, expires) = (self.now, self.messages[&id.message].expires);
        let Some(item) = self.items.get_mut(&id) else {
            return;
        };
        match item.mark.take() {
            Some(AdminAction::Drop) => {
                self.rest(id, Fate::Dropped);
            }
            Some(_) => item.place = Place::Held,
            None => item.place = Place::Waiting(due.min(expires).max(now)),
        }
    }

    fn lose(&mut self, id: ItemId, retry: u64) {
        let now = self.now;
        let Some(item) = self.items.get_mut(&id) else {
            return;
        };
        item.lost += 1;
        if item.lost >= 5 && item.mark.is_none() {
            item.place = Place::Held;
        } else {
            let due = if item.lost == 1 { now } else { retry };
            self.end_lease(id, due);
        }
    }

    /// Reports that come of an entry that turned recipients of a message to failed.
    fn reports(&mut self, about: Option<ModelMessage>, reports: &[Report], failed: bool) {
        let Some(about) = about else { return };
        if !failed || about.report || about.facts.return_path.is_empty() {
            return;
        }
        for report in reports
            .iter()
            .filter(|report| !self.known(report.facts.message))
            .collect::<Vec<_>>()
        {
            let message = ModelMessage {
                facts: report.facts.clone(),
                appended: self.now,
                expires: report.expires.0,
                notice: None,
                report: true,
            };
            self.create(message, &[]);
        }
    }

    fn known(&self, id: Ulid) -> bool {
        self.messages.contains_key(&id) || self.remembered.contains(&id)
    }

    pub fn apply(&mut self, index: u64, facts: &Facts) {
        self.index = index;
        self.now = self.now.max(facts.time.0);
        self.outcomes.clear();
        match &facts.command {
            Command::Append(append) => self.append(append),
            Command::BodyChunk { message, seq, .. } => {
                let known = self.known(*message);
                let have = self.chunks.get(message).map_or(0, |(have, _)| *have);
                if !known && *seq == have {
                    self.chunks.insert(*message, (have + 1, self.now));
                }
            }
            Command::ExpireUpload { messages } => {
                let now = self.now;
                self.chunks
                    .retain(|id, (_, last)| !messages.contains(id) || *last + UPLOAD_IDLE_MS > now);
            }
            Command::OpenSession(open) => self.open(open),
            Command::Window(window) => self.window(window),
            Command::ExpireSession { session, retry } => {
                if self.sessions.remove(&session.0).is_some() {
                    self.held_by(session.0)
                        .into_iter()
                        .for_each(|id| self.lose(id, retry.0));
                }
            }
            Command::Settle(items) => items.iter().for_each(|item| self.settle(item)),
            Command::ItemTimer(timer) => self.timer(timer),
            Command::Admin(admin) => admin
                .items
                .iter()
                .for_each(|id| self.admin(*id, admin.action)),
            Command::SetVersion { version } => self.version = self.version.max(*version),
            Command::Note { .. } | Command::VerifyDigest { .. } => {}
        }
    }

    fn append(&mut self, append: &Append) {
        let id = append.facts.message;
        let upload = self.chunks.remove(&id);
        if self.known(id) {
            return;
        }
        if append.facts.chunks > 0 && upload.is_none_or(|(have, _)| have != append.facts.chunks) {
            return;
        }
        let message = ModelMessage {
            facts: append.facts.clone(),
            appended: self.now,
            expires: append.expires.0,
            notice: append.notice.map(|notice| notice.0),
            report: false,
        };
        self.create(message, &append.grant_to);
    }

    fn held_by(&self, session: u64) -> Vec<ItemId> {
        let of = |item: &ModelItem| matches!(item.place, Place::Leased(by, _) if by == session);
        self.items
            .iter()
            .filter(|(_, item)| of(item))
            .map(|(id, _)| *id)
            .collect()
    }

    fn open(&mut self, open: &OpenSession) {
        let name = (open.node.to_string(), open.boot_id.to_string());
        let ordered = self.version >= 2;
        let sequence = if ordered { open.sequence } else { 0 };
        let of_name = self
            .sessions
            .iter()
            .filter(|(_, (other, _))| *other == name);
        let older: Vec<(u64, u64)> = of_name.map(|(id, (_, at))| (*id, *at)).collect();
        if ordered && older.iter().any(|(_, at)| *at > sequence) {
            return;
        }
        let older: Vec<u64> = older.into_iter().map(|(id, _)| id).collect();
        for session in older {
            self.sessions.remove(&session);
            for id in self.held_by(session) {
                if open.past_dot.contains(&id) {
                    let place = self.lease(id, self.index);
                    self.items.get_mut(&id).expect("lives").place = place;
                } else if open.handed_back.contains(&id) {
                    self.end_lease(id, self.now);
                } else {
                    self.lose(id, open.retry.0);
                }
            }
        }
        self.sessions.insert(self.index, (name, sequence));
    }

    fn window(&mut self, window: &Window) {
        for batch in &window.grants {
            for (id, _) in &batch.items {
                let due = match self.items.get(id).map(|item| item.place) {
                    Some(Place::Waiting(due)) if self.sessions.contains_key(&batch.session.0) => {
                        due
                    }
                    _ => continue,
                };
                if due <= self.now {
                    let place = self.lease(*id, batch.session.0);
                    self.items.get_mut(id).expect("lives").place = place;
                }
            }
        }
    }

    fn settle(&mut self, settle: &SettleItem) {
        let left = |model: &Model| {
            model
                .items
                .get(&settle.item)
                .map(|item| (item.place, item.open.len()))
        };
        let before = left(self);
        self.settle_item(settle);
        let success = settle
            .results
            .iter()
            .any(|result| result.verdict == Verdict::Delivered);
        self.outcomes.push(match before {
            None => SettleOutcome::AlreadyTerminal,
            Some((place, _)) if place == Place::Leased(settle.session.0, settle.token.0) => {
                SettleOutcome::Applied
            }
            Some(_) if !success => SettleOutcome::Fenced,
            Some(_) if before == left(self) => SettleOutcome::AlreadyTerminal,
            Some(_) => SettleOutcome::Applied,
        });
    }

    fn settle_item(&mut self, settle: &SettleItem) {
        let id = settle.item;
        let Some(item) = self.items.get(&id).cloned() else {
            return;
        };
        let about = self.messages.get(&id.message).cloned();
        let current = item.place == Place::Leased(settle.session.0, settle.token.0);
        let mut failed = false;
        for result in &settle.results {
            let open = self
                .items
                .get(&id)
                .is_some_and(|item| item.open.contains(&result.recipient));
            match result.verdict {
                Verdict::Delivered => self.fate(id, result.recipient, Fate::Delivered),
                Verdict::Failed if current => {
                    self.fate(id, result.recipient, Fate::Failed);
                    failed |= open;
                }
                _ => {}
            }
        }
        if self.reap(id) || !current {
            return self.reports(
                about,
                &settle.reports,
                failed && item.mark != Some(AdminAction::Drop),
            );
        }
        if !settle.results.is_empty() {
            self.items.get_mut(&id).expect("lives").lost = 0;
        }
        if settle.give_up && !settle.release && item.mark != Some(AdminAction::Drop) {
            failed |= self.rest(id, Fate::Failed);
        } else {
            match (settle.release, settle.retry) {
                (true, Some(retry)) => self.lose(id, retry.0),
                (true, None) => self.end_lease(id, self.now),
                (false, retry) => {
                    self.end_lease(id, retry.map_or(self.now + 300_000, |retry| retry.0))
                }
            }
        }
        self.reports(
            about,
            &settle.reports,
            failed && item.mark != Some(AdminAction::Drop),
        );
    }

    fn timer(&mut self, timer: &ItemTimer) {
        let id = timer.item;
        let Some(item) = self.items.get_mut(&id) else {
            return;
        };
        let message = self.messages[&id.message].clone();
        if !matches!(item.place, Place::Waiting(_)) {
            return;
        }
        if timer.expire {
            if self.now >= message.expires {
                self.rest(id, Fate::Failed);
                self.reports(Some(message), &timer.reports, true);
            }
        } else if !item.noticed
            && self.now
                >= message
                    .notice
                    .unwrap_or(message.expires)
                    .min(message.expires)
        {
            item.noticed = true;
            self.reports(Some(message), &timer.reports, true);
        }
    }

    fn admin(&mut self, id: ItemId, action: AdminAction) {
        let now = self.now;
        let Some(item) = self.items.get_mut(&id) else {
            return;
        };
        match (action, item.place) {
            (AdminAction::Hold, Place::Waiting(_)) => item.place = Place::Held,
            (AdminAction::Hold, Place::Leased(..)) if item.mark.is_none() => {
                item.mark = Some(action)
            }
            (AdminAction::Release, Place::Held) => {
                item.lost = 0;
                self.end_lease(id, now);
            }
            (AdminAction::Release, Place::Leased(..)) if item.mark == Some(AdminAction::Hold) => {
                item.mark = None
            }
            (AdminAction::Retry, Place::Waiting(due)) if due > now => self.end_lease(id, now),
            (AdminAction::Drop, Place::Leased(..)) => item.mark = Some(action),
            (AdminAction::Drop, _) => {
                self.rest(id, Fate::Dropped);
            }
            _ => {}
        }
    }
}
