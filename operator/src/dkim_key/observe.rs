//! All keys of a domain as they are now: what was written of them, what their Secrets hold, what the DNS says.

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::runtime::reflector::Store;
use resource::dkim::{PublicKey, record_name};
use resource::{
    ConditionStatus, DkimKey, DkimKeyStatus, DnsState, KeyCheck, KeyPhase, KeySource, RelayCluster,
};

use super::keymaker::{self, Order};
use super::lifecycle::{self, Key, Record, State, Wish};
use super::verify::{self, Found};
use crate::conditions::{find, is_true};
use crate::context::Context;
use crate::error::Error;
use crate::names;

/// The keys of a domain.
#[derive(Default)]
pub struct Seen {
    /// Each of them.
    pub keys: Vec<One>,
    /// What is wrong with keys that are declared and cannot be used, for people.
    pub problems: Vec<String>,
}

/// A key.
pub struct One {
    /// Its object.
    pub object: DkimKey,
    /// Its Secret.
    pub secret: Option<Secret>,
    /// Its public half, or what is wrong with its Secret.
    pub public: Result<PublicKey, String>,
    /// What the DNS says.
    pub found: Found,
    /// As the life of keys takes it.
    pub key: Key,
    /// Its object went with this look.
    pub gone: bool,
}

/// Looks at all keys of the domain.
pub async fn observe(
    context: &Context,
    order: &Order<'_>,
    cluster: &RelayCluster,
    wish: &Wish<'_>,
    now: Timestamp,
) -> Result<Seen, Error> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), order.namespace);
    let mut keys = Vec::new();
    for object in objects(context, order).await? {
        // Labels are for finding; whose a key is says its spec.
        if object.metadata.deletion_timestamp.is_some()
            || object.spec.domain_ref.name != order.name
            || object.spec.domain != order.domain.spec.domain
        {
            continue;
        }
        let secret = secrets.get_opt(&object.spec.secret_name).await?;
        keys.push(one(object, secret));
    }
    // The oldest first, so that what is told of them has an order.
    keys.sort_by(|a, b| (a.key.created, &a.key.selector).cmp(&(b.key.created, &b.key.selector)));
    let check = cluster.spec.dns.key_check;
    let looks = keys
        .iter()
        .map(|one| look(context, cluster, check, wish, one, now));
    let found = join_all(looks).await;
    for (one, found) in keys.iter_mut().zip(found) {
        let found = found?;
        one.key.record = found.record;
        one.key.ttl = found.ttl.unwrap_or(one.key.ttl);
        one.found = found;
    }
    Ok(Seen {
        keys,
        problems: Vec::new(),
    })
}

/// The DkimKeys that may be the domain's: a list by label has those that were made just now, and those that lost the label are
/// asked for by name.
async fn objects(context: &Context, order: &Order<'_>) -> Result<Vec<DkimKey>, Error> {
    let api: Api<DkimKey> = Api::namespaced(context.client.clone(), order.namespace);
    let selected = ListParams::default().labels(&format!("{}={}", names::RELAY_DOMAIN, order.name));
    let mut found = api.list(&selected).await?.items;
    context.index.ready().await;
    for name in unlabelled(&context.index.keys, order.namespace, order.name, &found) {
        found.extend(api.get_opt(&name).await?);
    }
    Ok(found)
}

/// Names of a domain's DkimKeys that a list by label does not have: who may change them may take their label away, and one that
/// nobody sees would be taken for deleted and its private key deleted after it.
fn unlabelled(
    known: &Store<DkimKey>,
    namespace: &str,
    domain: &str,
    listed: &[DkimKey],
) -> Vec<String> {
    let of_domain = known.state_filter(|key| {
        key.metadata.namespace.as_deref() == Some(namespace) && key.spec.domain_ref.name == domain
    });
    let mut names: Vec<String> = of_domain.iter().map(|key| key.name_any()).collect();
    names.retain(|name| listed.iter().all(|key| key.name_any() != *name));
    names
}

