//! What can be read of the queue in a data directory that does not open any more: the last resort when there is no other
//! copy. The directory is not changed: the metadata are copied before they are opened.
//!
//! The metadata, as of their last flush, say which messages there were; what the log can still tell of later is applied
//! to them. Without metadata the log alone speaks: then messages that were delivered may be among what is found, since the
//! entries that settled them may be gone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mail::{Digest, Ulid};
use queue::{Item, ItemId, Message, Recipient, Rows};

use crate::directory::group_of;
use crate::identity::{DirError, Lock};
use crate::log::{EntryKind, RealDisk, Survey};
use crate::runtime::account;
use crate::state::{FLUSH_BYTES, GroupState, Store, StoreConfig};
use crate::wire::log::{STATE_MACHINE_VERSION, decode};

/// Messages looked at between two reads of the table.
const PAGE: usize = 256;

/// A message that was in the queue.
#[derive(Debug)]
pub struct Salvaged {
    /// Its id.
    pub id: Ulid,
    /// Its envelope.
    pub message: Arc<Message>,
    /// Where it still has to go.
    pub items: Vec<(ItemId, Arc<Item>, Vec<Arc<Recipient>>)>,
    /// Its octets, or which of them cannot be read and why.
    pub body: Result<Bytes, String>,
}

/// Salvage cannot begin, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// The directory is in use, or cannot be locked.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not even an empty store can be made in the working directory.
    #[error(transparent)]
    Store(#[from] crate::state::StoreError),
}

/// Reads what is readable in the data directory `data`. `work` is an empty directory for copies of the metadata; the
/// caller removes it. Each message is handed to `take`; what could not be read, beside bodies, is returned as texts.
///
/// # Errors
/// [`SalvageError`]; an error of `take` ends it too.
pub fn salvage(
    data: &Path,
    work: &Path,
    mut take: impl FnMut(Salvaged) -> Result<(), SalvageError>,
) -> Result<Vec<String>, SalvageError> {
    let _lock = Lock::take_to_read(data)?;
    let log = data.join("log");
    let survey = Survey::of(&RealDisk, &log).map_err(io_at(&log))?;
    let mut problems = survey.gaps.clone();
    let store = metadata(data, work, &mut problems)?;
    let mut groups: BTreeSet<u32> = store.groups();
    groups.extend(survey.groups.keys());
    // What is left of a replica that this node gave up is not its mail.
    let here = store.replicas()?;
    groups.retain(|replica| {
        group_of(*replica) != crate::CONTROL_GROUP && here.get(replica) != Some(&None)
    });
    for replica in groups {
        let group = group_of(replica);
        let mut rows = store.group(replica)?;
        replay(&store, &mut rows, &survey, &mut problems)?;
        messages(&mut rows, &survey, &mut take)?;
        if let Some(error) = rows.error() {
            problems.push(format!("group {group}: {error}; messages may be missing"));
        }
    }
    Ok(problems)
}

/// The metadata from a copy, or an empty store where they are lost.
fn metadata(data: &Path, work: &Path, problems: &mut Vec<String>) -> Result<Store, SalvageError> {
    let (from, copy) = (data.join("meta"), work.join("copy"));
    fs::create_dir_all(&copy).map_err(io_at(&copy))?;
    let copied = copy_all(&from, &copy.join("meta"));
    // In a thread of its own: fjall may panic over what it did not write.
    let open = || Store::open(&copy, StoreConfig::default()).map_err(|error| error.to_string());
    let opened = copied.map_err(|error| error.to_string()).and_then(|()| {
        let opened = std::thread::scope(|scope| scope.spawn(open).join());
        opened.unwrap_or_else(|_| Err("reading them ended in a panic, see above".into()))
    });
    match opened {
        Ok(store) => Ok(store),
        Err(why) => {
            problems.push(format!(
                "the metadata cannot be used ({why}): what follows comes from the log alone, and may have been delivered \
                 already"
            ));
            Ok(Store::open(&work.join("empty"), StoreConfig::default())?)
        }
    }
}

fn copy_all(from: &Path, to: &Path) -> Result<(), SalvageError> {
    fs::create_dir_all(to).map_err(io_at(to))?;
    for entry in fs::read_dir(from).map_err(io_at(from))? {
        let entry = entry.map_err(io_at(from))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().map_err(io_at(&path))?.is_dir() {
            true => copy_all(&path, &target)?,
            // Journals are made long and are nearly empty: a copy may take some 64 MiB each.
            false => drop(fs::copy(&path, &target).map_err(io_at(&path))?),
        }
    }
    Ok(())
}

