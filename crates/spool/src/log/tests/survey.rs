//! What is read of a log that does not open.

use std::path::Path;

use super::super::{SimDisk, Survey};
use super::{entry, open, task};

/// Nothing at all was given out of a log in which the device refused one sector.
#[test]
fn a_sector_that_cannot_be_read_costs_what_lies_in_it() -> Result<(), Box<dyn std::error::Error>> {
    let disk = SimDisk::new(4 << 20, 1);
    let (mut writer, _, _) = open(&disk);
    let mut at = Vec::new();
    for index in 1..=4 {
        let written = writer.write(&[task(1, index, vec![entry(index, 1, 3_000, index - 1)])])?;
        at.push(u64::from(written[0].locations[0].1.offset));
    }
    disk.kill_process();
    let segment = Path::new("/log/seg-0000000000000001.g0");
    // The header of one, and octets of another.
    assert!(disk.fail_read(segment, at[1]..at[1] + 512));
    assert!(disk.fail_read(segment, at[2] + 1_000..at[2] + 1_512));
    let survey = Survey::of(&disk, Path::new("/log"))?;
    let entries = &survey.groups[&1];
    assert_eq!(entries.keys().copied().collect::<Vec<_>>(), [1, 3, 4]);
    assert_eq!(survey.gaps.len(), 1, "{:?}", survey.gaps);
    let read = |index: u64| survey.read(entries[&index].location, 1, index);
    assert!(read(1).is_ok() && read(3).is_err() && read(4).is_ok());
    Ok(())
}
