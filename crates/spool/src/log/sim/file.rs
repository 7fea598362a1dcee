//! A file of the simulated disk.

use std::io;
use std::ops::Range;
use std::sync::MutexGuard;

use super::super::DiskFile;
use super::{SimDisk, State};

#[derive(Debug)]
pub(super) struct SimFile {
    pub(super) disk: SimDisk,
    pub(super) inode: usize,
    pub(super) life: u64,
}

impl SimFile {
    fn step(&self) -> io::Result<(MutexGuard<'_, State>, bool)> {
        let (state, fails) = self.disk.step()?;
        if state.life != self.life {
            return Err(io::Error::other("the file was opened before the crash"));
        }
        Ok((state, fails))
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let (mut state, fails) = self.step()?;
        let grows =
            (at + bytes.len() as u64).saturating_sub(state.files[self.inode].now.len() as u64);
        if grows > state.free() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Some(kind) = state.fail_write.take() {
            state.files[self.inode].write(&bytes[..bytes.len() / 2], at as usize);
            return Err(kind.into());
        }
        state.files[self.inode].write(bytes, at as usize);
        let written = at..at + bytes.len() as u64;
        let again = |(inode, range): &(usize, Range<u64>)| {
            *inode == self.inode && written.start <= range.start && range.end <= written.end
        };
        state.unreadable.retain(|it| !again(it));
        if fails { state.fail() } else { Ok(()) }
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let (state, _) = self.step()?;
        let asked = at..at + into.len() as u64;
        let hit = |(inode, range): &(usize, Range<u64>)| {
            *inode == self.inode && range.start < asked.end && asked.start < range.end
        };
        if state.unreadable.iter().any(hit) {
            return Err(rustix::io::Errno::IO.into());
        }
        let file = &state.files[self.inode].now;
        let from = (at as usize).min(file.len());
        let len = into.len().min(file.len() - from);
        into[..len].copy_from_slice(&file[from..from + len]);
        Ok(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let (mut state, fails) = self.step()?;
        if fails {
            return state.fail();
        }
        if state.fails_this_sync() {
            state.files[self.inode].lose();
            return Err(io::Error::other("input/output error"));
        }
        state.files[self.inode].sync();
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let (mut state, fails) = self.step()?;
        let grows = len.saturating_sub(state.files[self.inode].now.len() as u64);
        if grows > state.free() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = &mut state.files[self.inode];
        let len = file.now.len().max(len as usize);
        file.now.resize(len, 0);
        if fails { state.fail() } else { Ok(()) }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.step()?.0.files[self.inode].now.len() as u64)
    }

    fn drop_cache(&self) -> io::Result<()> {
        // No operation that could be interrupted: nothing changes on the device.
        self.disk.lock().files[self.inode].drop_cache();
        Ok(())
    }
}
