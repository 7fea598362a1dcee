//! Documents and their protobuf: in entries, in rows, and as they travel.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use proto::v1;
use queue::config::{Audience, Document, Held, Put, Writer};

use super::log::WireError;

// What resources are compiled to must be what the queue takes.
const _: () = {
    assert!(resource::document::KEY_OCTETS_MAX == queue::config::KEY_OCTETS_MAX);
    assert!(resource::document::BODY_OCTETS_MAX == queue::config::BODY_OCTETS_MAX);
    assert!(proto::client::PUT_DOCUMENTS_MAX == queue::config::PUT_DOCUMENTS_MAX);
    assert!(proto::client::PUT_OCTETS_MAX == queue::config::PUT_OCTETS_MAX);
    // Digest, generation and what frames key and body are less than 64 octets a document.
    let framing = queue::config::PUT_DOCUMENTS_MAX * 64 + 512;
    assert!(queue::config::PUT_OCTETS_MAX + framing <= super::log::CONTEXT_MAX);
};

/// A Put as entries carry it.
pub fn put_to_wire(put: &Put) -> v1::PutConfigCommand {
    v1::PutConfigCommand {
        writer: put.writer.to_string(),
        expected: put.expected,
        upserts: put.upserts.iter().map(document_to_wire).collect(),
        deletes: put.deletes.iter().map(|key| key.to_string()).collect(),
        complete: put.complete,
        since: put.since,
        digest: Bytes::copy_from_slice(&put.digest),
    }
}

/// The reverse of [`put_to_wire`].
///
/// # Errors
/// [`WireError::Field`].
pub fn put_from_wire(wire: v1::PutConfigCommand) -> Result<Put, WireError> {
    let upserts = wire.upserts.into_iter().map(document_from_wire);
    Ok(Put {
        writer: wire.writer.into(),
        expected: wire.expected,
        upserts: upserts.collect::<Result<_, _>>()?,
        deletes: wire.deletes.into_iter().map(Arc::from).collect(),
        complete: wire.complete,
        since: wire.since,
        digest: thirty_two("digest", &wire.digest)?,
    })
}

/// A Put as somebody asks for it: with its digest, and what is said of its bodies checked.
///
/// # Errors
/// [`WireError::Field`].
pub fn put_asked(mut wire: v1::PutConfigCommand) -> Result<Put, WireError> {
    wire.digest = Bytes::new();
    let digest = resource::document::sha256(&wire.encode_to_vec());
    wire.digest = Bytes::copy_from_slice(&digest);
    let put = put_from_wire(wire)?;
    for document in &put.upserts {
        if resource::document::sha256(&document.body) != document.sha256 {
            return Err(WireError::Field {
                field: "sha256",
                problem: format!("is not that of the body of {}", document.key),
            });
        }
    }
    Ok(put)
}

/// A document as it travels.
pub fn document_to_wire(document: &Document) -> v1::ConfigDocument {
    v1::ConfigDocument {
        key: document.key.to_string(),
        generation: document.generation,
        audience: audience_to_wire(document.audience).into(),
        sha256: Bytes::copy_from_slice(&document.sha256),
        body: document.body.clone(),
    }
}

fn document_from_wire(wire: v1::ConfigDocument) -> Result<Document, WireError> {
    let audience = match wire.audience() {
        v1::ConfigAudience::All => Audience::All,
        v1::ConfigAudience::Edge => Audience::Edge,
        v1::ConfigAudience::Delivery => Audience::Delivery,
        v1::ConfigAudience::Queue => Audience::Queue,
        v1::ConfigAudience::Unspecified => {
            return Err(WireError::Field {
                field: "audience",
                problem: format!("of {} is none that this program knows", wire.key),
            });
        }
    };
    Ok(Document {
        key: wire.key.into(),
        generation: wire.generation,
        audience,
        sha256: thirty_two("sha256", &wire.sha256)?,
        // A body out of a frame would keep all of the frame.
        body: Bytes::copy_from_slice(&wire.body),
    })
}