/// The public half of a key of a person's own, or what is wrong with its Secret.
pub async fn imported(
    context: &Context,
    namespace: &str,
    secret: &str,
) -> Result<Result<PublicKey, String>, Error> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    Ok(match secrets.get_opt(secret).await? {
        Some(secret) => keymaker::public_key(&secret),
        None => Err("it is not there".into()),
    })
}

fn one(object: DkimKey, secret: Option<Secret>) -> One {
    let status = object.status.clone().unwrap_or_default();
    let public = match &secret {
        Some(secret) => keymaker::public_key(secret),
        None => Err("it is not there".into()),
    };
    // A Secret whose key is of another algorithm than it was is another key.
    let public = public.and_then(|public| match public.algorithm == object.spec.algorithm {
        true => Ok(public),
        false => Err(format!("it holds a key of {:?}", public.algorithm)),
    });
    let mut state = state(&object, secret.as_ref());
    let public = match public {
        Ok(public) if !is_recorded(&status, &public) => replaced(&mut state, public),
        public => public,
    };
    let seen = find(&status.conditions, "RecordSeen");
    let absent = seen.filter(|condition| condition.status == ConditionStatus::False);
    let created = object
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0);
    let key = Key {
        algorithm: object.spec.algorithm,
        selector: object.spec.selector.clone(),
        imported: object.spec.source == KeySource::Imported,
        created: created.unwrap_or(Timestamp::UNIX_EPOCH),
        rotation: object.annotations().get(names::ROTATE).cloned(),
        revoked: object.spec.revoked == Some(true),
        readable: public.is_ok(),
        record: Record::Unknown,
        absent_since: absent.and_then(|condition| condition.last_transition_time.parse().ok()),
        ttl: status.ttl_seconds.unwrap_or_default(),
        acknowledged: is_true(&status.conditions, "Programmed"),
        state,
    };
    One {
        object,
        secret,
        public,
        found: Found {
            record: Record::Unknown,
            state: DnsState::Unknown,
            revoked: DnsState::Unknown,
            ttl: None,
            observed: Vec::new(),
            text: String::new(),
        },
        key,
        gone: false,
    }
}

/// It is the key whose record people were told of, if they were told of any.
fn is_recorded(status: &DkimKeyStatus, public: &PublicKey) -> bool {
    let record = status.record.as_ref();
    record.is_none_or(|record| record.value == public.record())
}

/// The Secret holds another key than it did. One that was to sign begins anew: its record was not seen. One that signed is
/// remembered for what is under way with its signature, and its record stays what it was.
fn replaced(state: &mut State, public: PublicKey) -> Result<PublicKey, String> {
    match state.phase {
        KeyPhase::Pending | KeyPhase::Published | KeyPhase::Active | KeyPhase::Failed => {
            *state = State::NEW;
            Ok(public)
        }
        KeyPhase::Retiring | KeyPhase::Retired | KeyPhase::Revoked => {
            Err("it holds another key than the one that signed".into())
        }
    }
}

/// Where a key is: as its status says, else as its Secret does, which outlives a RelayDomain.
fn state(object: &DkimKey, secret: Option<&Secret>) -> State {
    let status = object.status.clone().unwrap_or_default();
    let time = |text: Option<&String>| text.and_then(|text| text.parse::<Timestamp>().ok());
    if let Some(phase) = status.phase {
        return State {
            phase,
            published: time(status.published_time.as_ref()),
            active: time(status.active_time.as_ref()),
            retiring: time(status.retiring_time.as_ref()),
        };
    }
    let made = object.spec.source == KeySource::Generated;
    let Some(notes) = secret.filter(|_| made).map(ResourceExt::annotations) else {
        return State::NEW;
    };
    let phase = notes.get(names::KEY_PHASE).and_then(|text| {
        serde_json::from_value::<KeyPhase>(serde_json::Value::String(text.clone())).ok()
    });
    match phase {
        None => State::NEW,
        Some(phase) => State {
            phase,
            published: time(notes.get(names::KEY_PUBLISHED)),
            active: time(notes.get(names::KEY_ACTIVE)),
            retiring: time(notes.get(names::KEY_RETIRING)),
        },
    }
}

