//! Before a pod that serves is deleted to be made anew, the API server says whether it would take the new one: what it does not take
//! costs the queue a node otherwise, for as long as nobody notices.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::core::Status;

use crate::error::Error;

/// Asks for `wanted` in the place of `present`, as a dry run.
///
/// # Errors
/// What the API server has against it.
pub async fn rehearse(
    pods: &Api<Pod>,
    wanted: serde_json::Value,
    present: Option<&Pod>,
) -> Result<(), Error> {
    let wanted: Pod = serde_json::from_value(wanted)?;
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match pods.create(&dry, &wanted).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if is_taken(&status, &wanted, present) => Ok(()),
        Err(kube::Error::Api(mut status)) => {
            let name = wanted.metadata.name.as_deref().unwrap_or_default();
            status.message = format!(
                "the pod {name} stays as it is, for another cannot take its place: {}",
                status.message
            );
            Err(kube::Error::Api(status).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// This no says nothing against the new pod.
fn is_taken(no: &Status, wanted: &Pod, present: Option<&Pod>) -> bool {
    match no.code {
        // Its name is taken, of course: that is found out last, after everything else was found good.
        409 => true,
        // Somebody who would be asked about the real one cannot be asked so.
        400 => no.message.contains("does not support dry run"),
        // A quota counts the present pod as well, which makes room for one that asks for no more.
        403 => {
            let no_more = |present| asks_no_more(wanted, present);
            no.message.contains("exceeded quota") && present.is_some_and(no_more)
        }
        _ => false,
    }
}

/// The new pod asks for no more of anything than the present one has.
fn asks_no_more(wanted: &Pod, present: &Pod) -> bool {
    let (wanted, present) = (asked(wanted), asked(present));
    wanted.iter().all(|(what, text)| {
        let Some(had) = present.get(what) else {
            return false;
        };
        let enough = amount(text).zip(amount(had));
        text == had || enough.is_some_and(|(text, had)| text <= had)
    })
}

/// What a pod's container asks for and may have, each by what it is and of what.
fn asked(pod: &Pod) -> BTreeMap<(&'static str, &str), &str> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut asked = BTreeMap::new();
    for resources in containers.filter_map(|one| one.resources.as_ref()) {
        let both = [
            ("requests", &resources.requests),
            ("limits", &resources.limits),
        ];
        for (kind, amounts) in both {
            for (what, amount) in amounts.iter().flatten() {
                asked.insert((kind, what.as_str()), amount.0.as_str());
            }
        }
    }
    asked
}

/// A quantity as a number, if it is one that people write.
fn amount(text: &str) -> Option<f64> {
    let thousandths = text.strip_suffix('m').map(str::parse::<f64>);
    match thousandths {
        Some(number) => number.ok().map(|number| number / 1000.0),
        None => text.parse().ok().or_else(|| {
            let octets = resource::parse_quantity(text).ok()?;
            Some(octets as f64)
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: serde_json::Value) -> Pod {
        let container = json!({"name": "postroad", "resources": resources});
        let pod =
            json!({"metadata": {"name": "main-queue-1"}, "spec": {"containers": [container]}});
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn a_pod_goes_only_when_another_like_what_is_declared_would_be_taken() {
        let old = pod(json!({"requests": {"cpu": "1"}}));
        let taken = |code, message| {
            let no = Status::failure(message, "").with_code(code);
            is_taken(&no, &old, Some(&old))
        };
        assert!(taken(409, "pods \"main-queue-1\" already exists"));
        assert!(taken(
            400,
            "admission webhook \"x\" does not support dry run"
        ));
        assert!(taken(
            403,
            "exceeded quota: mail, requested: pods=1, used: pods=3"
        ));
        for (code, message) in [
            (422, "tolerations[0].operator: Invalid value"),
            (400, "cannot be handled as a Pod"),
            (403, "violates PodSecurity"),
            (500, "etcd is away"),
        ] {
            assert!(!taken(code, message), "{code} {message}");
        }
    }

    #[test]
    fn in_a_full_quota_a_pod_makes_room_for_one_that_asks_for_no_more() {
        let old = pod(json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}}));
        let fits = |resources| asks_no_more(&pod(resources), &old);
        assert!(fits(
            json!({"requests": {"cpu": "1000m", "memory": "512Mi"}})
        ));
        assert!(fits(json!({})));
        assert!(!fits(json!({"requests": {"cpu": "1500m"}})));
        assert!(!fits(
            json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}})
        ));
        let no = Status::failure("exceeded quota: mail", "").with_code(403);
        let more = pod(json!({"requests": {"cpu": "3"}}));
        assert!(!is_taken(&no, &more, Some(&old)));
    }
}
