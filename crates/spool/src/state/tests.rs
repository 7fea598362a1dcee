//! The durable rows against the rows in memory; crashes; torn journals; keys and rows as octets.

mod config;
mod cost;
mod life;
mod octets;
mod power;
mod recovery;
mod snapshot;

use queue::Rows;
use tempfile::TempDir;

use super::*;

/// A store in a directory of its own.
pub(super) struct Bench {
    dir: TempDir,
    store: Option<Store>,
    pub(super) groups: Vec<GroupState>,
}

impl Bench {
    pub(super) fn new(groups: u32) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench {
            dir,
            store: None,
            groups: Vec::new(),
        };
        bench.open(groups);
        bench
    }

    fn open(&mut self, groups: u32) {
        let store = Store::open(self.dir.path(), StoreConfig::default()).unwrap();
        self.groups = (1..=groups)
            .map(|group| store.group(group).unwrap())
            .collect();
        self.store = Some(store);
    }

    pub(super) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// As after the death of the process: what was not flushed is gone.
    pub(super) fn crash(&mut self) {
        let groups = self.groups.len() as u32;
        self.groups.clear();
        self.store = None;
        self.open(groups);
    }

    pub(super) fn freeze(&mut self) -> Option<Flush> {
        self.store.as_ref().unwrap().freeze(&mut self.groups)
    }

    pub(super) fn finish(&mut self, flush: Flush) -> usize {
        let flushed = flush.run().unwrap();
        let rows = flushed.rows;
        self.store
            .as_ref()
            .unwrap()
            .flushed(flushed, &mut self.groups);
        rows
    }

    /// Freezes, writes and thaws; gives the count of rows.
    pub(super) fn flush(&mut self) -> usize {
        self.freeze().map_or(0, |flush| self.finish(flush))
    }
}

/// Every row of a shard as text, with reads in pages so that ranges are seen to begin anywhere.
pub(super) fn contents(rows: &mut impl Rows) -> Vec<String> {
    /// One table; a macro, as each has types of its own.
    macro_rules! table {
        ($out:ident, $name:ident) => {
            let mut from = None;
            loop {
                let table = rows.$name();
                let page = table.range(from.as_ref(), 3);
                let seen = usize::from(from.is_some());
                let Some((last, _)) = page.get(seen..).and_then(|page| page.last()) else {
                    break;
                };
                from = Some(last.clone());
                for (key, row) in &page[seen..] {
                    assert_eq!(table.get(key).as_ref(), Some(row), "get and range agree");
                    $out.push(format!("{} {key:?} {row:?}", stringify!($name)));
                }
            }
        };
    }
    let mut out = vec![format!("{:?}", rows.shard())];
    table!(out, messages);
    table!(out, items);
    table!(out, recipients);
    table!(out, due);
    table!(out, inflight);
    table!(out, held);
    table!(out, destinations);
    table!(out, finished);
    table!(out, forgets);
    table!(out, uploads);
    table!(out, sessions);
    table!(out, timers);
    out
}

/// A message of which nothing matters but this.
pub(super) fn message(digest: mail::Digest, body: Vec<queue::Extent>) -> queue::Message {
    use queue::Timestamp;
    queue::Message {
        tenant: "default".into(),
        class: "default".into(),
        priority: 0,
        return_path: "".into(),
        arrived: Timestamp(0),
        appended: Timestamp(0),
        expires: Timestamp(0),
        notice: None,
        size: 0,
        digest,
        header_size: 0,
        eight_bit: false,
        smtputf8: false,
        body,
        items_left: 1,
        is_report: false,
        ending: queue::Ending::Delivered,
        origin: std::sync::Arc::default(),
        trace_context: "".into(),
    }
}
