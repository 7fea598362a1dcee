//! Versions of the state machine: what makes it safe to run two programs in one group.
//!
//! Replicas compute their rows from the same entries, so two programs that read an entry differently drift apart without
//! anybody noticing (databend#19794). Hence: a program knows all behaviours up to [`NEWEST`], the rows say which one is
//! in force, and an entry ([`Command::SetVersion`]) raises it, at one index for all replicas. The leader proposes that
//! only when the program of every member knows the version; a program that does not know a command, or a version, halts.
//!
//! | version | since then |
//! |---|---|
//! | 1 | the beginning |
//! | 2 | an OpenSession that comes after a later one of the same process, or of a later process of the same kernel, opens nothing; `SetVersion`, `VerifyDigest` |
//! | 3 | the control group keeps documents: `PutConfig`, and `SetVersion`, `VerifyDigest` for that group too; `SetReplicationFactor` |

use crate::apply::Shard;
use crate::{Command, Effect, ShardState};

/// What this program knows.
pub const NEWEST: u32 = 3;

/// OpenSession requests have an order; before, each one superseded the lease sessions before it in the log.
pub(crate) const OPENS_IN_ORDER: u32 = 2;

/// The control group keeps documents.
pub const DOCUMENTS: u32 = 3;

impl Command {
    /// The version of the state machine that brought this command: a program that does not know it cannot read the entry.
    pub fn since(&self) -> u32 {
        match self {
            Command::SetVersion { version } => (*version).max(2),
            Command::VerifyDigest { .. } => 2,
            _ => 1,
        }
    }
}

impl ShardState {
    /// The version in force.
    pub fn version_in_force(&self) -> u32 {
        self.version.max(1)
    }
}

impl Shard<'_> {
    pub(crate) fn set_version(&mut self, version: u32) {
        // A leader that did not know of a later one may still have proposed it.
        if version > self.state.version_in_force() {
            self.state.version = version;
            self.emit(Effect::VersionSet { version });
        }
    }

    pub(crate) fn knows(&self, version: u32) -> bool {
        self.state.version_in_force() >= version
    }
}
