//! Sizes and counts of a message, each with its unit and reason.

/// Octets of a domain (RFC 5321 4.5.3.1.2).
pub const DOMAIN_BYTES_MAX: usize = 255;

/// Octets of one label of a domain (RFC 1035 2.3.4).
pub const LABEL_BYTES_MAX: usize = 63;

/// Octets of a mailbox: a path is at most 256 with its angle brackets (RFC 5321 4.5.3.1.3). The local part has no bound of its
/// own: 64 octets is what everybody must take (4.5.3.1.1), and return paths that hold a recipient have more.
pub const MAILBOX_BYTES_MAX: usize = 254;

/// Recipients of one message. RFC 5321 4.5.3.1.8 asks for 100 at least; what is beyond gets 452 and comes again.
pub const RECIPIENTS_MAX: usize = 1000;

/// `Received` fields of a message before it is called a loop (RFC 5321 6.3 asks for 100 at least).
pub const RECEIVED_MAX: u32 = 100;

/// Octets of a header block: a real one has some KiB, and whoever reads headers holds the block in memory.
pub const HEADER_BYTES_MAX: usize = 256 * 1024;

/// Octets that are kept of one header field that we look into; longer values are cut, never refused.
pub const FIELD_BYTES_MAX: usize = 2048;

/// Octets of a Message-ID that travel with the message for people.
pub const MESSAGE_ID_BYTES_MAX: usize = 250;

/// Octets of the original header block that a report returns (RFC 3462 section 2 leaves the choice).
pub const RETURNED_HEADER_BYTES_MAX: usize = 64 * 1024;

/// Octets of reply text that a report quotes for one recipient.
pub const DIAGNOSTIC_BYTES_MAX: usize = 1024;

/// Octets of a reply line without its CRLF that we send (RFC 5321 4.5.3.1.5 allows 512 with it).
pub const REPLY_LINE_BYTES_MAX: usize = 510;

const _: () = assert!(RETURNED_HEADER_BYTES_MAX <= HEADER_BYTES_MAX);
const _: () = assert!(MESSAGE_ID_BYTES_MAX < FIELD_BYTES_MAX);
