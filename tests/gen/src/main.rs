//! Writes every generated file of the tree; with `--check` it only compares and names what is stale.
//!
//! Generated code is committed, so that building an image needs neither protoc nor this program.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

#[allow(dead_code, reason = "the kinds are for the operator's own test")]
#[path = "../../../operator/src/rbac.rs"]
mod rbac;

/// One file that this program owns: where it stands in the tree, and what has to be in it.
struct Generated {
    path: PathBuf,
    text: String,
}

fn main() -> Result<()> {
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => bail!("unknown argument {other:?}; usage: gen [--check]"),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context("the package `tests` stands in the workspace's root")?;
    let mut stale = Vec::new();
    let mut files = wire_types(root)?;
    files.extend(definitions()?);
    for file in files {
        let path = root.join(&file.path);
        // A file that cannot be read is a stale one: it is written, or named.
        if fs::read_to_string(&path).is_ok_and(|found| found == file.text) {
            continue;
        }
        if check {
            stale.push(file.path.display().to_string());
        } else {
            let folder = path.parent().context("a generated file has a folder")?;
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            fs::write(&path, file.text).with_context(|| format!("write {}", path.display()))?;
            println!("wrote {}", file.path.display());
        }
    }
    if !stale.is_empty() {
        bail!(
            "stale: {}; run `cargo run -p gen` and commit",
            stale.join(", ")
        );
    }
    Ok(())
}

/// The messages and services of `proto/postroad/v1/*.proto` as Rust.
fn wire_types(root: &Path) -> Result<Vec<Generated>> {
    let include = root.join("proto");
    let folder = include.join("postroad/v1");
    let mut sources = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "proto") {
            sources.push(path);
        }
    }
    // The folder's order is the file system's; the output must not depend on it.
    sources.sort();
    let descriptors = protox::compile(&sources, [&include]).context("compile the .proto files")?;

    let out = tempfile::tempdir().context("a folder for the generator's output")?;
    tonic_prost_build::configure()
        // Bodies are taken out of a frame without a copy.
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .context("generate Rust")?;

    let mut files = Vec::new();
    for entry in fs::read_dir(out.path())? {
        let entry = entry?;
        let text = fs::read_to_string(entry.path())?;
        files.push(Generated {
            path: Path::new("proto/src/gen").join(entry.file_name()),
            text,
        });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The custom resources as the API server is told of them, and as people read of them.
fn definitions() -> Result<Vec<Generated>> {
    let folder = Path::new("charts/postroad");
    let mut files = vec![Generated {
        path: folder.join("REFERENCE.md"),
        text: resource::reference(),
    }];
    files.push(Generated {
        path: folder.join("cluster-role.yaml"),
        text: rbac::rules(),
    });
    for crd in resource::crds() {
        let yaml = serde_saphyr::to_string(&crd).context("write a definition as YAML")?;
        // Helm reads what stands in `templates` as its own language: braces in a text would be a program.
        anyhow::ensure!(
            !yaml.contains("{{"),
            "{}: {{{{ in a text",
            crd.spec.names.kind
        );
        files.push(Generated {
            path: folder.join(format!("definitions/{}.yaml", crd.spec.names.plural)),
            text: yaml,
        });
    }
    Ok(files)
}
