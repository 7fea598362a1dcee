//! Spare segments: recycled ones first, new ones when there is room, two kept for the tasks that free space.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::DiskFile;
use super::disk::write_zeros;
use super::place::Rank;
use super::segments::{Shared, Table};

/// The spare that only the collector may take (and STATE records, which give segments back): each of its jobs takes one
/// at most and frees one, so a full disk cannot block what frees it.
const FOR_COLLECTION: usize = 1;
/// Spares that new mail must not take: two are for urgent tasks, because settling and granting is what frees space
/// (queue.md 4.8).
pub(super) const RESERVED: usize = 2 + FOR_COLLECTION;
/// Spares that are kept ready: the reserved ones and the next.
const READY: usize = RESERVED + 1;
/// Recycled segments beyond this many are deleted, so that the file system gets a burst's space back.
const MOST_SPARES: u64 = 16;
/// A spare is filled with zeros only while less than this many bytes a second are flushed: filling doubles the writes,
/// just when the disk and the processors are busy. At 27 MB/s it took 13 % of a node's processor time, for segments that
/// recycled ones make superfluous seconds later; below this rate a segment lasts longer than its filling matters.
const QUIET_BYTES_PER_SECOND: u64 = 5_000_000;
/// Filled between two looks at whether somebody waits for the spare, bytes.
const FILL_PIECE: u64 = 1 << 20;
/// How long the preparing thread sleeps when nobody wakes it.
const IDLE: Duration = Duration::from_secs(1);
/// How long the writer waits for a spare that is being filled: some pieces of [`FILL_PIECE`] on a slow disk.
const RETURN_WAIT: Duration = Duration::from_secs(2);

/// A file that may become a segment.
#[derive(Debug)]
pub(super) struct Spare {
    pub name: String,
    pub file: Arc<dyn DiskFile>,
    /// All its blocks were written once, so that a flush costs no journal commit.
    pub filled: bool,
}

/// The spares, and whether one is away being filled.
#[derive(Debug, Default)]
pub(super) struct Spares {
    pub ready: Vec<Spare>,
    pub filling: bool,
    /// The writer waits for the one that is away.
    pub hurry: bool,
    pub next_name: u64,
}

impl Spares {
    /// Spare files, the one that is being filled included.
    pub fn count(&self) -> usize {
        self.ready.len() + usize::from(self.filling)
    }

    /// A name that no spare has; `.r` when its blocks are written.
    pub fn name(&mut self, filled: bool) -> String {
        self.next_name += 1;
        format!(
            "spare-{:016}.{}",
            self.next_name,
            if filled { 'r' } else { 'n' }
        )
    }

    fn take(&mut self) -> Option<Spare> {
        let at = self
            .ready
            .iter()
            .position(|spare| spare.filled)
            .unwrap_or(0);
        (at < self.ready.len()).then(|| self.ready.remove(at))
    }
}

/// The number and kind in a spare's name.
pub(super) fn parse_name(name: &str) -> Option<(u64, bool)> {
    let (digits, kind) = name.strip_prefix("spare-")?.split_once('.')?;
    Some((digits.parse().ok()?, kind == "r"))
}

