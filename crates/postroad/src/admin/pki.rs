//! `postroad pki`: certificates without Kubernetes.

use proto::{Role, pki};

use crate::failure::Failure;
use crate::settings::PkiCommand;

/// Makes what was asked for and says what.
pub fn run(command: PkiCommand) -> Result<(), Failure> {
    match command {
        PkiCommand::Init { cluster, out } => {
            pki::init(&cluster, &out).map_err(Failure::failed)?;
            println!(
                "made the CA of {cluster} in {}; keep ca.key there and secret",
                out.display()
            );
        }
        PkiCommand::Issue {
            role,
            node,
            name,
            ca,
            out,
        } => {
            let name = match (role, node, name) {
                (Role::Queue, Some(node), _) => node.to_string(),
                (Role::Queue, None, _) => {
                    return Err(Failure::usage("a queue node needs --node N, its node id"));
                }
                (_, Some(_), _) => {
                    return Err(Failure::usage(format!(
                        "--node is for queue nodes; name a node of role {role} with --name"
                    )));
                }
                (_, None, name) => name.unwrap_or_else(|| role.to_string()),
            };
            let identity = pki::issue(&ca, role, &name, &out).map_err(Failure::failed)?;
            println!("made {identity} in {}", out.display());
        }
    }
    Ok(())
}
