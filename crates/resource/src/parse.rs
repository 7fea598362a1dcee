//! Texts to documents: one YAML document, one resource.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Problem;
use crate::kind::{
    API_VERSION, DEFAULT_NAMESPACE, DeliveryPoolSpec, EdgePoolSpec, QueuePoolSpec,
    RelayClusterSpec, RelayDomainSpec,
};
use crate::spec::Named;
use crate::validate::parse_label;

/// Octets of one file: far above what a person writes, far below what hurts a node.
const FILE_OCTETS_MAX: usize = 16 << 20;

/// A resource with the place that it came from.
#[derive(Debug)]
pub(crate) struct Document {
    pub place: Place,
    pub tenant: String,
    pub name: String,
    pub resource: Resource,
}

impl Document {
    /// What its document is called.
    pub fn named(&self) -> Named<'_> {
        Named {
            namespace: &self.tenant,
            name: &self.name,
            generation: 0,
        }
    }
}

/// Where a resource was declared: the beginning of every error text.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub file: String,
    pub document: usize,
    /// `Kind namespace/name`
    pub resource: Option<String>,
}

impl Place {
    pub fn problem(&self, field: impl Into<String>, text: impl Into<String>) -> Problem {
        Problem {
            file: self.file.clone(),
            document: self.document,
            resource: self.resource.clone(),
            field: field.into(),
            text: text.into(),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Resource {
    RelayDomain(RelayDomainSpec),
    RelayCluster(RelayClusterSpec),
    EdgePool(EdgePoolSpec),
    QueuePool(QueuePoolSpec),
    DeliveryPool(DeliveryPoolSpec),
}

impl Resource {
    /// Its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Resource::RelayDomain(_) => "RelayDomain",
            Resource::RelayCluster(_) => "RelayCluster",
            Resource::EdgePool(_) => "EdgePool",
            Resource::QueuePool(_) => "QueuePool",
            Resource::DeliveryPool(_) => "DeliveryPool",
        }
    }
}

/// Name and namespace. The other fields are Kubernetes' own and pass unread, so that the output of
/// `kubectl get -o yaml` can be used as it is.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Metadata {
    /// A DNS label, unique for kind and namespace.
    pub name: String,
    /// The tenant; [`DEFAULT_NAMESPACE`] when absent.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// What all kinds share.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope {
    api_version: String,
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
    /// What an operator wrote; it comes along with `kubectl get -o yaml`.
    #[serde(default, rename = "status")]
    _status: Option<IgnoredAny>,
}

/// The documents of one file. Faults go to `problems`; the other documents are still read.
pub(crate) fn parse_file(file: &str, text: &str, problems: &mut Vec<Problem>) -> Vec<Document> {
    if text.len() > FILE_OCTETS_MAX {
        let place = Place {
            file: file.into(),
            document: 1,
            resource: None,
        };
        problems.push(place.problem(
            "",
            format!(
                "the file has {} octets; split it, at most {FILE_OCTETS_MAX} a file",
                text.len()
            ),
        ));
        return Vec::new();
    }
    let mut found = Vec::new();
    for (n, part) in split(text).into_iter().enumerate() {
        let mut place = Place {
            file: file.into(),
            document: n + 1,
            resource: None,
        };
        let value = match serde_saphyr::from_str::<Value>(&part) {
            Ok(Value::Null) => continue,
            Ok(value) => value,
            Err(error) => {
                problems.push(place.problem("", format!("not YAML: {}", error.without_snippet())));
                continue;
            }
        };
        match parse_document(&mut place, value) {
            Ok((tenant, name, resource)) => found.push(Document {
                place,
                tenant,
                name,
                resource,
            }),
            Err((field, text)) => problems.push(place.problem(field, text)),
        }
    }
    found
}

/// Cuts at document markers (YAML 1.2 section 9.1.2: `---` at the start of a line is nothing else). Each part keeps its
/// line numbers by blank lines in front, so that errors name the line of the file.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for (n, line) in text.split_inclusive('\n').enumerate() {
        let after = line
            .strip_prefix("---")
            .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        let part = match after {
            Some(_) => {
                // A marker before anything was said opens the first document.
                if parts.last().is_some_and(|part| is_blank(part)) {
                    parts.pop();
                }
                parts.push("\n".repeat(n));
                parts.last_mut()
            }
            None => parts.last_mut(),
        };
        if let Some(part) = part {
            part.push_str(after.unwrap_or(line));
        }
    }
    parts
}

