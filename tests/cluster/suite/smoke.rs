//! The image in a bare Pod, as the strictest namespace takes it: the program runs, and relays a message out of the cluster.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tests::child::run;
use tests::kubernetes::{IMAGE, WORLD, World};

use crate::in_namespace;

/// `up` with one domain, whose mail server is in the world. Everything that pod security `restricted` asks for.
const MANIFEST: &str = r#"
apiVersion: v1
kind: Namespace
metadata:
  name: smoke
  labels: {pod-security.kubernetes.io/enforce: restricted}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: resources, namespace: smoke}
data:
  example.yaml: |
    apiVersion: postroad.dev/v1alpha1
    kind: RelayDomain
    metadata: {name: example-com}
    spec:
      domain: example.com
      inbound: {targets: [{host: WORLD}]}
"#;
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: up, namespace: smoke}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 10
  securityContext:
    runAsNonRoot: true
    fsGroup: 65532
    seccompProfile: {type: RuntimeDefault}
  containers:
  - name: up
    image: IMAGE
    imagePullPolicy: Never
    args: [up, -f, /etc/postroad, --data, /var/lib/postroad, --listen, "0.0.0.0:2525", --admin-listen, "0.0.0.0:9090", --disk-bytes, 1GiB]
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    readinessProbe:
      httpGet: {path: /readyz, port: 9090}
      periodSeconds: 1
    volumeMounts:
    - {name: resources, mountPath: /etc/postroad}
    - {name: data, mountPath: /var/lib/postroad}
  volumes:
  - {name: resources, configMap: {name: resources}}
  - {name: data, emptyDir: {}}
"#;

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_bare_pod_under_restricted_security_relays_a_message_to_postfix() {
    in_namespace("smoke", |cluster| {
        let world = World::start()?;
        let start = Instant::now();
        cluster.apply(&MANIFEST.replace("WORLD", WORLD))?;
        // The namespace's account appears a moment after the namespace, and no pod is admitted before.
        cluster.until(
            "the default service account",
            Duration::from_secs(10),
            || cluster.kubectl(&["-n", "smoke", "get", "serviceaccount", "default"]),
        )?;
        cluster.apply(&POD.replace("IMAGE", IMAGE))?;
        cluster.kubectl(&[
            "-n",
            "smoke",
            "wait",
            "--for=condition=Ready",
            "pod/up",
            "--timeout=60s",
        ])?;
        eprintln!("the pod is ready after {:?}", start.elapsed());

        let said = cluster.kubectl(&[
            "-n",
            "smoke",
            "exec",
            "up",
            "--",
            "/bin/postroad",
            "--version",
        ])?;
        ensure!(said.starts_with("postroad "), "{said}");
        let operator = cluster.kubectl(&[
            "-n",
            "smoke",
            "exec",
            "up",
            "--",
            "/bin/postroad-operator",
            "--version",
        ])?;
        ensure!(operator.starts_with("postroad-operator "), "{operator}");
        let address = cluster.field("smoke", "pod/up", "{.status.podIP}")?;
        run(Command::new("swaks")
            .args([
                "--server",
                &address,
                "--port",
                "2525",
                "--helo",
                "client.test",
            ])
            .args(["--from", "sender@origin.test", "--to", "alice@example.com"])
            .args(["--header", "Subject: from a pod", "--hide-all"]))?;
        let message = world
            .mailbox("alice", 1, Duration::from_secs(30))?
            .remove(0);
        ensure!(message.contains("Subject: from a pod"), "{message}");
        eprintln!("the message arrived after {:?}", start.elapsed());
        Ok(())
    });
}
