//! The test cluster that `tests/cluster/up` brought up, and the world outside it: a Postfix with mailboxes in a network
//! namespace of its own, on the same wire as the Kubernetes node.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
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
/// This machine as the cluster's pods reach it; `host.test` in the cluster's DNS.
pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 30, 255, 1));
/// The image that `tests/cluster/run` builds: what the charts ask for.
pub const IMAGE: &str = concat!("ghcr.io/postroad/postroad:", env!("CARGO_PKG_VERSION"));
/// Its network namespace.
const WORLD_NAMESPACE: &str = "postroad-world";
/// The user that owns the mailboxes.
const NOBODY: u32 = 65534;

/// The cluster.
#[derive(Debug)]
pub struct Kubernetes {
    /// Everything that the cluster has on the disk.
    pub dir: PathBuf,
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
            dir,
            programs: programs.trim().into(),
        })
    }

    /// A program of `tests/cluster`, by name.
    pub fn script(&self, name: &str) -> Command {
        let mut command = Command::new(checkout().join("tests/cluster").join(name));
        command.env("POSTROAD_CLUSTER_DIR", &self.dir);
        command
    }

    /// Bash with these lines, as somebody at the checkout would type them: `helm` is Helm 4.
    ///
    /// # Errors
    /// When a line fails; the text has what it said.
    pub fn shell(&self, lines: &str) -> Result<String> {
        let names = tempfile::tempdir()?;
        for (name, program) in [("helm", "helm4"), ("kubectl", "kubectl")] {
            std::os::unix::fs::symlink(self.programs.join(program), names.path().join(name))?;
        }
        let mut path = OsString::from(names.path());
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut shell = self.tool_at("bash".as_ref(), &["-euxc", lines]);
        run(shell.env("PATH", path).current_dir(checkout()))
    }

    /// Gives the image a second name, under which a pod may ask for it.
    ///
    /// # Errors
    /// What containerd says.
    pub fn tag_image(&self, name: &str) -> Result<()> {
        let mut tag = Command::new("ctr");
        tag.arg("--address").arg(self.dir.join("containerd.sock"));
        tag.args(["--namespace", "k8s.io", "images", "tag", "--force"]);
        run(tag.args([IMAGE, name])).map(drop)
    }

    /// `kubectl` with these arguments, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.tool("kubectl", arguments)
    }

    /// A program of the cluster's that reads a kubeconfig: `kubectl`, `helm3`, `helm4`.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Command {
        self.tool_at(&self.programs.join(program), arguments)
    }

    /// Debian's promtool, which `tests/cluster/install` laid beside the cluster's programs.
    pub fn promtool(&self) -> Command {
        let beside = self.programs.parent().unwrap_or(&self.programs);
        Command::new(beside.join("promtool"))
    }

    fn tool_at(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let kubeconfig = self.dir.join("admin.conf");
        command.env("KUBECONFIG", kubeconfig).args(arguments);
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
        self.feed(&["apply", "-f", "-"], documents)
    }

    /// `kubectl` with these arguments reads these documents.
    ///
    /// # Errors
    /// What the API server says.
    pub fn feed(&self, arguments: &[&str], documents: &str) -> Result<()> {
        let mut apply = self
            .command(arguments)
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
            // Of a container that was started again; few were.
            let before = ["-n", namespace, "logs", "--previous", "--tail=40", pod];
            if let Ok(log) = self.kubectl(&before) {
                text.push_str(&format!("-- {pod}, before its last start\n{log}\n"));
            }
        }
        text
    }
}

/// Where the sources are.
pub fn checkout() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// A Postfix outside the cluster that takes all mail for `example.com` and `world.test`. Dropped, it is gone.
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

    /// The messages in a user's mailbox, as soon as there are so many; the newest is the last.
    ///
    /// # Errors
    /// When there are fewer or more within `limit`.
    pub fn mailbox(&self, user: &str, messages: usize, limit: Duration) -> Result<Vec<String>> {
        let end = Instant::now() + limit;
        let new = self.dir.path().join("mail").join(user).join("new");
        while fs::read_dir(&new).map_or(0, Iterator::count) < messages && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&new).into_iter().flatten() {
            let entry = entry?;
            let text = String::from_utf8_lossy(&fs::read(entry.path())?).into_owned();
            found.push((entry.metadata()?.modified()?, text));
        }
        found.sort();
        if found.len() != messages {
            let log = fs::read_to_string(self.dir.path().join("log/maillog")).unwrap_or_default();
            bail!(
                "{user} has {} message(s), not {messages}:\n{log}",
                found.len()
            );
        }
        Ok(found.into_iter().map(|(_, text)| text).collect())
    }
}

/// Who has a mailbox, at either domain. Postfix's virtual(8) takes no pattern that a name is put into, so all of them stand here.
const USERS: [&str; 8] = [
    "alice", "anna", "bert", "carl", "dora", "emil", "fred", "gina",
];

/// Mailboxes of all users; who is not known is refused.
fn mailboxes(dir: &Path) -> Result<Setup> {
    let mail = dir.join("mail");
    fs::create_dir_all(&mail)?;
    chown(&mail, Some(NOBODY), Some(NOBODY)).context("a Postfix of our own needs root")?;
    let users = dir.join("users");
    let lines =
        USERS.map(|user| format!("{user}@example.com {user}/\n{user}@world.test {user}/\n"));
    fs::write(&users, lines.concat())?;
    let nobody = format!("static:{NOBODY}");
    let mut setup = Setup::new(&format!("{WORLD}:25"))
        .set("myhostname", "mx.test")
        .set("virtual_mailbox_domains", "example.com, world.test")
        .set("virtual_mailbox_base", &mail.display().to_string())
        .set(
            "virtual_mailbox_maps",
            &format!("texthash:{}", users.display()),
        )
        .set("virtual_uid_maps", &nobody)
        .set("virtual_gid_maps", &nobody)
        .set("smtpd_relay_restrictions", "reject_unauth_destination")
        .set("smtpd_client_connection_count_limit", "0");
    setup.log = true;
    Ok(setup)
}