impl Shared {
    /// A spare. What frees space gets the reserved ones as well, and the answer says whether it is one.
    pub fn take_spare(&self, rank: Rank) -> io::Result<Option<(Spare, bool)>> {
        let mut table = self.lock();
        if table.spares.count() <= RESERVED {
            drop(table);
            self.recycle()?;
            self.grow(READY)?;
            table = self.lock();
        }
        let left_alone = match rank {
            Rank::Normal => RESERVED,
            Rank::Urgent => FOR_COLLECTION,
            Rank::State | Rank::Collection => 0,
        };
        let enough = table.spares.count() > RESERVED;
        if table.spares.count() <= left_alone {
            return Ok(None);
        }
        if table.spares.ready.is_empty() && table.spares.filling {
            table.spares.hurry = true;
            let wait = self
                .returned
                .wait_timeout_while(table, RETURN_WAIT, |table| table.spares.filling);
            table = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        let spare = table.spares.take();
        drop(table);
        self.wake();
        Ok(spare.map(|spare| (spare, !enough)))
    }

    /// Are the reserved spares complete?
    pub fn reserve_is_whole(&self) -> bool {
        self.lock().spares.count() >= RESERVED
    }

    /// Recycles and keeps spares ready; a failing disk is remembered for the writer.
    pub fn maintain(&self) {
        let done = self.recycle().and_then(|()| self.grow(READY));
        if let Err(error) = done {
            self.lock().failed.get_or_insert(error);
        }
    }

    /// Makes spares of released segments, and deletes what is more than needed.
    fn recycle(&self) -> io::Result<()> {
        let mut table = self.lock();
        let gone = table.take_recyclable();
        let most = (self.disk_use(&table).limit / 20 / self.capacity)
            .clamp(READY as u64, MOST_SPARES) as usize;
        let mut surplus = Vec::new();
        while table.spares.ready.len() > most {
            surplus.extend(table.spares.ready.pop());
        }
        let room = most.saturating_sub(table.spares.count());
        let names: Vec<String> = gone
            .iter()
            .take(room)
            .map(|_| table.spares.name(true))
            .collect();
        drop(table);
        if gone.is_empty() && surplus.is_empty() {
            return Ok(());
        }
        let mut recycled = Vec::new();
        for (at, old) in gone.iter().enumerate() {
            let path = self.path(old);
            let file = match self.disk.open(&path) {
                // Somebody took it away: it is gone, as it should be.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            // A file of another size was made under another configuration.
            let name = names
                .get(at)
                .filter(|_| file.size().is_ok_and(|size| size == self.capacity));
            match name {
                Some(name) => {
                    self.disk.rename(&path, &self.path(name))?;
                    recycled.push(Spare {
                        name: name.clone(),
                        file,
                        filled: true,
                    });
                }
                None => self.disk.unlink(&path)?,
            }
        }
        for spare in surplus {
            self.disk.unlink(&self.path(&spare.name))?;
        }
        // Before anyone writes into a recycled file, its old name must be gone for good: else a crash would bring back
        // the old segment with the new one's bytes in it.
        self.disk.sync_dir(&self.dir)?;
        self.lock().spares.ready.extend(recycled);
        Ok(())
    }

    /// Makes new spares until there are `target`, as long as there is room. No room is no error.
    pub fn grow(&self, target: usize) -> io::Result<()> {
        loop {
            let mut table = self.lock();
            if table.spares.count() >= target || !self.may_grow(&table) {
                return Ok(());
            }
            let name = table.spares.name(false);
            drop(table);
            let path = self.path(&name);
            let made = self.disk.create(&path).and_then(|file| {
                file.allocate(self.capacity)?;
                file.sync_data()?;
                self.disk.sync_dir(&self.dir)?;
                Ok(file)
            });
            match made {
                Ok(file) => self.lock().spares.ready.push(Spare {
                    name,
                    file,
                    filled: false,
                }),
                Err(error) if is_no_space(&error) => {
                    // Gives back what was reserved; when even that fails the next start removes it.
                    let _ = self.disk.unlink(&path);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Fills one spare with zeros while the disk is quiet.
    fn fill_one(&self) -> io::Result<()> {
        let mut table = self.lock();
        let Some(at) = table.spares.ready.iter().position(|spare| !spare.filled) else {
            return Ok(());
        };
        let mut spare = table.spares.ready.remove(at);
        table.spares.filling = true;
        let name = table.spares.name(true);
        drop(table);
        let filled = self.fill(&spare, &name);
        if let Ok(true) = filled {
            spare.filled = true;
            spare.name = name;
        }
        let mut table = self.lock();
        table.spares.ready.push(spare);
        table.spares.filling = false;
        table.spares.hurry = false;
        self.returned.notify_all();
        filled.map(|_| ())
    }

    /// False: stopped, because the disk is busy or the writer wants the spare.
    fn fill(&self, spare: &Spare, name: &str) -> io::Result<bool> {
        let mut at = 0;
        while at < self.capacity {
            let (began, before) = (Instant::now(), self.flushed.load(Ordering::Relaxed));
            write_zeros(
                spare.file.as_ref(),
                at,
                (at + FILL_PIECE).min(self.capacity),
            )?;
            spare.file.sync_data()?;
            at += FILL_PIECE;
            let flushed = self.flushed.load(Ordering::Relaxed) - before;
            let busy =
                flushed as f64 > QUIET_BYTES_PER_SECOND as f64 * began.elapsed().as_secs_f64();
            if busy || self.lock().spares.hurry {
                return Ok(false);
            }
        }
        self.disk
            .rename(&self.path(&spare.name), &self.path(name))?;
        Ok(true)
    }

    fn needs_filling(table: &Table) -> bool {
        table.spares.ready.iter().any(|spare| !spare.filled)
    }
}

/// No room on the file system, or in the quota.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The thread that prepares spares; ends when the last handle of the log is gone.
pub(super) fn prepare(shared: Weak<Shared>, woken: Receiver<()>) {
    loop {
        let Some(log) = shared.upgrade() else { return };
        log.maintain();
        let mut quiet = false;
        if log.lock().failed.is_none() && Shared::needs_filling(&log.lock()) {
            let before = log.flushed.load(Ordering::Relaxed);
            std::thread::sleep(QUIET_WINDOW);
            let flushed = log.flushed.load(Ordering::Relaxed) - before;
            quiet = flushed as f64 <= QUIET_BYTES_PER_SECOND as f64 * QUIET_WINDOW.as_secs_f64();
            if quiet && let Err(error) = log.fill_one() {
                log.lock().failed.get_or_insert(error);
            }
        }
        let more = quiet && Shared::needs_filling(&log.lock());
        drop(log);
        if !more && woken.recv_timeout(IDLE) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// How long the flushes are counted before filling begins.
const QUIET_WINDOW: Duration = Duration::from_millis(100);
