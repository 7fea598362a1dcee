//! `postroad apply`, `get` and `config status`: what is declared in the queue, written and looked at.

use std::path::Path;
use std::time::{Duration, Instant};

use proto::QueueClient;
use proto::client::{ConfigView, PutChange, PutError};
use proto::v1::{ConfigAudience, ConfigDocument, ConfigNode};
use resource::seal::{Bound, SealingKeys};
use resource::spec::{KeyUse, Named, dkim_key};
use resource::{Audience, Document, KeyFile};
use serde_json::{Value, json};

use super::table::{plain, table};
use super::{connect, print_json};
use crate::declared::{SECRETS, read_sealing_keys};
use crate::failure::Failure;
use crate::first_start;
use crate::settings::{Apply, ConfigCommand, ConfigStatus, Output, Prune};

/// Between two looks at who has it.
const LOOK: Duration = Duration::from_millis(20);
/// A key file above this is no key: RSA with 8192 bits has some 6 KiB.
const KEY_OCTETS_MAX: u64 = 64 << 10;
/// The file of a Secret that holds the key.
const KEY_FILE: &str = "private.key";

/// `postroad apply`.
///
/// # Errors
/// Code 1 when it is refused, or not in effect everywhere in time; 3 when nobody answers.
pub async fn apply(settings: Apply) -> Result<(), Failure> {
    let files = edge::read_files(&settings.files).map_err(Failure::failed)?;
    let compiled = resource::compile_dir(files).map_err(|invalid| {
        Failure::Failed(format!(
            "resources in {} are not valid:\n{invalid}",
            settings.files.display()
        ))
    })?;
    for pool in &compiled.pools {
        eprintln!(
            "postroad: {pool} is not written: a pool is its nodes' own affair (their flags, or the operator's)"
        );
    }
    let client = connect(&settings.connection)?;
    let mut upserts: Vec<ConfigDocument> = compiled.documents.iter().map(to_wire).collect();
    if !compiled.keys.is_empty() {
        let sealing = sealing_keys(&settings)?;
        let view = client.ready(Duration::from_secs(15)).await?;
        for key in &compiled.keys {
            upserts.push(to_wire(&seal(
                &settings.files,
                key,
                &sealing,
                view.cluster_id(),
            )?));
        }
    }
    let count = upserts.len();
    let change = PutChange {
        upserts,
        deletes: Vec::new(),
        complete: settings.prune == Some(Prune::Complete),
    };
    let put = client.config().put(&settings.writer, None, change).await;
    let revision = put.map_err(failure)?;
    let began = Instant::now();
    let view = in_effect(&client, revision, Duration::from_secs(settings.wait)).await?;
    let took = began.elapsed();
    if settings.output == Output::Json {
        print_json(
            &json!({ "revision": revision, "documents": count, "waited_ms": took.as_millis() as u64,
                            "nodes": nodes_json(&view, revision) }),
        );
    } else {
        println!("{count} document(s) written; the configuration is revision {revision}");
    }
    if settings.wait == 0 {
        return Ok(());
    }
    judge(&view, revision)?;
    if settings.output == Output::Table {
        println!(
            "in effect at {} within {} ms",
            counted(&view),
            took.as_millis()
        );
    }
    Ok(())
}

