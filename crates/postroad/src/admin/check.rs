//! `postroad check`: what a directory of resources means, before a node uses it.

use resource::Catalog;
use serde_json::json;

use super::print_json;
use crate::failure::Failure;
use crate::settings::{Check, Output};

/// Reads, compiles, and says what it would do.
pub fn run(settings: Check) -> Result<(), Failure> {
    let catalog = edge::read_dir(&settings.files).map_err(Failure::failed)?;
    let (inbound, networks) = catalog.counts();
    match settings.output {
        Output::Json => {
            let senders: Vec<_> = catalog
                .senders()
                .map(|(domain, network, principal)| {
                    json!({ "domain": domain, "network": network.to_string(),
                            "tenant": &*principal.tenant, "class": &*principal.class })
                })
                .collect();
            print_json(&json!({
                "inbound_domains": inbound, "senders": senders, "warnings": warnings(&catalog),
            }));
        }
        Output::Table => {
            println!(
                "good: takes mail to {inbound} domain(s), and from {networks} network(s) of the domains that may send"
            );
            for (domain, network, principal) in catalog.senders() {
                println!(
                    "  {network} may send as @{domain} (tenant {}, class {})",
                    principal.tenant, principal.class
                );
            }
            for warning in warnings(&catalog) {
                println!("warning: {warning}");
            }
        }
    }
    Ok(())
}

/// What is allowed and hardly meant.
fn warnings(catalog: &Catalog) -> Vec<&'static str> {
    let mut warnings = Vec::new();
    if catalog.relays_nothing() {
        warnings.push("no RelayDomain is declared, so all mail is refused");
    }
    let postmaster = catalog.edge().and_then(|edge| edge.postmaster.as_ref());
    if postmaster.is_none() {
        warnings.push(
            "mail to Postmaster is refused, which RFC 5321 section 4.5.1 forbids; declare who gets it: kind EdgePool, spec.postmaster",
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The one that the README begins with refused the mail to Postmaster.
    #[test]
    fn nothing_is_to_be_said_of_the_example() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/examples/relay");
        let catalog = edge::read_dir(&example).unwrap();
        assert_eq!(warnings(&catalog), [""; 0]);
        let edge = catalog.edge().unwrap();
        assert_eq!(edge.postmaster.as_deref(), Some("postmaster@example.com"));
        // Whom it goes to is taken from anybody.
        assert!(catalog.inbound("example.com").is_some());
        assert_eq!(warnings(&resource::Catalog::default()).len(), 2);
    }
}
