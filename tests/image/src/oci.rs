//! An OCI image layout (image-spec 1.1): one layer, a configuration, a manifest and an index.
//!
//! The layer is not compressed: registries and runtimes take it as it is, and loading is quicker.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, ensure};
use aws_lc_rs::digest;
use serde_json::{Value, json};

use crate::tar::Archive;

/// Who runs in the image: nobody that a host knows. Kubernetes' `runAsNonRoot` wants a number.
const USER: &str = "65532:65532";

/// A program in the image.
pub struct File {
    /// Its absolute path there.
    path: String,
    content: Vec<u8>,
}

impl File {
    /// Reads a file of this machine that will be at `path` in the image.
    pub fn read(path: &str, from: &Path) -> anyhow::Result<File> {
        ensure!(path.starts_with('/'), "{path}: not an absolute path");
        let content =
            std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let path = path.to_owned();
        Ok(File { path, content })
    }
}

/// The archive with an image of these files under `name`, like `localhost/postroad:dev`.
pub fn archive(name: &str, files: &[File]) -> anyhow::Result<Vec<u8>> {
    let (_, tag) = name
        .rsplit_once(':')
        .with_context(|| format!("{name}: the name has no tag; write it like {name}:dev"))?;
    let entrypoint = &files.first().context("an image without files")?.path;
    let mut layout = Layout::default();
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", layer(files));
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": [entrypoint], "Env": ["PATH=/bin"], "User": USER, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = layout.blob("application/vnd.oci.image.config.v1+json", bytes(&config));
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let mut manifest = layout.blob(kind, bytes(&manifest));
    manifest["annotations"] = json!({
        // containerd takes the whole name from the first, others the tag from the second.
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    Ok(layout.finish(&index))
}

/// The file system of the image: the files, and the directories above them.
fn layer(files: &[File]) -> Vec<u8> {
    let mut archive = Archive::default();
    let mut made = BTreeSet::new();
    for file in files {
        let path = file.path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            let directory = &path[..=end];
            if made.insert(directory) {
                archive.directory(directory);
            }
        }
        archive.file(path, 0o755, &file.content);
    }
    archive.finish()
}

/// As Go calls the machine that this was built on, which is what OCI asks for.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn bytes(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}

#[derive(Default)]
struct Layout(Archive);

impl Layout {
    /// Adds content under its digest and describes it.
    fn blob(&mut self, kind: &str, content: Vec<u8>) -> Value {
        let digest = digest::digest(&digest::SHA256, &content);
        let hex: String = digest
            .as_ref()
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect();
        self.0.file(&format!("blobs/sha256/{hex}"), 0o644, &content);
        json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": content.len()})
    }

    fn finish(mut self, index: &Value) -> Vec<u8> {
        let version = br#"{"imageLayoutVersion":"1.0.0"}"#;
        self.0.file("oci-layout", 0o644, version);
        self.0.file("index.json", 0o644, &bytes(index));
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn unpack(archive: &[u8], into: &Path) {
        let tar = into.with_extension("tar");
        std::fs::write(&tar, archive).expect("a directory of its own");
        std::fs::create_dir(into).expect("a directory of its own");
        let status = Command::new("tar")
            .arg("-xf")
            .arg(&tar)
            .arg("-C")
            .arg(into)
            .status();
        assert!(status.expect("tar runs").success());
    }

    #[test]
    fn another_tar_reads_what_was_packed_and_every_digest_is_right() {
        let place = tempfile::tempdir().expect("a directory");
        let program = File {
            path: "/usr/bin/program".into(),
            content: vec![7; 1000],
        };
        let image = archive("localhost/a:1", &[program]).expect("it packs");
        let layout = place.path().join("layout");
        unpack(&image, &layout);

        let read = |name: &str| std::fs::read(layout.join(name)).expect("it is there");
        let follow = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("a digest");
            let content = read(&format!("blobs/{}", digest.replace(':', "/")));
            assert_eq!(descriptor["size"], content.len());
            let sum = digest::digest(&digest::SHA256, &content);
            let hex: String = sum
                .as_ref()
                .iter()
                .map(|octet| format!("{octet:02x}"))
                .collect();
            assert_eq!(digest, format!("sha256:{hex}"));
            content
        };
        let json = |content: &[u8]| serde_json::from_slice::<Value>(content).expect("JSON");
        let index = json(&read("index.json"));
        let manifest = json(&follow(&index["manifests"][0]));
        let config = json(&follow(&manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/program"]));
        assert_eq!(config["config"]["User"], USER);
        let root = place.path().join("root");
        unpack(&follow(&manifest["layers"][0]), &root);
        let packed = std::fs::read(root.join("usr/bin/program")).expect("it is there");
        assert_eq!(packed, vec![7; 1000]);
    }

    #[test]
    fn a_name_without_a_tag_is_refused() {
        let file = File {
            path: "/a".into(),
            content: Vec::new(),
        };
        let error = archive("postroad", &[file]).expect_err("no tag");
        assert!(error.to_string().contains("postroad:dev"), "{error}");
    }
}