/// Asks the DNS, unless somebody did just now.
async fn look(
    context: &Context,
    cluster: &RelayCluster,
    check: KeyCheck,
    wish: &Wish<'_>,
    one: &One,
    now: Timestamp,
) -> Result<Found, Error> {
    // Of a key whose Secret is gone its record is still known.
    let recorded = one
        .object
        .status
        .as_ref()
        .and_then(|status| status.record.as_ref());
    let recorded = recorded.and_then(|record| PublicKey::of_record(&record.value));
    let Some(public) = one.public.clone().ok().or(recorded) else {
        return Ok(Found {
            text: "without the key nobody knows its record".into(),
            ..one.found.clone()
        });
    };
    let name = record_name(&one.object.spec.selector, &one.object.spec.domain);
    let every = lifecycle::look_every(wish, &one.key, now);
    if let Some(found) = context.looks.recent(&name, &public, check, every) {
        return Ok(found);
    }
    let authorities = context.authorities(&cluster.spec.dns.resolvers)?;
    let found = verify::look(&authorities, check, &name, &public).await;
    context.looks.note(name, public, check, found.clone());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use resource::{DkimAlgorithm, DkimKeySpec};

    use super::*;

    fn secret(private: &str) -> Secret {
        let octets = ByteString(private.as_bytes().to_vec());
        Secret {
            data: Some([(names::PRIVATE_KEY.to_owned(), octets)].into()),
            ..Secret::default()
        }
    }

    fn object(phase: KeyPhase, record: &str) -> DkimKey {
        let spec: DkimKeySpec = serde_json::from_value(serde_json::json!({
            "domainRef": {"name": "shop"}, "domain": "shop.test", "selector": "s",
            "algorithm": "Ed25519", "secretName": "own", "source": "Imported",
        }))
        .expect("a good spec");
        let mut object = DkimKey::new("shop-s", spec);
        object.status = serde_json::from_value(serde_json::json!({
            "phase": phase, "activeTime": "2026-01-01T00:00:00Z",
            "record": {"name": "s._domainkey.shop.test", "value": record},
        }))
        .expect("a good status");
        object
    }

    /// It was taken for deleted, and its private key was deleted after it.
    #[test]
    fn a_key_that_lost_its_label_is_seen_all_the_same() {
        let (store, mut writer) = reflector::store::<DkimKey>();
        let key = |namespace: &str, name: &str, domain: &str| {
            let mut key = object(KeyPhase::Active, "");
            key.metadata.namespace = Some(namespace.into());
            key.metadata.name = Some(name.into());
            key.spec.domain_ref.name = domain.into();
            key
        };
        let labelled = key("a", "shop-s", "shop");
        for key in [
            labelled.clone(),
            key("a", "shop-t", "shop"),
            key("a", "other-s", "other"),
            key("b", "shop-u", "shop"),
        ] {
            writer.apply_watcher_event(&Event::Apply(key));
        }
        assert_eq!(unlabelled(&store, "a", "shop", &[labelled]), ["shop-t"]);
    }

    #[test]
    fn a_secret_with_another_key_begins_anew_and_the_record_of_one_that_signed_stays() {
        let made = || keymaker::generate(DkimAlgorithm::Ed25519).expect("made");
        let record = |private: &str| PublicKey::of_private(private).expect("a key").record();
        let (old, new) = (made(), made());
        for phase in [KeyPhase::Published, KeyPhase::Active, KeyPhase::Failed] {
            let same = one(object(phase, &record(&old)), Some(secret(&old)));
            assert_eq!(same.key.state.phase, phase);
            let other = one(object(phase, &record(&old)), Some(secret(&new)));
            assert_eq!(other.key.state, State::NEW, "{phase:?}");
            assert!(other.key.readable, "its record is looked for");
        }
        let retiring = one(
            object(KeyPhase::Retiring, &record(&old)),
            Some(secret(&new)),
        );
        assert_eq!(retiring.key.state.phase, KeyPhase::Retiring);
        assert!(!retiring.key.readable);
        assert_eq!(super::super::publish::text(&retiring), Some(record(&old)));
    }
}
