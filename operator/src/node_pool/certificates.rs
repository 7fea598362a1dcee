//! The certificates that an edge pool shows its clients: they are people's own, and the pool says whether they are there.

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use resource::{EdgePool, TlsMode};

use super::edge;
use crate::conditions::{Conditions, Reason};
use crate::context::Context;
use crate::error::Error;

/// Looks for the Secrets that the pool's listeners name.
pub async fn judge(
    context: &Context,
    pool: &EdgePool,
    namespace: &str,
    conditions: &mut Conditions<'_>,
) -> Result<(), Error> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let mut missing = Vec::new();
    for name in edge::certificates(pool) {
        if !secrets
            .get_opt(&name)
            .await?
            .is_some_and(|found| holds_a_pair(&found))
        {
            missing.push(name);
        }
    }
    match said(pool, &missing) {
        Ok(text) => conditions.set("CertificatesReady", true, Reason::AsDeclared, text),
        Err(text) => conditions.set("CertificatesReady", false, Reason::CertificateMissing, text),
    }
    Ok(())
}

/// Whether the pair fits is found out by the nodes, which say so in their logs and metrics.
fn holds_a_pair(secret: &Secret) -> bool {
    let has = |key: &str| {
        secret
            .data
            .as_ref()
            .is_some_and(|data| data.contains_key(key))
    };
    has("tls.crt") && has("tls.key")
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
