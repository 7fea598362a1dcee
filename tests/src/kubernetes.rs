//! The test cluster that `tests/cluster/up` brought up, and the world outside it: a Postfix with mailboxes in a network
//! namespace of its own, on the same wire as the Kubernetes node.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::child::run;
use crate::netns;
use crate::postfix::{self, Postfix, Setup};

/// Where the world's mail server is (`tests/cluster/lib.sh`); `mx.test` in the cluster's DNS.
pub const WORLD: &str = "172.30.0.9";
/// Its network namespace.
const WORLD_NAMESPACE: &str = "postroad-world";
/// The user that owns the mailboxes.
const NOBODY: u32 = 65534;

/// The cluster.
#[derive(Debug)]
pub struct Kubernetes {
    kubeconfig: PathBuf,
    programs: PathBuf,
}

impl Kubernetes {
    /// The cluster whose directory `POSTROAD_CLUSTER_DIR` names, or the usual one.
    ///
    /// # Errors
    /// When there is none.
    pub fn find() -> Result<Kubernetes> {
        let dir = std::env::var_os("POSTROAD_CLUSTER_DIR")
            .map_or_else(|| "/var/tmp/postroad-cluster".into(), PathBuf::from);
        let programs = fs::read_to_string(dir.join("bin"))
            .context("no test cluster is up; bring one up with: tests/cluster/up")?;
        Ok(Kubernetes {
            kubeconfig: dir.join("admin.conf"),
            programs: programs.trim().into(),
        })
    }

    /// `kubectl` with these arguments, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.tool("kubectl", arguments)
    }

    /// A program of the cluster's that reads a kubeconfig: `kubectl`, `helm3`, `helm4`.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        command
    }

    /// Runs `kubectl` and gives what it wrote.
    ///
    /// # Errors
    /// When it fails; the text has what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments)).map(|text| text.trim_end().to_owned())
    }

    /// `kubectl apply` of these documents.
    ///
    /// # Errors
    /// What the API server says.
    pub fn apply(&self, documents: &str) -> Result<()> {
        let mut apply = self
            .command(&["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut input = apply.stdin.take().context("it is piped")?;
        input.write_all(documents.as_bytes())?;
        drop(input);
        let output = apply.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}\nin:\n{documents}");
        Ok(())
    }

    /// One field of an object, by JSONPath, like `{.status.podIP}`; empty when there is none.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn field(&self, namespace: &str, object: &str, path: &str) -> Result<String> {
        let output = format!("jsonpath={path}");
        self.kubectl(&["-n", namespace, "get", object, "-o", &output])
    }

    /// Waits until something is so.
    ///
    /// # Errors
    /// When it is not within `limit`; the text has the last reason.
    pub fn until<T>(&self, what: &str, limit: Duration, so: impl Fn() -> Result<T>) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            match so() {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() > end => {
                    return Err(error.context(format!("{what}: not so within {limit:?}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// What a failure in a namespace is explained by: pods, events, the last lines of each log.
    pub fn explain(&self, namespace: &str) -> String {
        let ask = |arguments: &[&str]| {
            let mut all = vec!["-n", namespace];
            all.extend(arguments);
            self.kubectl(&all).unwrap_or_else(|error| error.to_string())
        };
        let mut text = format!(
            "{}\n{}\n",
            ask(&["get", "pods", "-o", "wide"]),
            ask(&["get", "events", "--sort-by=.lastTimestamp"]),
        );
        for pod in ask(&["get", "pods", "-o", "name"]).lines() {
            let log = ask(&["logs", "--tail=40", pod]);
            text.push_str(&format!("-- {pod}\n{log}\n"));
        }
        text
    }
}

/// A Postfix outside the cluster that takes all mail for `example.com`. Dropped, it is gone.
pub struct World {
    // The process ends before its files go.
    _postfix: Postfix,
    dir: tempfile::TempDir,
}

impl World {
    /// Starts it and waits until it greets. Needs root.
    ///
    /// # Errors
    /// Also when Postfix is not installed, or no cluster is up.
    pub fn start() -> Result<World> {
        postfix::installed()?;
        let dir = tempfile::Builder::new()
            .prefix("postroad-world-")
            .tempdir_in("/var/tmp")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let setup = mailboxes(dir.path())?;
        let postfix = Postfix::start(dir.path(), &setup, |program| {
            netns::command_in(WORLD_NAMESPACE, program)
        })?;
        Ok(World {
            _postfix: postfix,
            dir,
        })
    }

    /// A command of a machine in the world.
    pub fn command(&self, program: &str) -> Command {
        netns::command_in(WORLD_NAMESPACE, program)
    }

    /// The messages in a user's mailbox, as soon as there are so many.
    ///
    /// # Errors
    /// When there are fewer or more within `limit`.
    pub fn mailbox(&self, user: &str, messages: usize, limit: Duration) -> Result<Vec<String>> {
        let end = Instant::now() + limit;
        let new = self.dir.path().join("mail").join(user).join("new");
        while fs::read_dir(&new).map_or(0, Iterator::count) < messages && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let found = fs::read_dir(&new).into_iter().flatten();
        let found: Vec<String> = found
            .map(|entry| Ok(String::from_utf8_lossy(&fs::read(entry?.path())?).into_owned()))
            .collect::<Result<_>>()?;
        if found.len() != messages {
            let log = fs::read_to_string(self.dir.path().join("log/maillog")).unwrap_or_default();
            bail!(
                "{user} has {} message(s), not {messages}:\n{log}",
                found.len()
            );
        }
        Ok(found)
    }
}

/// A user for each name of letters; who is not known is refused.
fn mailboxes(dir: &Path) -> Result<Setup> {
    let mail = dir.join("mail");
    fs::create_dir_all(&mail)?;
    chown(&mail, Some(NOBODY), Some(NOBODY)).context("a Postfix of our own needs root")?;
    let users = dir.join("users");
    fs::write(&users, "/^([a-z]+)@example\\.com$/ ${1}/\n")?;
    let nobody = format!("static:{NOBODY}");
    let mut setup = Setup::new(&format!("{WORLD}:25"))
        .set("myhostname", "mx.test")
        .set("virtual_mailbox_domains", "example.com")
        .set("virtual_mailbox_base", &mail.display().to_string())
        .set(
            "virtual_mailbox_maps",
            &format!("regexp:{}", users.display()),
        )
        .set("virtual_uid_maps", &nobody)
        .set("virtual_gid_maps", &nobody)
        .set("smtpd_relay_restrictions", "reject_unauth_destination")
        .set("smtpd_client_connection_count_limit", "0");
    setup.log = true;
    Ok(setup)
}
