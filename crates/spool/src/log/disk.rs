//! The disk as the log sees it, so that the same code runs on a real one and on one that crashes on purpose.

use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// A file that is read and written at offsets.
pub trait DiskFile: Debug + Send + Sync {
    /// Writes all of `bytes` at offset `at`. Durable only after [`DiskFile::sync_data`].
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Reads at offset `at` until `into` is full or the file ends; returns how many bytes.
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize>;
    /// fdatasync. After an error the content is unknown: never retry.
    fn sync_data(&self) -> io::Result<()>;
    /// Reserves space up to `len` bytes and makes the file that long.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// The length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Drops cached pages, so that the next read comes from the device.
    fn drop_cache(&self) -> io::Result<()>;
}

/// Files and directories. Changes of a directory are durable only after [`Disk::sync_dir`].
pub trait Disk: Debug + Send + Sync {
    /// Makes an empty file; an existing one is an error.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading: a file system that met an error may have become read-only.
    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }
    /// Renames, replacing what has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory and its parents, durably.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// fsync of a directory.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Names of the files in a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// (free, total) bytes of the file system that holds `path`.
    fn space(&self, path: &Path) -> io::Result<(u64, u64)>;
}

/// The operating system's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile(fs::File);

impl DiskFile for RealFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.0.read_at(&mut into[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            // A file system without fallocate: writing zeros reserves the space as well.
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(self, 0, len),
            Err(error) => Err(error.into()),
        }
    }

    fn size(&self) -> io::Result<u64> {
        self.0.metadata().map(|meta| meta.len())
    }

    fn drop_cache(&self) -> io::Result<()> {
        rustix::fs::fadvise(&self.0, 0, None, rustix::fs::Advice::DontNeed).map_err(io::Error::from)
    }
}

/// Writes zeros from `from` to `to`, in pieces of 1 MiB.
pub(super) fn write_zeros(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let len = (to - at).min(ZERO_PIECE as u64) as usize;
        file.write_at(&ZEROS[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

/// Bytes written at once when a file is filled with zeros: short enough not to hold up a flush for long.
const ZERO_PIECE: usize = 1 << 20;

/// What files are filled with. Not allocated for each piece: the kernel would clear the memory each time anew.
static ZEROS: [u8; ZERO_PIECE] = [0; ZERO_PIECE];

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(fs::File::open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        self.create_dir(parent)?;
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.sync_dir(parent)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(path)?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }
}
