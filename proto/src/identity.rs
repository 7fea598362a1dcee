//! Who a node is: the URI in its certificate, and what its role may ask for.
//!
//! `spiffe://<cluster>/<role>/<name>` (on Kubernetes the cluster is `<cluster>.<namespace>`). The certificate proves
//! cluster, role and name; [`require`] is the one door through which each RPC looks at them.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use tonic::{Request, Status};

/// What a node is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Accepts mail and appends it.
    Edge,
    /// Holds the replicated queue. The name is the node id.
    Queue,
    /// Leases, delivers, settles.
    Delivery,
    /// The Kubernetes operator.
    Operator,
    /// A person with the command line.
    Admin,
}

impl Role {
    /// All of them, for messages and for `--role`.
    pub const ALL: [Role; 5] = [
        Role::Edge,
        Role::Queue,
        Role::Delivery,
        Role::Operator,
        Role::Admin,
    ];

    /// As it stands in the URI and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Edge => "edge",
            Role::Queue => "queue",
            Role::Delivery => "delivery",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        Role::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| {
                format!("unknown role {text:?}; one of edge, queue, delivery, operator, admin")
            })
    }
}

/// What an RPC asks of the one who calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Append mail.
    Append,
    /// Open lease sessions and take items.
    Lease,
    /// Report results.
    Settle,
    /// Read a body.
    Fetch,
    /// Exchange Raft messages, introduce oneself.
    Peer,
    /// Learn who leads.
    WatchTopology,
    /// Everything of the service Admin.
    Admin,
    /// Write documents, and see who has them.
    PutConfig,
    /// Read documents, those that are for one's role.
    WatchConfig,
    /// Say which revision is in effect.
    AckConfig,
}

/// The table of rights: each role has those that its work needs and no other.
pub fn allowed(role: Role, right: Right) -> bool {
    match right {
        Right::WatchTopology | Right::WatchConfig => true,
        Right::Append => role == Role::Edge,
        Right::Lease | Right::Settle | Right::Fetch => role == Role::Delivery,
        Right::Peer => role == Role::Queue,
        Right::Admin | Right::PutConfig => matches!(role, Role::Operator | Role::Admin),
        Right::AckConfig => matches!(role, Role::Edge | Role::Delivery | Role::Queue),
    }
}

/// What a certificate proves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster that it belongs to.
    pub cluster: String,
    /// What it is there.
    pub role: Role,
    /// Pool or node: for queue nodes the node id in decimal.
    pub name: String,
}

/// The longest cluster or node name, octets: the limit of a SPIFFE trust domain.
pub const NAME_BYTES_MAX: usize = 255;

impl Identity {
    /// Checks the parts; the error says which one is wrong and what is allowed.
    pub fn new(cluster: &str, role: Role, name: &str) -> Result<Identity, String> {
        check_name("cluster name", cluster)?;
        check_name("node name", name)?;
        Ok(Identity {
            cluster: cluster.into(),
            role,
            name: name.into(),
        })
    }

    /// The URI that stands in the certificate.
    pub fn uri(&self) -> String {
        format!("spiffe://{}/{}/{}", self.cluster, self.role, self.name)
    }

    /// Reads the URI of a certificate.
    pub fn parse(uri: &str) -> Result<Identity, String> {
        let wrong = || format!("{uri:?} is no identity; expected spiffe://<cluster>/<role>/<name>");
        let mut parts = uri.strip_prefix("spiffe://").ok_or_else(wrong)?.split('/');
        let (Some(cluster), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        Identity::new(cluster, role.parse()?, name).map_err(|e| format!("{uri:?}: {e}"))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}/{}", self.cluster, self.role, self.name)
    }
}

/// Letters of a SPIFFE trust domain, and capitals for names of machines.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(good) {
        return Err(format!(
            "{what} {name:?}: use 1 to {NAME_BYTES_MAX} letters, digits, '.', '-' and '_'"
        ));
    }
    Ok(())
}

/// Who is at the other end of a connection; in the extensions of each request that came over our TLS.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Proved by its certificate.
    pub identity: Identity,
    /// Where it connected from.
    pub address: SocketAddr,
}

/// The caller's identity if its role has the right; else what to answer.
pub fn require<T>(request: &Request<T>, right: Right) -> Result<Identity, Status> {
    let Some(peer) = request.extensions().get::<Peer>() else {
        // Only a server that was built without `tls::incoming` comes here.
        return Err(Status::unauthenticated(
            "this connection carries no certificate; nodes speak mutual TLS with a certificate of the cluster",
        ));
    };
    let Identity { role, .. } = peer.identity;
    if allowed(role, right) {
        return Ok(peer.identity.clone());
    }
    let who: Vec<&str> = Role::ALL
        .into_iter()
        .filter(|role| allowed(*role, right))
        .map(Role::as_str)
        .collect();
    Err(Status::permission_denied(format!(
        "{} (from {}) may not {right:?}: that needs a certificate of role {}; start this node with the right \
         certificate (postroad pki issue --role {})",
        peer.identity,
        peer.address,
        who.join(" or "),
        who.first().unwrap_or(&"admin"),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_uri() {
        let id = Identity::new("mail.prod", Role::Queue, "3").unwrap();
        assert_eq!(id.uri(), "spiffe://mail.prod/queue/3");
        assert_eq!(Identity::parse(&id.uri()), Ok(id));
    }

    #[test]
    fn uris_that_are_no_identity_are_named_in_the_error() {
        for uri in [
            "https://a/queue/1",
            "spiffe://a/queue",
            "spiffe://a/king/1",
            "spiffe://a/queue/1/2",
            "spiffe:///edge/x",
            "spiffe://a/edge/",
        ] {
            let error = Identity::parse(uri).unwrap_err();
            assert!(
                error.contains("expected") || error.contains("role") || error.contains("use 1"),
                "{error}"
            );
        }
    }

    #[test]
    fn rights_are_those_of_the_architecture() {
        use Right::*;
        let node = [WatchTopology, WatchConfig, AckConfig];
        let person = [WatchTopology, WatchConfig, Admin, PutConfig];
        let table = [
            (Role::Edge, [&node[..], &[Append]].concat()),
            (Role::Queue, [&node[..], &[Peer]].concat()),
            (
                Role::Delivery,
                [&node[..], &[Lease, Settle, Fetch]].concat(),
            ),
            (Role::Operator, person.to_vec()),
            (Role::Admin, person.to_vec()),
        ];
        for (role, rights) in table {
            for right in [
                Append,
                Lease,
                Settle,
                Fetch,
                Peer,
                WatchTopology,
                Admin,
                PutConfig,
                WatchConfig,
                AckConfig,
            ] {
                assert_eq!(
                    allowed(role, right),
                    rights.contains(&right),
                    "{role} {right:?}"
                );
            }
        }
    }

    #[test]
    fn a_request_without_a_certificate_is_turned_away() {
        let error = require(&Request::new(()), Right::WatchTopology).unwrap_err();
        assert_eq!(error.code(), tonic::Code::Unauthenticated);
    }
}
