//! A small file system in a file, mounted by loop: what a full disk does can only be seen on a disk that is full.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A mounted ext4; unmounted when dropped.
pub struct SmallDisk {
    mount: PathBuf,
}

impl SmallDisk {
    /// Makes a file system of so many MiB under `dir` and mounts it. Root only.
    pub fn mount(dir: &Path, name: &str, mebibytes: u64) -> Result<SmallDisk> {
        let image = dir.join(format!("{name}.img"));
        let file = std::fs::File::create(&image)?;
        file.set_len(mebibytes << 20)?;
        let mount = dir.join(name);
        std::fs::create_dir_all(&mount)?;
        // No blocks are kept back for root: the tests run as root, and would never see the disk full.
        let (image, at) = (path(&image)?, path(&mount)?);
        run("mkfs.ext4", &["-q", "-F", "-m", "0", image])?;
        run("mount", &["-o", "loop", image, at])?;
        Ok(SmallDisk { mount })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Takes every last block, as somebody else's log file would. Returns the file to remove.
    pub fn fill(&self) -> Result<PathBuf> {
        let file = self.mount.join("somebody-else");
        let to = format!("of={}", path(&file)?);
        // dd ends with an error, because the disk is full: that is the point.
        let _ = Command::new("dd")
            .args(["if=/dev/zero", &to, "bs=64k", "conv=fsync"])
            .output()?;
        let _ = Command::new("dd")
            .args(["if=/dev/zero", &to, "bs=1k", "oflag=append", "conv=notrunc"])
            .output()?;
        Ok(file)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

/// Whether tests on small disks are to run: `POSTROAD_SKIP_DISKS=1` leaves them out.
///
/// # Panics
/// They are, and this machine lets us mount none: a test that did nothing must not look as if it had passed.
pub fn can_mount() -> bool {
    if std::env::var_os("POSTROAD_SKIP_DISKS").is_some() {
        eprintln!("left out: POSTROAD_SKIP_DISKS is set");
        return false;
    }
    let tried = tempfile::tempdir()
        .map_err(anyhow::Error::from)
        .and_then(|dir| SmallDisk::mount(dir.path(), "probe", 8).map(drop));
    if let Err(error) = tried {
        panic!(
            "small disks need root, loop devices and mkfs.ext4 (e2fsprogs); POSTROAD_SKIP_DISKS=1 leaves these tests out: \
             {error:#}"
        );
    }
    true
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("paths of tests are UTF-8")
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("running {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