/// Who has it, as soon as all have, or when the time is over.
async fn in_effect(
    client: &QueueClient,
    revision: u64,
    wait: Duration,
) -> Result<ConfigView, Failure> {
    let until = Instant::now() + wait;
    loop {
        let view = client.config().writers_and_nodes().await?;
        let all = view.nodes.iter().all(|node| node.acknowledged >= revision);
        if all || Instant::now() >= until {
            return Ok(view);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// `2 edge, 1 delivery and 3 queue node(s)`.
fn counted(view: &ConfigView) -> String {
    let count = |role: &str| view.nodes.iter().filter(|node| node.role == role).count();
    format!(
        "{} edge, {} delivery and {} queue node(s)",
        count("edge"),
        count("delivery"),
        count("queue")
    )
}

/// An error when a node has not this revision, or rejects some of it.
fn judge(view: &ConfigView, revision: u64) -> Result<(), Failure> {
    let mut faults = Vec::new();
    for node in &view.nodes {
        if node.acknowledged < revision {
            faults.push(format!(
                "{} has not acknowledged revision {revision} yet",
                title(node)
            ));
        }
        for rejected in &node.rejected {
            let (key, text) = (plain(&rejected.key), plain(&rejected.text));
            faults.push(format!("{} cannot use {key}: {text}", title(node)));
        }
    }
    match faults.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(faults.join("\n"))),
    }
}

fn title(node: &ConfigNode) -> String {
    format!("{} node {}", node.role, plain(&node.name))
}

fn failure(error: PutError) -> Failure {
    match error {
        PutError::Call(error) => error.into(),
        other => Failure::failed(other),
    }
}

fn to_wire(document: &Document) -> ConfigDocument {
    let audience = match document.audience {
        Audience::All => ConfigAudience::All,
        Audience::Edge => ConfigAudience::Edge,
        Audience::Delivery => ConfigAudience::Delivery,
        Audience::Queue => ConfigAudience::Queue,
    };
    ConfigDocument {
        key: document.key.to_string(),
        generation: document.generation,
        audience: audience.into(),
        sha256: bytes::Bytes::copy_from_slice(&document.sha256()),
        body: document.body.clone(),
    }
}

fn sealing_keys(settings: &Apply) -> Result<SealingKeys, Failure> {
    let of_up = || first_start::seal_dir(&settings.connection.data);
    let dir = settings.seal.clone().unwrap_or_else(of_up);
    let keys = read_sealing_keys(&dir)?;
    match keys.newest() {
        Some(_) => Ok(keys),
        None => Err(Failure::Failed(format!(
            "{} holds no sealing key, and DKIM keys travel sealed: make one with `head -c 32 /dev/urandom > {}/1`, and give \
             the directory to the delivery nodes too (--seal)",
            dir.display(),
            dir.display()
        ))),
    }
}

fn seal(
    dir: &Path,
    key: &KeyFile,
    sealing: &SealingKeys,
    cluster_id: &[u8],
) -> Result<Document, Failure> {
    let path = dir.join(SECRETS).join(&key.secret_name).join(KEY_FILE);
    let failed = |error: &dyn std::fmt::Display| {
        Failure::Failed(format!("DKIM key {}: {error}", path.display()))
    };
    let size = std::fs::metadata(&path).map_err(|e| failed(&e))?.len();
    if size > KEY_OCTETS_MAX {
        return Err(failed(&format!("it has {size} octets, more than any key")));
    }
    let pem = std::fs::read_to_string(&path).map_err(|e| failed(&e))?;
    let algorithm = resource::algorithm_of(&pem).ok_or_else(|| {
        failed(&"it is no private key in PKCS#8, RSA or Ed25519; make one with: openssl genpkey -algorithm ED25519")
    })?;
    // All nodes would refuse what delivery cannot use.
    delivery::SigningKey::from_pem(&key.selector, pem.as_bytes()).map_err(|e| failed(&e))?;
    let cluster_id = <&[u8; 16]>::try_from(cluster_id);
    let bound = Bound {
        cluster_id: cluster_id.map_err(|_| failed(&"the cluster's id is no UUID"))?,
        domain: &key.domain,
        selector: &key.selector,
    };
    let newest = sealing
        .newest()
        .ok_or_else(|| failed(&"there is no sealing key"))?;
    let sealed = newest.seal(bound, pem.as_bytes());
    let named = Named {
        namespace: &key.namespace,
        name: &key.name,
        generation: 0,
    };
    let of = KeyUse {
        domain: &key.domain,
        selector: &key.selector,
        algorithm,
        active: true,
    };
    Ok(dkim_key(named, &of, sealed))
}

/// `postroad config status`.
///
/// # Errors
/// Code 1 when a node has not the newest revision, or rejects some of it; 3 when nobody answers.
pub async fn run(command: ConfigCommand) -> Result<(), Failure> {
    let ConfigCommand::Status(settings) = command;
    status(settings).await
}

async fn status(settings: ConfigStatus) -> Result<(), Failure> {
    let client = connect(&settings.connection)?;
    let view = client.config().writers_and_nodes().await?;
    let documents: u32 = view.writers.iter().map(|writer| writer.documents).sum();
    if settings.output == Output::Json {
        let writers: Vec<Value> = view
            .writers
            .iter()
            .map(|w| json!({ "name": w.name, "revision": w.revision, "documents": w.documents }))
            .collect();
        print_json(
            &json!({ "revision": view.revision, "documents": documents, "writers": writers,
                            "nodes": nodes_json(&view, view.revision) }),
        );
        return judge(&view, view.revision);
    }
    println!("revision {}, {documents} document(s)", view.revision);
    if !view.writers.is_empty() {
        let rows: Vec<Vec<String>> = view
            .writers
            .iter()
            .map(|w| {
                vec![
                    plain(&w.name),
                    w.documents.to_string(),
                    w.revision.to_string(),
                ]
            })
            .collect();
        print!("\n{}", table(&["WRITER", "DOCUMENTS", "REVISION"], &rows));
    }
    let rows: Vec<Vec<String>> = view
        .nodes
        .iter()
        .map(|node| node_row(node, view.revision))
        .collect();
    print!("\n{}", table(&["ROLE", "NODE", "REVISION", "STATE"], &rows));
    judge(&view, view.revision)
}

fn node_row(node: &ConfigNode, revision: u64) -> Vec<String> {
    let state = match (node.acknowledged, node.rejected.len()) {
        (0, _) if revision > 0 => "nothing acknowledged yet".to_owned(),
        (old, _) if old < revision => "behind".to_owned(),
        (_, 0) => "has all".to_owned(),
        (_, rejected) => format!("rejects {rejected}"),
    };
    vec![
        node.role.clone(),
        plain(&node.name),
        node.acknowledged.to_string(),
        state,
    ]
}

fn nodes_json(view: &ConfigView, revision: u64) -> Vec<Value> {
    let nodes = view.nodes.iter().map(|node| {
        let rejected: Vec<Value> = node
            .rejected
            .iter()
            .map(|one| json!({ "key": one.key, "text": one.text }))
            .collect();
        let ca: String = node.ca_hash.iter().map(|b| format!("{b:02x}")).collect();
        json!({ "role": node.role, "name": node.name, "acknowledged": node.acknowledged,
                "current": node.acknowledged >= revision, "rejected": rejected, "ca_sha256": ca })
    });
    nodes.collect()
}

/// So that whoever has only these can tell whether it is the same.
pub(super) fn short_hash(octets: &[u8]) -> String {
    octets.iter().take(6).map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use resource::document::sha256;

    use super::*;
    use proto::v1::RejectedDocument;

    #[test]
    fn who_is_behind_and_what_is_rejected_is_named() {
        let node = |name: &str, acknowledged, rejected| ConfigNode {
            role: "edge".into(),
            name: name.into(),
            acknowledged,
            rejected,
            ..Default::default()
        };
        let mut view = ConfigView {
            nodes: vec![node("e1", 7, vec![])],
            ..Default::default()
        };
        assert_eq!(judge(&view, 7), Ok(()));
        let rejected = RejectedDocument {
            key: "RelayDomain/a/b".into(),
            text: "no".into(),
        };
        view.nodes.push(node("e2", 6, vec![rejected]));
        let text = judge(&view, 7).unwrap_err().to_string();
        assert_eq!(
            text,
            "edge node e2 has not acknowledged revision 7 yet\nedge node e2 cannot use RelayDomain/a/b: no"
        );
    }

    #[test]
    fn a_document_on_the_wire_says_its_own_hash() {
        let text = "apiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {name: d}\nspec: {domain: a.example, inbound: {}}\n";
        let compiled = resource::compile_dir(vec![("d.yaml".into(), text.into())]).unwrap();
        let wire = to_wire(&compiled.documents[0]);
        assert_eq!(
            (wire.key.as_str(), &wire.sha256[..]),
            ("RelayDomain/default/d", &sha256(&wire.body)[..])
        );
    }
}
