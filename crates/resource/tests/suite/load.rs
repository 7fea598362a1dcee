//! Directories of resources: what they mean, and the exact text of what is wrong with them.

use std::net::IpAddr;

use resource::{Catalog, Host, Route, Target, TlsPolicy, load_dir};

const GOOD: &str = "\
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: shop, namespace: team-a, labels: {x: y}}
spec:
  domain: Shop.example
  inbound:
    targets:
      - host: mail.shop.example
      - {host: 192.0.2.7, port: 2525}
  outbound:
    class: bulk
    networks: [10.0.0.0/8, '2001:db8::/32']
---
# The second document of the file.
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: hr}
spec:
  domain: hr.example
  inbound: {}
  outbound: {networks: [10.1.0.0/16]}
";

fn load(files: &[(&str, &str)]) -> Result<Catalog, String> {
    load_dir(
        files
            .iter()
            .map(|(name, text)| (name.to_string(), text.to_string()))
            .collect(),
    )
    .map_err(|e| e.to_string())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn domain_with(spec: &str) -> String {
    format!(
        "apiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: d}}\nspec: {spec}\n"
    )
}

fn refused(spec: &str) -> String {
    load(&[("d.yaml", &domain_with(spec))]).unwrap_err()
}

#[test]
fn nothing_declared_relays_nothing() {
    let catalog = load(&[]).unwrap();
    assert!(catalog.relays_nothing());
    assert_eq!(catalog.inbound("example.org"), None);
    assert!(!catalog.has_principal(ip("127.0.0.1")));
    assert_eq!(catalog.route("example.org"), Route::Mx);
}

#[test]
fn a_domain_takes_mail_for_its_tenant_and_sends_from_its_networks() {
    let catalog = load(&[("a.yaml", GOOD)]).unwrap();
    let inbound = catalog.inbound("shop.example").unwrap();
    assert_eq!((&*inbound.tenant, &*inbound.class), ("team-a", "default"));

    let principal = catalog
        .outbound_for(ip("10.2.3.4"), Some("shop.example"))
        .unwrap();
    assert_eq!((&*principal.tenant, &*principal.class), ("team-a", "bulk"));
    assert!(
        catalog
            .outbound_for(ip("10.2.3.4"), Some("hr.example"))
            .is_none(),
        "its network is 10.1/16"
    );
    assert!(
        catalog
            .outbound_for(ip("192.0.2.1"), Some("shop.example"))
            .is_none()
    );
    assert!(
        catalog
            .outbound_for(ip("::ffff:10.2.3.4"), Some("shop.example"))
            .is_some(),
        "IPv4 in IPv6 form"
    );
    assert!(catalog.has_principal(ip("2001:db8::1")));

    // The null sender goes with the most specific network.
    assert_eq!(
        &*catalog.outbound_for(ip("10.1.0.1"), None).unwrap().tenant,
        "default"
    );
    assert_eq!(
        &*catalog.outbound_for(ip("10.2.0.1"), None).unwrap().tenant,
        "team-a"
    );
}

#[test]
fn routes_are_targets_then_smart_host_then_mx() {
    let pool = "apiVersion: postroad.dev/v1alpha1\nkind: DeliveryPool\nmetadata: {name: out}\nspec: {egress: {smartHost: {host: 192.0.2.9, port: 25}}}\n";
    let catalog = load(&[("a.yaml", GOOD), ("pool.yaml", pool)]).unwrap();
    let targets = [
        Target {
            host: Host::Name("mail.shop.example".into()),
            port: 25,
            tls: TlsPolicy::Opportunistic,
        },
        Target {
            host: Host::Ip(ip("192.0.2.7")),
            port: 2525,
            tls: TlsPolicy::Opportunistic,
        },
    ];
    assert_eq!(
        catalog.route("shop.example"),
        Route::Targets(targets.to_vec().into())
    );
    assert_eq!(
        catalog.route("hr.example"),
        Route::Mx,
        "its own MX, never the smart host"
    );
    assert_eq!(
        catalog.route("else.example"),
        Route::SmartHost(Target {
            host: Host::Ip(ip("192.0.2.9")),
            port: 25,
            tls: TlsPolicy::Opportunistic,
        })
    );
    assert_eq!(
        load(&[("a.yaml", GOOD)]).unwrap().route("else.example"),
        Route::Mx
    );
}

#[test]
fn a_cluster_binds_networks_and_sets_retry() {
    let cluster = "apiVersion: postroad.dev/v1alpha1\nkind: RelayCluster\nmetadata: {name: postroad}\nspec:\n  access: {networks: [10.1.0.0/16], allowedNamespaces: {from: All}, domainOwnership: Trust}\n  retry: {firstSeconds: 60, delayNoticeAfterHours: 0}\n  dns: {resolvers: [192.0.2.53, '[2001:db8::53]:5353']}\n";
    let error = load(&[("a.yaml", GOOD), ("cluster.yaml", cluster)]).unwrap_err();
    assert_eq!(
        error,
        "a.yaml, document 1 (RelayDomain team-a/shop): spec.outbound.networks[0]: `10.0.0.0/8` is not inside the RelayCluster's access.networks; add it there, or ask who runs the cluster\n\
         a.yaml, document 1 (RelayDomain team-a/shop): spec.outbound.networks[1]: `2001:db8::/32` is not inside the RelayCluster's access.networks; add it there, or ask who runs the cluster"
    );
    let catalog = load(&[("cluster.yaml", cluster)]).unwrap();
    assert_eq!(catalog.retry().first.as_secs(), 60);
    assert_eq!(
        catalog.retry().max.as_secs(),
        14_400,
        "a default beside a set value"
    );
    assert_eq!(catalog.retry().delay_notice_after, None);
    assert_eq!(
        catalog.resolvers()[1],
        "[2001:db8::53]:5353".parse().unwrap()
    );
    assert_eq!(catalog.resolvers()[0].port(), 53);
}

#[test]
fn an_unknown_field_is_named_with_its_path() {
    assert_eq!(
        refused("{domain: a.example, inbound: {targets: [{host: h.example, tsl: Off}]}}"),
        "d.yaml, document 1 (RelayDomain default/d): spec.inbound.targets[0].tsl: unknown field `tsl`; fields here are host, port, serviceRef, tls"
    );
    assert_eq!(
        refused("{inbound: {}}"),
        "d.yaml, document 1 (RelayDomain default/d): spec: missing field `domain`"
    );
}

#[test]
fn values_are_refused_with_what_to_write() {
    let at = "d.yaml, document 1 (RelayDomain default/d): ";
    for (spec, text) in [
        (
            "{domain: 'a b', inbound: {}}",
            "spec.domain: `a b` is no domain name; write one like example.org",
        ),
        (
            "{domain: a.example}",
            "spec: neither inbound nor outbound: write `inbound: {}` to accept mail to the domain, `outbound` to accept mail from it",
        ),
        (
            "{domain: a.example, outbound: {networks: [0.0.0.0/0]}}",
            "spec.outbound.networks[0]: `0.0.0.0/0` is everybody: that is an open relay; name the networks of your clients",
        ),
        (
            "{domain: a.example, outbound: {class: Bulk!}}",
            "spec.outbound.class: `Bulk!` is no DNS label; write 1 to 63 lower-case letters, digits and inner hyphens",
        ),
        (
            "{domain: a.example, inbound: {targets: [{serviceRef: {name: x}}]}}",
            "spec.inbound.targets[0]: serviceRef works on Kubernetes only; write host: NAME",
        ),
        (
            "{domain: a.example, inbound: {targets: [{port: 25}]}}",
            "spec.inbound.targets[0]: host is missing; write host: NAME",
        ),
        (
            "{domain: a.example, inbound: {targets: [{host: 'no host'}]}}",
            "spec.inbound.targets[0]: `no host` is neither a host name nor an IP address",
        ),
    ] {
        assert_eq!(refused(spec), format!("{at}{text}"));
    }
}

#[test]
fn a_domain_declared_twice_names_both_files() {
    let error = load(&[
        ("b.yml", &domain_with("{domain: SHOP.example, inbound: {}}")),
        ("a.yaml", GOOD),
    ])
    .unwrap_err();
    assert_eq!(
        error,
        "b.yml, document 1 (RelayDomain default/d): spec.domain: shop.example is declared by RelayDomain team-a/shop in a.yaml, document 1 too; keep one of them"
    );
}

#[test]
fn documents_that_are_no_resources_are_refused_and_the_rest_is_still_read() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n---\nkind: [\n---\napiVersion: postroad.dev/v1alpha1\nkind: RelayDomian\nmetadata: {name: s}\n";
    let error = load(&[("x.yaml", text)]).unwrap_err();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(
        lines[0],
        "x.yaml, document 1: apiVersion: `v1` is not known; write postroad.dev/v1alpha1"
    );
    assert!(
        lines[1].starts_with("x.yaml, document 2: not YAML: "),
        "{}",
        lines[1]
    );
    assert_eq!(
        *lines.last().unwrap(),
        "x.yaml, document 3 (RelayDomian default/s): kind: `RelayDomian` is not known; kinds are RelayDomain, RelayCluster, EdgePool, QueuePool, DeliveryPool"
    );
}

#[test]
fn a_leading_marker_and_empty_documents_count_nothing() {
    let catalog = load(&[("a.yaml", &format!("# a comment\n---\n{GOOD}---\n"))]).unwrap();
    assert_eq!(catalog.counts(), (2, 3));
}

/// What a balancer's address is taken for, all the world would be.
#[test]
fn where_clients_come_with_another_address_no_network_is_recognised() {
    let pool = |service: &str| {
        format!(
            "apiVersion: postroad.dev/v1alpha1\nkind: EdgePool\nmetadata: {{name: p}}\nspec: {{service: {service}}}\n"
        )
    };
    let known = |service: &str| {
        let catalog = load(&[("a.yaml", GOOD), ("p.yaml", &pool(service))]).unwrap();
        let known = catalog.has_principal(ip("10.2.3.4"));
        let sender = catalog.outbound_for(ip("10.2.3.4"), Some("shop.example"));
        assert_eq!(sender.is_some(), known);
        known
    };
    assert!(known("{type: ClusterIP, externalTrafficPolicy: Cluster}"));
    assert!(known("{type: LoadBalancer}"));
    assert!(!known(
        "{type: LoadBalancer, externalTrafficPolicy: Cluster}"
    ));
    assert!(!known("{type: NodePort, externalTrafficPolicy: Cluster}"));
}

#[test]
fn pools_have_defaults_and_bounds() {
    let pool = |spec: &str| {
        format!(
            "apiVersion: postroad.dev/v1alpha1\nkind: EdgePool\nmetadata: {{name: p}}\nspec: {spec}\n"
        )
    };
    let edge = load(&[("p.yaml", &pool("{limits: {messageSize: 1Mi}}"))])
        .unwrap()
        .edge()
        .unwrap()
        .clone();
    assert_eq!(
        (
            edge.message_size,
            edge.connections,
            edge.connections_per_source,
            edge.recipients
        ),
        (1 << 20, 1000, 50, 1000)
    );
    let error = load(&[(
        "p.yaml",
        &pool("{limits: {messageSize: 2Gi, recipients: 5}}"),
    )])
    .unwrap_err();
    assert_eq!(
        error,
        "p.yaml, document 1 (EdgePool default/p): spec.limits.recipients: 5 is out of bounds; write 100 to 10000\n\
         p.yaml, document 1 (EdgePool default/p): spec.limits.messageSize: 2147483648 is out of bounds; write 65536 to 134217728"
    );
    let spec = "{hostname: mx.example.org, postmaster: ops@Example.org, greetingPauseSeconds: 5}";
    let catalog = load(&[("p.yaml", &pool(spec))]).unwrap();
    let edge = catalog.edge().unwrap();
    assert_eq!(edge.postmaster.as_deref(), Some("ops@example.org"));
    assert_eq!(edge.greeting_pause.as_secs(), 5);
    // What the edges are called, delivery must know.
    assert_eq!(catalog.own_names().collect::<Vec<_>>(), ["mx.example.org"]);
    let wrong = "{postmaster: nobody, greetingPauseSeconds: 61}";
    let error = load(&[("p.yaml", &pool(wrong))]).unwrap_err();
    assert_eq!(
        error,
        "p.yaml, document 1 (EdgePool default/p): spec.greetingPauseSeconds: 61 is out of bounds; write 0 to 60\n\
         p.yaml, document 1 (EdgePool default/p): spec.postmaster: `nobody` is no mail address; write one like postmaster@example.org"
    );
    let two = load(&[("p.yaml", &pool("{}")), ("q.yaml", &pool("{}"))]).unwrap_err();
    assert_eq!(
        two,
        "q.yaml, document 1 (EdgePool default/p): one EdgePool a directory; another is in p.yaml, document 1; keep one of them"
    );
}
