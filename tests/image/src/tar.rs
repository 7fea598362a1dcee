//! The tar format, as much of it as an image needs (POSIX.1-1988 ustar): plain files and directories, no owner, no time.

/// Octets of a header, and what the content of a file is filled up to.
const BLOCK: usize = 512;
/// Octets of a name in a header; longer ones need extensions that nothing here has.
const NAME_MAX: usize = 100;

/// An archive that is being written.
#[derive(Default)]
pub struct Archive(Vec<u8>);

impl Archive {
    /// A directory; its name ends with a slash.
    pub fn directory(&mut self, name: &str) {
        self.header(name, 0, 0o755, b'5');
    }

    /// A file with its content. `mode` as in chmod(2).
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.header(name, content.len(), mode, b'0');
        self.0.extend_from_slice(content);
        let filled = self.0.len().next_multiple_of(BLOCK);
        self.0.resize(filled, 0);
    }

    /// The whole archive: two empty blocks end it.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    fn header(&mut self, name: &str, size: usize, mode: u32, kind: u8) {
        assert!(name.len() < NAME_MAX, "{name} is too long for a tar header");
        let mut block = [0; BLOCK];
        put(&mut block, 0, name.as_bytes());
        put(&mut block, 100, format!("{mode:07o}").as_bytes());
        put(&mut block, 108, b"0000000");
        put(&mut block, 116, b"0000000");
        put(&mut block, 124, format!("{size:011o}").as_bytes());
        put(&mut block, 136, b"00000000000");
        block[156] = kind;
        put(&mut block, 257, b"ustar\x0000");
        // The sum is taken with blanks in its own place.
        put(&mut block, 148, b"        ");
        let sum: u32 = block.iter().map(|octet| u32::from(*octet)).sum();
        put(&mut block, 148, format!("{sum:06o}\0").as_bytes());
        self.0.extend_from_slice(&block);
    }
}

fn put(block: &mut [u8; BLOCK], offset: usize, octets: &[u8]) {
    block[offset..offset + octets.len()].copy_from_slice(octets);
}
