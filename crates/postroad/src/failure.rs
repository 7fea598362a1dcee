//! How the program ends when something went wrong: a text for a person and a code for a script.

use std::fmt;
use std::process::ExitCode;

use proto::CallError;

/// Why the program ends with another code than 0.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was tried and did not work: code 1.
    Failed(String),
    /// The command makes no sense as it was given: code 2, as for errors that clap finds.
    Usage(String),
    /// The queue or a server cannot be reached, so nothing is known: code 3.
    Unreachable(String),
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Unreachable(_) => 3,
        })
    }

    /// Something failed, with its chain of causes.
    pub fn failed(error: impl fmt::Display) -> Failure {
        Failure::Failed(error.to_string())
    }

    /// The command makes no sense.
    pub fn usage(error: impl fmt::Display) -> Failure {
        Failure::Usage(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Failed(text) | Failure::Usage(text) | Failure::Unreachable(text) => {
                f.write_str(text)
            }
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        match &error {
            CallError::GaveUp { .. } => Failure::Unreachable(format!(
                "{error}; is it running, and do --queue and --pki name it?"
            )),
            CallError::Gone | CallError::Refused { .. } | CallError::Declined { .. } => {
                Failure::Failed(error.to_string())
            }
        }
    }
}
