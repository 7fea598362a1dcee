//! An administrator of the relay: the program of the image in a pod of its own, with a certificate that the relay's CA signed.

use std::fs;

use anyhow::{Result, ensure};
use proto::{Role, pki};
use serde_json::json;
use tests::kubernetes::IMAGE;

use crate::relay::{MAIL, Relay, SOON};

/// Pod and Secret.
const NAME: &str = "administrator";

/// What a command of `postroad` answers, asked of the relay's queue.
pub fn ask(relay: &Relay<'_>, command: &[&str]) -> Result<String> {
    // A run that was interrupted may have left one.
    dismiss(relay)?;
    let outcome = certificate(relay).and_then(|()| in_a_pod(relay, command));
    dismiss(relay)?;
    outcome
}

fn dismiss(relay: &Relay<'_>) -> Result<()> {
    for object in ["pod", "secret"] {
        relay.kubectl(&["delete", object, NAME, "--ignore-not-found", "--now"])?;
    }
    Ok(())
}

fn certificate(relay: &Relay<'_>) -> Result<()> {
    let files = tempfile::tempdir()?;
    let (ca, own) = (files.path().join("ca"), files.path().join("own"));
    fs::create_dir(&ca)?;
    for file in [pki::CA_CERTIFICATE, pki::CA_KEY] {
        let text = format!("go-template={{{{index .data \"{file}\" | base64decode}}}}");
        let text = relay.kubectl(&["get", "secret", "postroad-ca", "-o", &text])?;
        fs::write(ca.join(file), text + "\n")?;
    }
    pki::issue(&ca, Role::Admin, NAME, &own)?;
    let from = format!("--from-file={}", own.display());
    let secret = ["create", "secret", "generic", NAME, &from];
    relay.kubectl(&secret).map(drop)
}

fn in_a_pod(relay: &Relay<'_>, command: &[&str]) -> Result<String> {
    let mut args = command.to_vec();
    args.extend(["--queue", "postroad-queue.mail.svc:7100", "--pki", "/pki"]);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": NAME, "namespace": MAIL},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": NAME, "image": IMAGE, "imagePullPolicy": "Never", "args": args,
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "pki", "mountPath": "/pki", "readOnly": true}],
            }],
            "volumes": [{"name": "pki", "secret": {"secretName": NAME, "defaultMode": 0o440}}],
        },
    });
    relay.cluster.apply(&pod.to_string())?;
    let object = format!("pod/{NAME}");
    relay.until("the administrator's command ends", SOON, || {
        let phase = relay.field(&object, "{.status.phase}")?;
        ensure!(["Succeeded", "Failed"].contains(&phase.as_str()), "{phase}");
        Ok(())
    })?;
    let said = relay.kubectl(&["logs", &object])?;
    let phase = relay.field(&object, "{.status.phase}")?;
    ensure!(phase == "Succeeded", "postroad {command:?}: {said}");
    Ok(said)
}
