//! The records of a domain's keys, as people are told of them. Pure.

use resource::dkim::{REVOKED_RECORD, record_name};
use resource::{DnsPurpose, DnsRecord, DnsState, KeyPhase};

use super::observe::One;

/// Records of a status: the API server takes no more of all purposes together.
const RECORDS_MAX: usize = 24;

/// The records that the domain should have for its keys.
pub fn records(keys: &[One]) -> Vec<DnsRecord> {
    keys.iter().filter_map(record).take(RECORDS_MAX).collect()
}

fn record(one: &One) -> Option<DnsRecord> {
    let spec = &one.object.spec;
    let void = matches!(one.key.state.phase, KeyPhase::Retired | KeyPhase::Revoked);
    let (value, purpose, state) = match void {
        true => (
            REVOKED_RECORD.to_owned(),
            DnsPurpose::DKIMRevoked,
            one.found.revoked,
        ),
        false => (text(one)?, DnsPurpose::DKIM, one.found.state),
    };
    Some(DnsRecord {
        name: record_name(&spec.selector, &spec.domain),
        type_: "TXT".into(),
        values: vec![value],
        observed: one.found.observed.clone(),
        purpose,
        state,
    })
}

/// The text of a key's record; `None`: nobody knows the key.
pub fn text(one: &One) -> Option<String> {
    let recorded = one
        .object
        .status
        .as_ref()
        .and_then(|status| status.record.as_ref());
    match &one.public {
        Ok(public) => Some(public.record()),
        Err(_) => recorded.map(|record| record.value.clone()),
    }
}

/// What is to be done at the DNS, for people; `None`: everything is there.
pub fn open(records: &[DnsRecord]) -> Option<String> {
    let mut texts = Vec::new();
    for record in records {
        let name = &record.name;
        match (record.purpose, record.state) {
            (_, DnsState::Present)
            | (DnsPurpose::DKIMRevoked, DnsState::Missing | DnsState::Unknown) => {}
            (DnsPurpose::DKIMRevoked, DnsState::Mismatch) => texts.push(format!(
                "take the record of {name} away, or write \"{REVOKED_RECORD}\" there"
            )),
            (_, DnsState::Missing) => texts.push(format!("{name} is not there")),
            (_, DnsState::Mismatch) => texts.push(format!("{name} is another record")),
            (_, DnsState::Unknown) => texts.push(format!("{name} could not be looked for")),
        }
    }
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// The records of keys among all of a domain.
pub fn keys_of(records: &[DnsRecord]) -> Vec<DnsRecord> {
    let of_keys =
        |record: &&DnsRecord| matches!(record.purpose, DnsPurpose::DKIM | DnsPurpose::DKIMRevoked);
    records.iter().filter(of_keys).cloned().collect()
}
