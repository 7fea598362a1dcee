//! The log's writer beside raw `pwrite` and `fdatasync` of the same bytes into zero-filled files, in the same run.
//!
//! `cargo run --release -p spool --example log_speed -- DIRECTORY [SECONDS]`

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use spool::identity::ClusterId;
use spool::log::{Entry, EntryKind, Log, LogConfig, WriteTask};

/// Size of an entry's data, bytes: the 10 KiB message of all figures.
const ENTRY: usize = 10 << 10;
const SEGMENT: u64 = 64 << 20;
/// Segments that the raw writer goes round in, and that the log keeps.
const RING: u64 = 6;

fn raw(dir: &Path, batch: usize, run: Duration) -> std::io::Result<f64> {
    let zeros = vec![0; 1 << 20];
    let mut files = Vec::new();
    for at in 0..RING {
        let file = File::create(dir.join(format!("raw-{at}")))?;
        (0..SEGMENT >> 20).try_for_each(|piece| file.write_all_at(&zeros, piece << 20))?;
        file.sync_all()?;
        files.push(file);
    }
    let bytes = vec![0x5a; batch * (ENTRY + 300)];
    let (mut file, mut at, mut written) = (0, 0, 0_u64);
    let began = Instant::now();
    while began.elapsed() < run {
        if at + bytes.len() as u64 > SEGMENT {
            (file, at) = ((file + 1) % files.len(), 0);
        }
        files[file].write_all_at(&bytes, at)?;
        files[file].sync_data()?;
        at += (bytes.len() as u64).next_multiple_of(4096);
        written += bytes.len() as u64;
    }
    let rate = written as f64 / began.elapsed().as_secs_f64();
    (0..RING).try_for_each(|at| fs::remove_file(dir.join(format!("raw-{at}"))))?;
    Ok(rate)
}

fn log(dir: &Path, batch: usize, run: Duration) -> Result<f64, Box<dyn std::error::Error>> {
    let dir = dir.join("log");
    let (mut writer, reader, _) = Log::open(&dir, LogConfig::new(ClusterId([1; 16]), 1))?;
    let segments = writer.segments();
    let (context, data) = (Bytes::from(vec![1; 252]), Bytes::from(vec![2; ENTRY]));
    let mut next = 1;
    let mut began = Instant::now();
    let mut written = 0_u64;
    let mut warm = false;
    while !warm || began.elapsed() < run {
        let entry = |index| Entry {
            index,
            term: 1,
            kind: EntryKind::Normal,
            context: context.clone(),
            data: data.clone(),
        };
        let entries = (next..next + batch as u64).map(entry).collect();
        next += batch as u64;
        writer.write(&[WriteTask {
            group: 1,
            number: next,
            entries,
            hard_state: None,
            reset: None,
            urgent: false,
        }])?;
        written += (batch * (ENTRY + 300)) as u64;
        // Mail that is gone within seconds: all but the newest segments die.
        writer.set_group_state(1, (next - 1, 1));
        let sealed = segments.list().len() as u64;
        if sealed > RING {
            segments
                .truncatable()
                .iter()
                .for_each(|segment| segments.release(*segment));
        }
        if !warm && segments.list().first().is_some_and(|first| first.id > RING) {
            (warm, began, written) = (true, Instant::now(), 0);
        }
    }
    let rate = written as f64 / began.elapsed().as_secs_f64();
    drop((writer, reader, segments));
    fs::remove_dir_all(&dir)?;
    Ok(rate)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("say in which directory")?;
    let seconds = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let (dir, run) = (Path::new(&dir), Duration::from_secs(seconds));
    fs::create_dir_all(dir)?;
    for batch in [1, 10, 100, 400] {
        let (raw, log) = (raw(dir, batch, run)? / 1e6, log(dir, batch, run)? / 1e6);
        println!(
            "{batch:4} entries of 10 KiB a flush: raw {raw:7.1} MB/s, log {log:7.1} MB/s, ratio {:.2}",
            log / raw
        );
    }
    Ok(())
}
