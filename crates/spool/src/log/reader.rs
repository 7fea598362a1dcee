//! Entries back from disk, verified: group, index and segment in the record's header, then the checksums.

use bytes::Bytes;

use super::record::{HEADER, RecordHeader, RecordType};
use super::{Entry, EntryKind, Location, ReadError, Segments};
use crate::directory::group_of;

/// Reads entries; cheap to clone, safe to share.
#[derive(Clone, Debug)]
pub struct LogReader {
    pub(super) segments: Segments,
}

impl LogReader {
    /// Reads a whole entry, or of one that was written again its data (then context is empty).
    /// [`ReadError::Recycled`] means that the location is old.
    pub fn read_entry(
        &self,
        location: Location,
        group: u32,
        index: u64,
    ) -> Result<Entry, ReadError> {
        let (header, context, data) = self.read_record(location, group, index)?;
        let (kind, context) = match header.kind {
            RecordType::Entry => (header.entry_kind(), context),
            _ => (Some(EntryKind::Normal), Bytes::new()),
        };
        let Some(kind) = kind else {
            return Err(self.bad(location, "another record stands where the entry should"));
        };
        Ok(Entry {
            index,
            term: header.term,
            kind,
            context,
            data,
        })
    }

    /// The record of an entry or of a copy, verified: its header, context and data.
    pub(super) fn read_record(
        &self,
        location: Location,
        group: u32,
        index: u64,
    ) -> Result<(RecordHeader, Bytes, Bytes), ReadError> {
        let file = match self.segments.0.file(location.segment) {
            Ok(Some(file)) => file,
            Ok(None) => {
                return Err(ReadError::Recycled {
                    segment: location.segment,
                });
            }
            Err(source) => return Err(self.io(location, source)),
        };
        let payload_len = location.context_len as usize + location.data_len as usize;
        let mut bytes = vec![0; HEADER + payload_len];
        match file.read_at(&mut bytes, u64::from(location.offset)) {
            Ok(read) if read == bytes.len() => {}
            Ok(_) => return Err(self.bad(location, "the file ends inside the record")),
            Err(source) => return Err(self.io(location, source)),
        }
        let Some(header) = RecordHeader::decode(&bytes) else {
            return Err(self.bad(location, "the record's header fails its checksum"));
        };
        // Whoever asks by the group's number means the replica that he has the location from.
        let right = matches!(header.kind, RecordType::Entry | RecordType::RelocatedBody)
            && header.segment == location.segment as u32
            && (group_of(header.group), header.index) == (group_of(group), index)
            && header.context_len == location.context_len
            && header.len as usize == payload_len;
        if !right {
            return Err(self.bad(location, "another record stands where the entry should"));
        }
        if crc32c::crc32c(&bytes[HEADER..]) != header.payload_crc {
            return Err(self.bad(location, "the entry fails its checksum"));
        }
        let mut payload = Bytes::from(bytes).slice(HEADER..);
        let context = payload.split_to(location.context_len as usize);
        Ok((header, context, payload))
    }

    /// Reads `len` bytes of the entry's data from `offset`, both in bytes. The whole entry is read and verified: its
    /// checksum covers all of it.
    pub fn read_data(
        &self,
        location: Location,
        group: u32,
        index: u64,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, ReadError> {
        let data = self.read_entry(location, group, index)?.data;
        match offset.checked_add(len) {
            Some(end) if end as usize <= data.len() => {
                Ok(data.slice(offset as usize..end as usize))
            }
            _ => Err(self.bad(location, "the reference reaches beyond the entry's data")),
        }
    }

    /// The segments.
    pub fn segments(&self) -> Segments {
        self.segments.clone()
    }

    pub(super) fn bad(&self, location: Location, what: &'static str) -> ReadError {
        let Location {
            segment, offset, ..
        } = location;
        // Whoever reads while a segment is recycled sees the next segment's bytes.
        match self.segments.0.holds(segment) {
            true => ReadError::Corrupt {
                segment,
                offset,
                what,
            },
            false => ReadError::Recycled { segment },
        }
    }

    fn io(&self, location: Location, source: std::io::Error) -> ReadError {
        let Location {
            segment, offset, ..
        } = location;
        match self.segments.0.holds(segment) {
            true => ReadError::Io {
                segment,
                offset,
                source,
            },
            false => ReadError::Recycled { segment },
        }
    }
}