/// Applies what the log knows beyond the metadata.
fn replay(
    store: &Store,
    rows: &mut GroupState,
    survey: &Survey,
    problems: &mut Vec<String>,
) -> Result<(), SalvageError> {
    let (replica, group) = (rows.group(), group_of(rows.group()));
    let Some(entries) = survey.groups.get(&replica) else {
        return Ok(());
    };
    let applied = rows.applied().0;
    let mut expected = applied + 1;
    for (&index, entry) in entries.range(applied + 1..) {
        if index > expected {
            problems.push(format!(
                "entries {expected} to {} of group {group} are missing: what they did is not known",
                index - 1
            ));
        }
        expected = index + 1;
        let command = match survey.read(entry.location, replica, index) {
            Ok((context, _)) if entry.kind == EntryKind::Normal && !context.is_empty() => {
                decode(&context, STATE_MACHINE_VERSION).map_err(|error| error.to_string())
            }
            Ok(_) => continue,
            Err(error) => Err(error),
        };
        match command {
            Ok(facts) => {
                let effects = queue::apply(rows, index, &facts);
                account(rows, index, Some(entry.location), &effects);
            }
            Err(why) => problems.push(format!(
                "entry {index} of group {group}: {why}; what it did is not known"
            )),
        }
        rows.set_applied(index, entry.term);
        if rows.overlay_bytes() > FLUSH_BYTES
            && let Some(flush) = store.freeze([&mut *rows])
        {
            store.flushed(flush.run()?, [&mut *rows]);
        }
    }
    Ok(())
}

fn messages(
    rows: &mut GroupState,
    survey: &Survey,
    take: &mut impl FnMut(Salvaged) -> Result<(), SalvageError>,
) -> Result<(), SalvageError> {
    let mut from: Option<Ulid> = None;
    loop {
        let page = rows.messages().range(from.as_ref(), PAGE);
        let Some(last) = page.last().map(|(id, _)| *id) else {
            return Ok(());
        };
        let whole = page.len() < PAGE;
        for (id, message) in page {
            if from == Some(id) {
                continue;
            }
            let body = body(rows, survey, &message);
            let items = items(rows, id, &message);
            take(Salvaged {
                id,
                message,
                items,
                body,
            })?;
        }
        if whole || from == Some(last) {
            return Ok(());
        }
        from = Some(last);
    }
}

fn items(
    rows: &mut GroupState,
    message: Ulid,
    row: &Message,
) -> Vec<(ItemId, Arc<Item>, Vec<Arc<Recipient>>)> {
    let first = ItemId { message, number: 0 };
    let items = rows.items().range(Some(&first), row.items_left as usize);
    let own = items.into_iter().filter(|(id, _)| id.message == message);
    own.collect::<Vec<_>>()
        .into_iter()
        .map(|(item, row)| {
            let first = queue::RecipientId { item, number: 0 };
            let count = row.recipients as usize;
            let recipients = rows.recipients().range(Some(&first), count).into_iter();
            let recipients = recipients.filter(|(id, _)| id.item == item);
            (item, row, recipients.map(|(_, row)| row).collect())
        })
        .collect()
}

fn body(rows: &GroupState, survey: &Survey, message: &Message) -> Result<Bytes, String> {
    let (replica, group) = (rows.group(), group_of(rows.group()));
    let mut whole = BytesMut::new();
    for extent in &message.body {
        let Some(location) = rows.locate(extent.index) else {
            return Err(format!(
                "entry {} of group {group}: nothing says where it lies",
                extent.index
            ));
        };
        let (_, data) = survey.read(location, replica, extent.index)?;
        let from = extent.offset as usize;
        let piece = data
            .get(from..)
            .and_then(|d| d.get(..extent.length as usize));
        whole.extend_from_slice(piece.ok_or("the reference reaches beyond the entry's data")?);
    }
    match Digest::of(&whole) == message.digest {
        true => Ok(whole.freeze()),
        false => Err("the body does not have the digest that it was accepted with".to_owned()),
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> SalvageError {
    let path = path.to_owned();
    move |source| SalvageError::Io { path, source }
}
