//! `postroad check`: what a directory of resources means, before a node uses it.

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
            print_json(&json!({ "inbound_domains": inbound, "senders": senders }));
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
            if catalog.relays_nothing() {
                println!("warning: no RelayDomain is declared, so all mail is refused");
            }
        }
    }
    Ok(())
}
