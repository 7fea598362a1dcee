//! Read-only questions.
