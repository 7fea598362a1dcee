//! Builds Postroad's image with no container builder: both programs, static, and nothing else.
//!
//! ```text
//! cargo run -p image -- build --out postroad.tar     builds the programs and writes the image
//! cargo run -p image -- pack  --out other.tar --name localhost/other:1 /other=target/debug/other
//! ```
//!
//! What comes out is an OCI image layout in a tar archive: `ctr images import`, `podman load`, `skopeo copy oci-archive:…`
//! and `docker load` take it. The same files give the same octets.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};

mod oci;
mod tar;

/// The only target that images are made for: glibc, linked statically. It needs no musl, and `getaddrinfo` is not used.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What is in the image, in `/bin`; the first is what runs when nothing else is said.
const PROGRAMS: [&str; 2] = ["postroad", "postroad-operator"];

#[derive(Debug, Parser)]
#[command(name = "image", about = "Writes OCI images")]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Build both programs and write Postroad's image
    Build {
        /// Cargo's profile: `dev` is for tests
        #[arg(long, default_value = "release")]
        profile: String,
        #[command(flatten)]
        output: Output,
    },
    /// Write an image of files that are there
    Pack {
        #[command(flatten)]
        output: Output,
        /// Files by their path in the image; the first is what runs
        #[arg(required = true, value_name = "/PATH=FILE")]
        files: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Output {
    /// The archive to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Name and tag of the image; the default is what the charts ask for
    #[arg(long, default_value = concat!("ghcr.io/postroad/postroad:", env!("CARGO_PKG_VERSION")))]
    name: String,
}

fn main() -> anyhow::Result<()> {
    let (output, files) = match Cli::parse().command {
        Subcommands::Build { profile, output } => (output, build(&profile)?),
        Subcommands::Pack { output, files } => (output, named(&files)?),
    };
    let archive = oci::archive(&output.name, &files)?;
    let place = output.out.display();
    std::fs::write(&output.out, &archive).with_context(|| format!("cannot write {place}"))?;
    eprintln!("{}: {place}, {} KiB", output.name, archive.len() / 1024);
    Ok(())
}

/// Builds the programs and reads them.
fn build(profile: &str) -> anyhow::Result<Vec<oci::File>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context("the package does not lie in the workspace")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(root)
        // The whole workspace, or else its dependencies would have fewer features than in tests, and be built again.
        .args([
            "build",
            "--locked",
            "--workspace",
            "--target",
            TARGET,
            "--profile",
            profile,
        ])
        .args(PROGRAMS.iter().flat_map(|name| ["--bin", *name]))
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static",
        )
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build failed: {status}");
    }
    // Cargo's own name for what is built for `dev` is older than its profiles.
    let directory = if profile == "dev" { "debug" } else { profile };
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let built = target.join(TARGET).join(directory);
    let stripped = tempfile::tempdir()?;
    let mut files = Vec::new();
    for name in PROGRAMS {
        let file = stripped.path().join(name);
        strip(&built.join(name), &file)?;
        files.push(oci::File::read(&format!("/bin/{name}"), &file)?);
    }
    Ok(files)
}

/// Without what a debugger would want: three quarters of the file. Traces still have the names of functions.
fn strip(program: &Path, into: &Path) -> anyhow::Result<()> {
    let mut strip = Command::new("strip");
    strip.args(["--strip-debug", "-o"]).arg(into).arg(program);
    let status = strip
        .status()
        .context("cannot run strip; it is in binutils")?;
    if !status.success() {
        bail!("strip {}: {status}", program.display());
    }
    Ok(())
}

fn named(files: &[String]) -> anyhow::Result<Vec<oci::File>> {
    let pairs = files.iter().map(|pair| {
        pair.split_once('=')
            .with_context(|| format!("{pair}: write it like /bin/program=FILE"))
    });
    pairs
        .map(|pair| pair.and_then(|(path, file)| oci::File::read(path, Path::new(file))))
        .collect()
}