fn is_blank(part: &str) -> bool {
    part.lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

type Fault = (String, String);

fn parse_document(place: &mut Place, value: Value) -> Result<(String, String, Resource), Fault> {
    let envelope: Envelope = typed(value, "")?;
    if envelope.api_version != API_VERSION {
        return Err((
            "apiVersion".into(),
            format!(
                "`{}` is not known; write {API_VERSION}",
                envelope.api_version
            ),
        ));
    }
    let name =
        parse_label(&envelope.metadata.name).map_err(|text| ("metadata.name".into(), text))?;
    let tenant = match &envelope.metadata.namespace {
        Some(namespace) => {
            parse_label(namespace).map_err(|text| ("metadata.namespace".into(), text))?
        }
        None => DEFAULT_NAMESPACE.into(),
    };
    place.resource = Some(format!("{} {tenant}/{name}", envelope.kind));
    // `spec:` with nothing behind it is a spec of defaults.
    let spec = if envelope.spec.is_null() {
        Value::Object(Default::default())
    } else {
        envelope.spec
    };
    let resource = match envelope.kind.as_str() {
        "RelayDomain" => Resource::RelayDomain(strict(spec)?),
        "RelayCluster" => Resource::RelayCluster(strict(spec)?),
        "EdgePool" => Resource::EdgePool(strict(spec)?),
        "QueuePool" => Resource::QueuePool(strict(spec)?),
        "DeliveryPool" => Resource::DeliveryPool(strict(spec)?),
        "DkimKey" => {
            let text = "a DkimKey is made by the operator; name keys of your own in a RelayDomain's outbound.dkim.keys";
            return Err(("kind".into(), text.into()));
        }
        other => {
            let text = format!(
                "`{other}` is not known; kinds are RelayDomain, RelayCluster, EdgePool, QueuePool, DeliveryPool"
            );
            return Err(("kind".into(), text));
        }
    };
    Ok((tenant, name, resource))
}

/// A typed spec. A field that its type does not know is an error: it is misspelt, or its function does not exist. The types
/// themselves let it pass, because an operator may be older than the definitions in its cluster.
fn strict<T: DeserializeOwned + Serialize>(value: Value) -> Result<T, Fault> {
    let spec: T = typed(value.clone(), "spec")?;
    let known = serde_json::to_value(&spec).map_err(|error| ("spec".into(), error.to_string()))?;
    match unknown_field(&value, &known, "spec") {
        Some(fault) => Err(fault),
        None => Ok(spec),
    }
}

/// The first field of `value` that is not in `known`, the same value as its type writes it.
fn unknown_field(value: &Value, known: &Value, path: &str) -> Option<Fault> {
    match (value, known) {
        (Value::Object(value), Value::Object(known)) => value.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match known.get(name) {
                Some(known) => unknown_field(value, known, &path),
                // A type may leave out what is absent.
                None if value.is_null() => None,
                None => {
                    let names: Vec<&str> = known.keys().map(String::as_str).collect();
                    let text = format!(
                        "unknown field `{name}`; fields here are {}",
                        names.join(", ")
                    );
                    Some((path, text))
                }
            }
        }),
        (Value::Array(value), Value::Array(known)) => {
            let mut pairs = value.iter().zip(known).enumerate();
            pairs.find_map(|(n, (value, known))| {
                unknown_field(value, known, &format!("{path}[{n}]"))
            })
        }
        _ => None,
    }
}

/// A typed value, or the field that is wrong and how.
fn typed<T: DeserializeOwned>(value: Value, under: &str) -> Result<T, Fault> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = match (under, path.as_str()) {
            ("", ".") => String::new(),
            (_, ".") => under.to_string(),
            ("", _) => path,
            _ => format!("{under}.{path}"),
        };
        (field, error.into_inner().to_string())
    })
}
