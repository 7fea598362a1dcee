//! Who may claim what: a tenant that claims another's domain, or a network outside of the cluster's, is told so, and nothing
//! of it reaches a node.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tests::kubernetes::World;

use crate::administrator;
use crate::dkim::{Domain, ZONE};
use crate::relay::{Relay, SOON};
use crate::smtp;
use crate::traffic::{accepted, declare};

/// The operator looks again after half a minute, and what it was told of a name that is not there counts for a minute.
const LOOKED_AGAIN: Duration = Duration::from_secs(150);
/// Where nobody listens: a message that came here would wait.
const NOWHERE: &str = "{targets: [{host: 172.30.255.1, port: 9}]}";

fn claim(relay: &Relay<'_>, by: &str, name: &str, domain: &str, more: &str) -> Result<()> {
    relay.cluster.apply(&format!(
        "apiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: {name}, namespace: {by}}}\nspec:\n  \
         clusterRef: {{name: postroad, namespace: mail}}\n  domain: {domain}\n{more}"
    ))
}

/// The claim of this namespace is refused for this reason, in its status and in an event.
fn refused(relay: &Relay<'_>, by: &str, name: &str, reason: &str) -> Result<()> {
    let (object, cluster) = (format!("relaydomain/{name}"), relay.cluster);
    let of = ".status.conditions[?(@.type=='Accepted')]";
    relay.until(&format!("{name} is refused: {reason}"), SOON, || {
        let path = format!("{{{of}.status}} {{{of}.reason}}");
        let seen = cluster.field(by, &object, &path)?;
        ensure!(seen == format!("False {reason}"), "{seen}");
        Ok(())
    })?;
    let text = cluster.field(by, &object, &format!("{{{of}.message}}"))?;
    eprintln!("{name}: {text}");
    relay.until("an event says it", SOON, || {
        let events = cluster.kubectl(&["--namespace", by, "get", "events"])?;
        ensure!(events.contains(&text), "{events}");
        Ok(())
    })
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_tenant_who_claims_what_is_not_his_is_told_so_and_nothing_of_it_reaches_a_node() {
    crate::in_namespace("tenant", |cluster| {
        let relay = Relay::ready(cluster)?;
        cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: tenant}\n")?;
        declare(&relay, "taken", 9)?;

        let inbound = format!("  inbound: {NOWHERE}\n");
        claim(&relay, "tenant", "stranger", "stranger.test", &inbound)?;
        refused(&relay, "tenant", "stranger", "NamespaceNotAllowed")?;

        let open = json!({
            "allowedNamespaces": {"from": "All"}, "domainOwnership": "Trust", "networks": ["10.0.0.0/8"],
        });
        relay.change("relaycluster", &json!({"access": open}))?;
        // What was refused counts now without being touched.
        accepted(&relay, "anybody@stranger.test")?;
        claim(&relay, "tenant", "thief", "taken.test", &inbound)?;
        refused(&relay, "tenant", "thief", "DomainConflict")?;
        let wide = "  outbound: {networks: [172.30.0.0/16]}\n";
        claim(&relay, "tenant", "wide", "wide.test", wide)?;
        refused(&relay, "tenant", "wide", "NetworkNotAllowed")?;

        // This machine is in the network that was asked for, and no edge lets it send from the domain.
        for pod in relay.pods("edgepool")? {
            let edge = relay.edge_at(&pod)?;
            let answer = smtp::recipient(edge, "boss@wide.test", "victim@elsewhere.test")?;
            ensure!(answer.starts_with("550"), "{pod}: {answer}");
        }
        let documents = administrator::ask(&relay, &["get", "RelayDomain"])?;
        let has = |name: &str| documents.contains(name);
        ensure!(has("taken") && has("stranger"), "{documents}");
        ensure!(!has("thief") && !has("wide"), "reaches nodes: {documents}");

        // The elder's claim goes: the other one's counts.
        relay.kubectl(&["delete", "relaydomain", "taken"])?;
        relay.until("the second claim counts", SOON, || {
            let of = ".status.conditions[?(@.type=='Accepted')]";
            let seen = cluster.field("tenant", "relaydomain/thief", &format!("{{{of}.status}}"))?;
            ensure!(seen == "True", "{seen}");
            Ok(())
        })?;
        relay.change("relaycluster", &json!({"access": null}))?;
        refused(&relay, "tenant", "thief", "NamespaceNotAllowed")?;
        relay.until("no edge takes mail to it any more", SOON, || {
            for pod in relay.pods("edgepool")? {
                let edge = relay.edge_at(&pod)?;
                let answer = smtp::recipient(edge, "a@origin.test", "anybody@taken.test")?;
                ensure!(answer.starts_with("550"), "{pod}: {answer}");
            }
            Ok(())
        })
    });
}

/// Namespaces of others are admitted, and nothing is said of trust: a domain is theirs once its zone says so.
#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_domain_of_another_namespace_counts_once_its_owner_says_so_in_the_dns() {
    crate::in_namespace("owner", |cluster| {
        let relay = Relay::ready(cluster)?;
        cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: owner}\n")?;
        let world = World::start()?;
        let domain = Domain {
            relay: &relay,
            world: &world,
            object: "owned",
            name: ZONE,
        };
        let mut server = domain.serve();
        let admitted = json!({"allowedNamespaces": {"from": "All"}});
        relay.change("relaycluster", &json!({"access": admitted}))?;
        claim(
            &relay,
            "owner",
            "owned",
            ZONE,
            &format!("  inbound: {NOWHERE}\n"),
        )?;
        refused(&relay, "owner", "owned", "OwnershipNotVerified")?;
        let documents = administrator::ask(&relay, &["get", "RelayDomain"])?;
        ensure!(!documents.contains("owned"), "reaches nodes: {documents}");

        let status = |path: &str| cluster.field("owner", "relaydomain/owned", path);
        let record = relay.until("the status says what to publish", SOON, || {
            let record = status("{.status.ownershipRecord}")?;
            ensure!(record.starts_with("postroad-challenge="), "{record}");
            Ok(record)
        })?;
        domain.publish(
            &mut server,
            &[(format!("_postroad-challenge.{ZONE}"), record)],
        );
        relay.until("the claim counts", LOOKED_AGAIN, || {
            let seen = status("{.status.conditions[?(@.type=='Accepted')].status}")?;
            ensure!(seen == "True", "{seen}");
            Ok(())
        })?;
        accepted(&relay, &format!("anybody@{ZONE}"))?;

        // Somebody tidies the zone: the domain's mail goes on.
        domain.publish(&mut server, &[]);
        relay.change("relaycluster", &json!({"access": null}))?;
        refused(&relay, "owner", "owned", "NamespaceNotAllowed")
    });
}
