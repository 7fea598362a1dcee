//! A replica node whose rows differ from those of a majority must not serve again, also not after a restart: a file in
//! its data directory says so.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::config::Error;

/// Its text is the reason, for people.
const FILE: &str = "QUARANTINED";

/// Refuses a directory that was put aside.
///
/// # Errors
/// [`Error::Identity`] with the reason that was written then.
pub fn check(dir: &Path) -> Result<(), Error> {
    let path = dir.join(FILE);
    // The reason may have rotted: that it is there is what counts, and what can be read of it is said.
    match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::System {
            what: format!("cannot read {}", path.display()),
            source,
        }),
        Ok(reason) => Err(Error::Identity(format!(
            "{} says that this replica node was put aside: {}",
            path.display(),
            String::from_utf8_lossy(&reason).trim()
        ))),
    }
}

/// Puts a directory aside. Where that fails, the next comparison after a restart finds the same, some minutes later.
pub fn mark(dir: &Path, reason: &str) {
    let path = dir.join(FILE);
    let written = fs::File::create(&path).and_then(|mut file| {
        file.write_all(reason.as_bytes())?;
        file.sync_all()?;
        fs::File::open(dir)?.sync_all()
    });
    if let Err(error) = written {
        tracing::error!(path = %path.display(), %error, "the file that keeps this node from starting again cannot be written; do not start it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_aside_stays_there_and_says_why() {
        let dir = tempfile::tempdir().expect("a directory");
        check(dir.path()).expect("nothing is wrong with it");
        mark(dir.path(), "its rows differ from those of nodes [2, 3]");
        let refused = check(dir.path()).expect_err("it was put aside");
        assert!(refused.to_string().contains("nodes [2, 3]"), "{refused}");
        let mut rotten = b"its rows differ from those of nodes [2, 3]".to_vec();
        rotten[4] ^= 0x80;
        fs::write(dir.path().join(FILE), rotten).expect("it is written");
        let refused = check(dir.path()).expect_err("no text, and put aside all the same");
        assert!(refused.to_string().contains("nodes [2, 3]"), "{refused}");
    }
}
