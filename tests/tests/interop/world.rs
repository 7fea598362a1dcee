//! A Postfix in front, `postroad up` in the middle, a Postfix behind it with mailboxes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::child::{Process, run};
use tests::postfix::{self, Postfix, Setup};
use tests::process::node::program;
use tests::program::start;
use tests::queue::free_address;

/// The user that owns the mailboxes.
const NOBODY: u32 = 65534;
/// All three take mail after this time at most, on a machine that does other things as well.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What is special.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spec {
    /// Our edge's limit.
    pub own_size: Option<&'static str>,
    /// The next hop's limit, octets.
    pub next_size: Option<u64>,
}

/// The three, on ports that were free. Dropped, all of it is taken away.
pub struct World {
    // Dropped in this order: the client first, the next hop last, then their files.
    front: Postfix,
    _middle: Process,
    back: Postfix,
    front_address: String,
    edge_address: String,
    dir: tempfile::TempDir,
}

impl World {
    /// Starts all three and waits until they listen.
    ///
    /// # Errors
    /// Also when Postfix is not installed, or this is not root.
    pub fn start(spec: Spec) -> Result<World> {
        postfix::installed()
            .context("POSTROAD_SKIP_INTEROP=1 leaves out the tests with Postfix")?;
        // Not in the build's folder, which other users often may not enter.
        let dir = tempfile::Builder::new()
            .prefix("postroad-interop-")
            .tempdir_in("/var/tmp")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let at = |name: &str| dir.path().join(name);
        let (front_address, edge_address, back_address) =
            (free_address()?, free_address()?, free_address()?);
        let setup = mailboxes(&at("back"), &back_address, spec)?;
        let back = Postfix::start(&at("back"), &setup, |name| Command::new(name))?;
        let middle = up(&at("up"), &edge_address, &back_address, spec)?;
        let relayhost = format!(
            "[127.0.0.1]:{}",
            edge_address.rsplit(':').next().unwrap_or_default()
        );
        let mut setup = Setup::new(&front_address)
            .set("relayhost", &relayhost)
            .set("myorigin", "front.test")
            .set("smtpd_relay_restrictions", "permit_mynetworks, reject")
            .set("smtp_connection_cache_destinations", &relayhost)
            .set("default_destination_concurrency_limit", "2");
        setup.log = true;
        let front = Postfix::start(&at("front"), &setup, |name| Command::new(name))?;
        let world = World {
            front,
            _middle: middle,
            back,
            front_address,
            edge_address,
            dir,
        };
        for address in [&world.front_address, &world.edge_address, &back_address] {
            let listens = || super::Dialogue::open(address).is_ok();
            ensure!(
                until(START_LIMIT, listens),
                "nobody greets at {address}:\n{}",
                world.logs()
            );
        }
        Ok(world)
    }

    /// Where Postfix takes mail for us.
    pub fn front(&self) -> &str {
        &self.front_address
    }

    /// Where we take mail.
    pub fn edge(&self) -> &str {
        &self.edge_address
    }

    /// The log of the Postfix in front.
    pub fn front_log(&self) -> String {
        self.front.log()
    }

    /// The log of the Postfix behind us.
    pub fn back_log(&self) -> String {
        self.back.log()
    }

    /// All logs, for a failure.
    pub fn logs(&self) -> String {
        let ours = fs::read_to_string(self.dir.path().join("up/up.log")).unwrap_or_default();
        format!(
            "-- in front --\n{}\n-- postroad --\n{ours}\n-- behind --\n{}",
            self.front.log(),
            self.back.log()
        )
    }

    /// Sends one message with swaks.
    pub fn swaks(&self, server: &str, from: &str, to: &str, content: &[u8]) -> Result<()> {
        let file = self.dir.path().join("content");
        // swaks ends the last line itself.
        fs::write(&file, content.strip_suffix(b"\n").unwrap_or(content))?;
        run(Command::new("swaks")
            .args(["--server", server, "--from", from, "--to", to])
            .args(["--helo", "client.test", "--hide-all"])
            .arg("--data")
            .arg(format!("@{}", file.display())))
        .context("install it, on Debian with: apt-get install swaks")
        .map(|_| ())
    }

    /// Sends many small messages to alice over a few connections.
    pub fn smtp_source(&self, server: &str, messages: usize) -> Result<()> {
        run(Command::new("smtp-source")
            .args(["-d", "-s", "5", "-l", "1000", "-M", "client.test"])
            .args(["-f", "sender@origin.test", "-t", "alice@example.com"])
            .args(["-m", &messages.to_string(), server]))
        .map(|_| ())
    }

