//! Server-side apply: the operator states what it owns, and the API server removes what it stated before and no more.
//!
//! One field manager for each controller, because a field that its manager leaves out the next time is deleted.

use std::fmt::Debug;

use kube::Resource;
use kube::api::{Api, Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Who states something: part of the field manager's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// Of RelayCluster.
    Cluster,
    /// Of EdgePool.
    EdgePool,
    /// Of DeliveryPool.
    DeliveryPool,
    /// Of QueuePool.
    QueuePool,
    /// Of the configuration that is sent to the nodes; it writes what became of RelayDomains and signing keys there.
    Config,
    /// Of RelayDomains as such: who agreed to them.
    Domain,
    /// Of signing keys; it writes their status, and what RelayDomains say of theirs.
    DkimKey,
}

impl Controller {
    /// As in logs and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Controller::Cluster => "cluster",
            Controller::EdgePool => "edge-pool",
            Controller::DeliveryPool => "delivery-pool",
            Controller::QueuePool => "queue-pool",
            Controller::Config => "config",
            Controller::Domain => "domain",
            Controller::DkimKey => "dkim-key",
        }
    }

    fn params(self) -> PatchParams {
        // Force: what somebody else wrote into our fields is taken back. Nobody else's fields are stated.
        PatchParams::apply(&format!("postroad/{}", self.as_str())).force()
    }
}

/// States a child object: the whole of what is ours in it.
pub async fn apply<K>(api: &Api<K>, controller: Controller, object: &Value) -> kube::Result<K>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    api.patch(name, &controller.params(), &Patch::Apply(object))
        .await
}

/// States an object's status: the whole of what is ours in it. An object that went meanwhile has nobody to be told.
pub async fn apply_status<K>(
    api: &Api<K>,
    controller: Controller,
    name: &str,
    status: &Value,
) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let object = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name},
        "status": status,
    });
    let (params, patch) = (controller.params(), Patch::Apply(&object));
    match api.patch_status(name, &params, &patch).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// The owner of a child that goes when the owner goes.
pub fn owner<K: Resource<DynamicType = ()>>(object: &K) -> Value {
    json!([object.controller_owner_ref(&())])
}

/// An absent field and `null` mean the same to us, and not to every reader.
pub fn without_nulls(mut value: Value) -> Value {
    strip_nulls(&mut value);
    value
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}
