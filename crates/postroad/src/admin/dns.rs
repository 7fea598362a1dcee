//! `kubectl postroad dns DOMAIN`: the records that a domain needs, in the forms in which servers and web pages want them.
//!
//! The RelayDomain is asked for with the kubectl that is in PATH, which has called us as its plugin: it knows the cluster, the
//! context and how to sign in, and a client of our own for this one question would double the program's dependencies.

use std::process::{Output, Stdio};

use resource::{DnsRecord, DnsState, RelayDomainSpec, RelayDomainStatus, dkim};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::settings;

/// Octets of one string of a TXT record; what is longer has to be split in a zone file.
const STRING_OCTETS_MAX: usize = 255;

/// A list of RelayDomains as kubectl gives it.
#[derive(Debug, Deserialize)]
struct List {
    items: Vec<Item>,
}

#[derive(Debug, Deserialize)]
struct Item {
    metadata: Metadata,
    spec: RelayDomainSpec,
    #[serde(default)]
    status: RelayDomainStatus,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    namespace: String,
    name: String,
}

/// Prints them.
///
/// # Errors
/// Code 3 without an answer of kubectl, 1 when there is no such RelayDomain.
pub async fn run(settings: settings::DomainRecords) -> Result<(), Failure> {
    let place = match &settings.namespace {
        Some(namespace) => vec!["--namespace", namespace],
        None => vec!["--all-namespaces"],
    };
    let output = tokio::process::Command::new("kubectl")
        .args(["get", "relaydomains.postroad.dev", "--output=json"])
        .args(place)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| {
            Failure::Unreachable(format!("cannot start kubectl: {error}; it must be in PATH"))
        })?;
    let items = read(&output, settings.namespace.is_none())?;
    let domain = settings.domain.trim_end_matches('.').to_ascii_lowercase();
    let own: Vec<&Item> = items
        .iter()
        .filter(|item| item.spec.domain == domain)
        .collect();
    if own.is_empty() {
        return Err(Failure::Failed(format!(
            "there is no RelayDomain for {domain}; kubectl get relaydomains --all-namespaces shows all"
        )));
    }
    for item in own {
        match settings.output {
            settings::Output::Json => println!("{}", json(item)?),
            _ => print!("{}", text(item)),
        }
    }
    Ok(())
}

fn read(output: &Output, everywhere: bool) -> Result<Vec<Item>, Failure> {
    if !output.status.success() {
        let hint = match everywhere {
            true => "; who may not look into all namespaces names one with --namespace",
            false => "",
        };
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Unreachable(format!(
            "kubectl: {}{hint}",
            said.trim()
        )));
    }
    let list: List = serde_json::from_slice(&output.stdout).map_err(|error| {
        Failure::Failed(format!(
            "what kubectl gave is no list of RelayDomains: {error}"
        ))
    })?;
    Ok(list.items)
}

/// A record for programs: the text joined, and split as a zone file wants it.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    record: &'a DnsRecord,
    split: Vec<String>,
}

fn json(item: &Item) -> Result<String, Failure> {
    let records: Vec<Shown<'_>> = item
        .status
        .dns_records
        .iter()
        .map(|record| Shown {
            record,
            split: record
                .values
                .iter()
                .map(|value| dkim::split(value))
                .collect(),
        })
        .collect();
    serde_json::to_string_pretty(&records).map_err(Failure::failed)
}

fn text(item: &Item) -> String {
    let (namespace, name) = (&item.metadata.namespace, &item.metadata.name);
    let mut out = format!("{} (RelayDomain {namespace}/{name})\n", item.spec.domain);
    if item.status.dns_records.is_empty() {
        out += "  no records yet: the operator has not looked at it, or it needs none\n";
    }
    for record in &item.status.dns_records {
        let state = match record.state {
            DnsState::Present => "there",
            DnsState::Missing => "missing",
            DnsState::Mismatch => "there is another one",
            DnsState::Unknown => "not known",
        };
        out += &format!(
            "\n{} {} ({:?}: {state})\n",
            record.name, record.type_, record.purpose
        );
        for value in &record.values {
            out += &format!("  one string:  {value}\n");
            if value.len() > STRING_OCTETS_MAX {
                out += "  A provider's web page takes it as it is. A zone file needs strings of at most 255 octets:\n";
            }
            out += &format!(
                "  zone file:   {}. {} {}\n",
                record.name,
                record.type_,
                dkim::split(value)
            );
        }
        let others = record
            .observed
            .iter()
            .filter(|found| !record.values.contains(found));
        for found in others {
            out += &format!("  found:       {}\n", super::table::plain(found));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_record_is_shown_whole_and_in_strings_that_a_zone_file_takes() {
        let long = format!("v=DKIM1; k=rsa; p={}", "A".repeat(392));
        let list = serde_json::json!({"items": [{
            "metadata": {"namespace": "mail", "name": "example"},
            "spec": {"domain": "example.com", "outbound": {}},
            "status": {"dnsRecords": [{
                "name": "pr20260101a._domainkey.example.com", "type": "TXT", "values": [long],
                "observed": ["v=DKIM1; p="], "purpose": "DKIM", "state": "Mismatch",
            }]},
        }]});
        let output = Output {
            status: std::os::unix::process::ExitStatusExt::from_raw(0),
            stdout: list.to_string().into_bytes(),
            stderr: Vec::new(),
        };
        let items = read(&output, true).expect("a list");
        let shown = text(&items[0]);
        assert!(shown.contains(&format!("one string:  {long}\n")), "{shown}");
        let zone = shown
            .lines()
            .find(|line| line.contains("zone file: "))
            .expect("shown");
        let strings: Vec<&str> = zone.split('"').skip(1).step_by(2).collect();
        assert_eq!(strings.concat(), long);
        assert!(strings.len() == 2 && strings.iter().all(|string| string.len() <= 255));
        assert!(shown.contains("found:       v=DKIM1; p=\n"), "{shown}");
        assert!(json(&items[0]).expect("JSON").contains("\"split\""));
    }

    #[test]
    fn what_kubectl_says_is_passed_on() {
        let output = Output {
            status: std::os::unix::process::ExitStatusExt::from_raw(256),
            stdout: Vec::new(),
            stderr: b"error: forbidden\n".to_vec(),
        };
        let Err(Failure::Unreachable(text)) = read(&output, true) else {
            panic!("it failed");
        };
        assert!(
            text.contains("forbidden") && text.contains("--namespace"),
            "{text}"
        );
    }
}