/// An audience as it travels.
pub fn audience_to_wire(audience: Audience) -> v1::ConfigAudience {
    match audience {
        Audience::All => v1::ConfigAudience::All,
        Audience::Edge => v1::ConfigAudience::Edge,
        Audience::Delivery => v1::ConfigAudience::Delivery,
        Audience::Queue => v1::ConfigAudience::Queue,
    }
}

/// A document's row.
pub fn held_to_bytes(held: &Held) -> Vec<u8> {
    let row = v1::ConfigRow {
        document: Some(document_to_wire(&held.document)),
        writer: held.writer.to_string(),
        revision: held.revision,
        named: held.named,
    };
    row.encode_to_vec()
}

/// The reverse of [`held_to_bytes`].
///
/// # Errors
/// The row is damaged.
pub fn held_from_bytes(bytes: &[u8]) -> Result<Held, WireError> {
    let row = v1::ConfigRow::decode(bytes)?;
    Ok(Held {
        document: document_from_wire(row.document.unwrap_or_default())?,
        writer: row.writer.into(),
        revision: row.revision,
        named: row.named,
    })
}

/// A writer's row.
pub fn writer_to_bytes(writer: &Writer) -> Vec<u8> {
    let row = v1::ConfigWriterRow {
        revision: writer.revision,
        expected: writer.expected,
        digest: Bytes::copy_from_slice(&writer.digest),
    };
    row.encode_to_vec()
}

/// The reverse of [`writer_to_bytes`].
///
/// # Errors
/// The row is damaged.
pub fn writer_from_bytes(bytes: &[u8]) -> Result<Writer, WireError> {
    let row = v1::ConfigWriterRow::decode(bytes)?;
    Ok(Writer {
        revision: row.revision,
        expected: row.expected,
        digest: thirty_two("digest", &row.digest)?,
    })
}

fn thirty_two(field: &'static str, bytes: &[u8]) -> Result<[u8; 32], WireError> {
    let problem = || WireError::Field {
        field,
        problem: format!("has {} octets, 32 are needed", bytes.len()),
    };
    bytes.try_into().map_err(|_| problem())
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::control::ControlCommand;

    fn put() -> Put {
        let body = Bytes::from_static(b"body");
        let document = Document {
            key: "Kind/a/b".into(),
            generation: 7,
            audience: Audience::Delivery,
            sha256: resource::document::sha256(&body),
            body,
        };
        Put {
            writer: "w".into(),
            expected: 3,
            upserts: vec![document],
            deletes: vec!["Kind/a/c".into()],
            complete: true,
            since: 2,
            digest: [9; 32],
        }
    }

    #[test]
    fn entries_and_rows_survive_their_bytes() {
        let command = ControlCommand::PutConfig(put().into());
        let entry = crate::wire::control::encode(&command, 5);
        assert_eq!(crate::wire::control::decode(&entry, 3).unwrap(), command);
        assert!(crate::wire::control::decode(&entry, 2).is_err());
        let held = Held {
            document: put().upserts.remove(0),
            writer: "w".into(),
            revision: 4,
            named: 5,
        };
        assert_eq!(held_from_bytes(&held_to_bytes(&held)).unwrap(), held);
        let writer = Writer {
            revision: 1,
            expected: 2,
            digest: [3; 32],
        };
        assert_eq!(
            writer_from_bytes(&writer_to_bytes(&writer)).unwrap(),
            writer
        );
    }

    #[test]
    fn the_digest_is_of_the_content_and_a_body_is_what_is_said_of_it() {
        let asked = put_asked(put_to_wire(&put())).unwrap();
        assert_ne!(
            asked.digest,
            put().digest,
            "whoever asks does not choose it"
        );
        assert_eq!(put_asked(put_to_wire(&put())).unwrap(), asked);
        let mut other = put();
        other.deletes.clear();
        assert_ne!(put_asked(put_to_wire(&other)).unwrap().digest, asked.digest);
        let mut wrong = put_to_wire(&put());
        wrong.upserts[0].body = Bytes::from_static(b"other");
        let error = put_asked(wrong).unwrap_err().to_string();
        assert!(error.contains("Kind/a/b"), "{error}");
    }
}