    /// `postroad queue` with these arguments; its answer.
    pub fn queue(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new(program()?)
            .arg("queue")
            .args(arguments)
            .arg("--data")
            .arg(self.dir.path().join("up/data")))
    }

    /// How many messages a mailbox has.
    pub fn count(&self, mailbox: &str) -> usize {
        let new = self.mailbox_dir(mailbox).join("new");
        fs::read_dir(new).map_or(0, Iterator::count)
    }

    /// The messages of a mailbox, as soon as there are so many. More would be copies.
    pub fn mailbox(&self, mailbox: &str, messages: usize, limit: Duration) -> Result<Vec<Vec<u8>>> {
        until(limit, || self.count(mailbox) >= messages);
        let mut found = Vec::new();
        for entry in fs::read_dir(self.mailbox_dir(mailbox).join("new"))
            .into_iter()
            .flatten()
        {
            found.push(fs::read(entry?.path())?);
        }
        if found.len() != messages {
            bail!(
                "{mailbox} has {} message(s) instead of {messages} after {} s",
                found.len(),
                limit.as_secs()
            );
        }
        Ok(found)
    }

    /// From now on the next hop takes mail to grey@example.com.
    pub fn lift_greylisting(&self) -> Result<()> {
        fs::write(self.dir.path().join("back/grey"), "")?;
        let config = self.dir.path().join("back/etc");
        run(Command::new("postfix").arg("-c").arg(config).arg("reload"))?;
        Ok(())
    }

    fn mailbox_dir(&self, mailbox: &str) -> PathBuf {
        self.dir.path().join("back/mail").join(mailbox)
    }
}

/// Waits until something is so; false when it never was.
pub fn until(limit: Duration, so: impl Fn() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if so() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Postfix as the next hop: example.com and origin.test live there, with the users that the tests name.
fn mailboxes(dir: &Path, listen: &str, spec: Spec) -> Result<Setup> {
    let mail = dir.join("mail");
    fs::create_dir_all(&mail)?;
    chown(&mail, Some(NOBODY), Some(NOBODY))
        .context("the tests with Postfix need root; POSTROAD_SKIP_INTEROP=1 leaves them out")?;
    let users = dir.join("users");
    fs::write(
        &users,
        "/^(alice|grey)@example\\.com$/ alice/\n/^user[0-9]+@example\\.com$/ users/\n\
         /^j\u{f6}rg@example\\.com$/ joerg/\n/^sender@origin\\.test$/ sender/\n",
    )?;
    let grey = dir.join("grey");
    fs::write(&grey, "/^grey@/ 450 4.2.0 Greylisted, come again\n")?;
    let nobody = format!("static:{NOBODY}");
    let mut setup = Setup::new(listen)
        .set("virtual_mailbox_domains", "example.com, origin.test")
        .set("virtual_mailbox_base", &mail.display().to_string())
        .set(
            "virtual_mailbox_maps",
            &format!("regexp:{}", users.display()),
        )
        .set("virtual_uid_maps", &nobody)
        .set("virtual_gid_maps", &nobody)
        .set("smtpd_relay_restrictions", "reject_unauth_destination")
        .set(
            "smtpd_recipient_restrictions",
            &format!("check_recipient_access regexp:{}", grey.display()),
        );
    if let Some(octets) = spec.next_size {
        setup = setup.set("message_size_limit", &octets.to_string());
    }
    setup.log = true;
    Ok(setup)
}

fn up(dir: &Path, edge: &str, next_hop: &str, spec: Spec) -> Result<Process> {
    let port = next_hop.rsplit(':').next().unwrap_or_default();
    let files = dir.join("files");
    fs::create_dir_all(&files)?;
    let size = spec
        .own_size
        .map_or(String::new(), |size| format!(", messageSize: {size}"));
    let mut resources = format!(
        "apiVersion: postroad.dev/v1alpha1\nkind: EdgePool\nmetadata: {{name: edge}}\n\
         spec: {{limits: {{connectionsPerSource: 1000{size}}}}}\n"
    );
    for domain in ["example.com", "origin.test"] {
        let name = domain.replace('.', "-");
        resources += &format!(
            "---\napiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: {name}}}\n\
             spec: {{domain: {domain}, inbound: {{targets: [{{host: 127.0.0.1, port: {port}}}]}}}}\n"
        );
    }
    fs::write(files.join("world.yaml"), resources)?;
    let mut command = Command::new(program()?);
    command
        .args(["up", "--listen", edge, "--admin-listen", "off"])
        .args(["--hostname", "postroad.test", "--disk-bytes", "4GiB"])
        .arg("-f")
        .arg(files)
        .arg("--data")
        .arg(dir.join("data"))
        .stdin(Stdio::null());
    start(dir, "up", &mut command)
}
