//! The certificates that an edge pool shows its clients: they are people's own, and the pool says whether they are there.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use resource::{EdgePool, ListenerStatus, TlsMode};

use super::edge;
use crate::conditions::{Conditions, Reason};
use crate::context::Context;
use crate::error::Error;
use crate::pki;

/// Looks for the Secrets that the pool's listeners name; says of each listener when the first of its certificates ends.
pub async fn judge(
    context: &Context,
    pool: &EdgePool,
    namespace: &str,
    conditions: &mut Conditions<'_>,
) -> Result<Vec<ListenerStatus>, Error> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let (mut missing, mut ends) = (Vec::new(), BTreeMap::new());
    for name in edge::certificates(pool) {
        match secrets.get_opt(&name).await?.and_then(a_pair) {
            Some(certificate) => ends.extend(pki::ends(&certificate).map(|end| (name, end))),
            None => missing.push(name),
        }
    }
    match said(pool, &missing) {
        Ok(text) => conditions.set("CertificatesReady", true, Reason::AsDeclared, text),
        Err(text) => conditions.set("CertificatesReady", false, Reason::CertificateMissing, text),
    }
    Ok(listeners(pool, &ends))
}

/// The certificate of a Secret that has a key too. Whether they fit is found out by the nodes, which say so in their logs and
/// metrics.
fn a_pair(secret: Secret) -> Option<Vec<u8>> {
    let mut data = secret.data?;
    data.contains_key("tls.key").then_some(())?;
    data.remove("tls.crt").map(|certificate| certificate.0)
}

fn listeners(pool: &EdgePool, ends: &BTreeMap<String, Timestamp>) -> Vec<ListenerStatus> {
    let all = pool.spec.listeners.iter();
    all.map(|listener| {
        let names = listener.tls.iter().flat_map(|tls| &tls.secret_names);
        let first = names.filter_map(|name| ends.get(name)).min();
        ListenerStatus {
            name: listener.name.clone(),
            certificate_not_after: first.map(Timestamp::to_string),
        }
    })
    .collect()
}

/// For people: that all is well, or what is missing and what follows from it.
fn said(pool: &EdgePool, missing: &[String]) -> Result<&'static str, String> {
    let needs = |mode: TlsMode| matches!(mode, TlsMode::Implicit | TlsMode::Required);
    let mut listeners = pool.spec.listeners.iter();
    let needy = listeners.find(|listener| needs(listener.tls_mode()));
    let named = !edge::certificates(pool).is_empty();
    match (named, needy) {
        (false, Some(listener)) => Err(format!(
            "the listener {} needs a certificate, and no edge starts without: name a Secret in tls.secretNames",
            listener.name
        )),
        (false, None) => Ok("no listener names a certificate: STARTTLS is not offered"),
        (true, _) if missing.is_empty() => Ok("the Secrets are there"),
        (true, _) => Err(format!(
            "no tls.crt and tls.key in these Secrets, whose names are not served under TLS until they come: {}",
            missing.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pool(listener: Value) -> EdgePool {
        let spec = serde_json::from_value(json!({"listeners": [listener]}));
        EdgePool::new("front", spec.expect("a good spec"))
    }

    #[test]
    fn a_listener_says_when_the_first_of_its_certificates_ends() {
        let pool = pool(json!({
            "name": "smtp", "protocol": "SMTP", "port": 25, "tls": {"secretNames": ["a", "b", "gone"]},
        }));
        let at = |second| Timestamp::from_second(second).expect("a time");
        let ends = [("a".to_owned(), at(86_400)), ("b".to_owned(), at(60))];
        let told = listeners(&pool, &ends.into());
        let end = told[0].certificate_not_after.as_deref();
        assert_eq!((told.len(), end), (1, Some("1970-01-01T00:01:00Z")));
        assert!(
            listeners(&pool, &BTreeMap::new())[0]
                .certificate_not_after
                .is_none()
        );
    }

    #[test]
    fn a_pool_says_which_certificates_it_lacks() {
        let plain = pool(json!({"name": "smtp", "protocol": "SMTP", "port": 25}));
        assert!(said(&plain, &[]).is_ok());
        let bare = pool(json!({"name": "smtps", "protocol": "Submissions", "port": 465}));
        assert!(said(&bare, &[]).is_err_and(|text| text.contains("smtps")));
        let named = pool(json!({
            "name": "smtp", "protocol": "SMTP", "port": 25, "tls": {"secretNames": ["a", "b"]},
        }));
        assert_eq!(said(&named, &[]), Ok("the Secrets are there"));
        assert!(said(&named, &["b".into()]).is_err_and(|text| text.ends_with(": b")));
    }
}
