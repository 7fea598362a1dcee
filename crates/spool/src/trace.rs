//! raft-rs logs with slog; this brings its lines to tracing. Info and above only: at Debug raft-rs formats whole
//! messages, and people's mail does not belong in a log.

use std::fmt::{self, Write};

use slog::{Drain, Level, Logger, OwnedKVList, Record, Serializer, o};

/// A logger for one group's `RawNode`.
pub fn logger(group: u32, peer: u64) -> Logger {
    Logger::root(ToTracing { group, peer }, o!())
}

struct ToTracing {
    group: u32,
    peer: u64,
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), slog::Never> {
        let (group, peer) = (self.group, self.peer);
        match record.level() {
            Level::Critical | Level::Error if tracing::enabled!(target: "raft", tracing::Level::ERROR) =>
            {
                tracing::error!(target: "raft", group, peer, "{}", text(record));
            }
            Level::Warning if tracing::enabled!(target: "raft", tracing::Level::WARN) => {
                tracing::warn!(target: "raft", group, peer, "{}", text(record));
            }
            Level::Info if tracing::enabled!(target: "raft", tracing::Level::INFO) => {
                tracing::info!(target: "raft", group, peer, "{}", text(record));
            }
            _ => {}
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        level.is_at_least(Level::Info)
    }
}

/// The message with its key-value pairs.
fn text(record: &Record<'_>) -> String {
    let mut line = Line(record.msg().to_string());
    // A value that cannot be formatted is left out: the message itself is what matters.
    let _ = slog::KV::serialize(&record.kv(), record, &mut line);
    line.0
}

struct Line(String);

impl Serializer for Line {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(slog::Error::Fmt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_lines_are_never_formatted() {
        let logger = logger(1, 1);
        assert!(logger.is_enabled(Level::Info));
        assert!(!logger.is_enabled(Level::Debug));
    }

    #[test]
    fn key_value_pairs_follow_the_message() {
        let mut line = Line("became leader".into());
        line.emit_arguments("term", &format_args!("{}", 7))
            .expect("a string takes all text");
        assert_eq!(line.0, "became leader term=7");
    }
}
