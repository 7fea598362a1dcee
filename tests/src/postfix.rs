//! A Postfix of our own: its configuration, queue and data in one directory, beside the machine's, which is not touched.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::child::{Process, exists, run};

/// Postfix looks at all its files at a start, which a loaded machine does slowly.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A Postfix that runs. Dropped, it is stopped; its directory is the caller's.
#[derive(Debug)]
pub struct Postfix {
    // Before the process is told to end, nothing else of it may go.
    master: Process,
    dir: PathBuf,
}

/// What is needed to start one.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Lines for main.cf after those that every instance has.
    pub main: Vec<(String, String)>,
    /// `address:port` of its smtpd.
    pub listen: String,
    /// Lines for master.cf after those that every instance has.
    pub services: Vec<String>,
    /// Write the log to `DIR/log/maillog`; else it goes to the machine's syslog.
    pub log: bool,
}

impl Setup {
    /// An instance that listens and knows no mail yet.
    pub fn new(listen: &str) -> Setup {
        Setup {
            main: Vec::new(),
            listen: listen.to_owned(),
            services: Vec::new(),
            log: false,
        }
    }

    /// With this line in main.cf, instead of an earlier one of that name.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Setup {
        self.main.retain(|(earlier, _)| earlier != name);
        self.main.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Postfix's programs are there.
///
/// # Errors
/// Which is missing, and what installs it.
pub fn installed() -> Result<()> {
    for program in ["postfix", "smtp-source", "smtp-sink"] {
        if !exists(program) {
            bail!("{program} is missing; install it, on Debian with: apt-get install postfix");
        }
    }
    Ok(())
}

impl Postfix {
    /// Writes the configuration into `dir` and starts it. `command` makes the command, so that it can run in a network
    /// namespace. Needs root; all directories above `dir` must let other users pass.
    ///
    /// # Errors
    /// What the system or Postfix says.
    pub fn start(dir: &Path, setup: &Setup, command: impl Fn(&str) -> Command) -> Result<Postfix> {
        let (config, queue, data) = (dir.join("etc"), dir.join("spool"), dir.join("data"));
        let log = dir.join("log");
        for each in [&config, &queue, &data, &log] {
            fs::create_dir_all(each)?;
            fs::set_permissions(each, fs::Permissions::from_mode(0o755))?;
        }
        let (user, group) = postfix_user()?;
        chown(&data, Some(user), Some(group)).context("a Postfix of our own needs root")?;
        fs::write(config.join("main.cf"), main_cf(dir, setup))?;
        fs::write(config.join("master.cf"), master_cf(setup))?;
        let mut start = command("postfix");
        start.arg("-c").arg(&config).arg("start-fg");
        let output = fs::File::create(log.join("start"))?;
        start.stderr(output.try_clone()?).stdout(output);
        let mut postfix = Postfix {
            master: Process::start("postfix", &mut start)?,
            dir: dir.to_owned(),
        };
        postfix.ready()?;
        Ok(postfix)
    }

    fn ready(&mut self) -> Result<()> {
        let (pid, until) = (
            self.dir.join("spool/pid/master.pid"),
            Instant::now() + START_LIMIT,
        );
        let public = self.dir.join("spool/public/qmgr");
        while !(pid.exists() && public.exists()) {
            let ended = self.master.ended()?;
            if ended.is_some() || Instant::now() > until {
                let said = fs::read_to_string(self.dir.join("log/start")).unwrap_or_default();
                bail!("postfix does not start ({ended:?}): {said}{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The process id of its master, from which all others descend.
    pub fn pid(&self) -> u32 {
        self.master.pid()
    }

    /// Its log so far, if it writes one.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log/maillog")).unwrap_or_default()
    }

    /// Asks its queue manager to try deferred mail now.
    ///
    /// # Errors
    /// What `postqueue` says.
    pub fn flush(&self) -> Result<()> {
        run(Command::new("postqueue")
            .arg("-c")
            .arg(self.dir.join("etc"))
            .arg("-f"))
        .map(|_| ())
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        // The master ends its children in order only when it is asked this way; a signal alone would do it as well,
        // but would leave those that are at work to themselves.
        let stop = run(Command::new("postfix")
            .arg("-c")
            .arg(self.dir.join("etc"))
            .arg("stop"));
        if let Err(error) = stop {
            eprintln!("postfix is killed: {error}");
        }
    }
}

fn main_cf(dir: &Path, setup: &Setup) -> String {
    let path = |name: &str| dir.join(name).display().to_string();
    let mut lines = vec![
        ("compatibility_level".to_owned(), "3.6".to_owned()),
        ("queue_directory".to_owned(), path("spool")),
        ("data_directory".to_owned(), path("data")),
        ("myhostname".to_owned(), "postfix.test".to_owned()),
        ("mydestination".to_owned(), String::new()),
        ("local_recipient_maps".to_owned(), String::new()),
        ("alias_maps".to_owned(), String::new()),
        ("mynetworks".to_owned(), "127.0.0.0/8".to_owned()),
        ("inet_protocols".to_owned(), "ipv4".to_owned()),
        // There is no DNS where this runs, and no question for it.
        ("disable_dns_lookups".to_owned(), "yes".to_owned()),
        ("smtpd_peername_lookup".to_owned(), "no".to_owned()),
        ("smtpd_tls_security_level".to_owned(), "none".to_owned()),
        ("smtp_tls_security_level".to_owned(), "none".to_owned()),
    ];
    if setup.log {
        lines.push(("maillog_file".to_owned(), path("log/maillog")));
        lines.push(("maillog_file_prefixes".to_owned(), path("log")));
    }
    // Postfix warns of a name that stands there twice.
    lines.retain(|(name, _)| setup.main.iter().all(|(own, _)| own != name));
    lines.extend(setup.main.iter().cloned());
    lines
        .into_iter()
        .map(|(name, value)| format!("{name} = {value}\n"))
        .collect()
}

/// Debian's services without its change roots, which would need copies of libraries in each queue directory.
fn master_cf(setup: &Setup) -> String {
    const SERVICES: &str = "\
cleanup   unix  n  -  n  -     0  cleanup
qmgr      unix  n  -  n  300   1  qmgr
pickup    unix  n  -  n  60    1  pickup
rewrite   unix  -  -  n  -     -  trivial-rewrite
bounce    unix  -  -  n  -     0  bounce
defer     unix  -  -  n  -     0  bounce
trace     unix  -  -  n  -     0  bounce
flush     unix  n  -  n  1000? 0  flush
proxymap  unix  -  -  n  -     -  proxymap
proxywrite unix -  -  n  -     1  proxymap
smtp      unix  -  -  n  -     -  smtp
showq     unix  n  -  n  -     -  showq
error     unix  -  -  n  -     -  error
retry     unix  -  -  n  -     -  error
discard   unix  -  -  n  -     -  discard
virtual   unix  -  n  n  -     -  virtual
local     unix  -  n  n  -     -  local
anvil     unix  -  -  n  -     1  anvil
scache    unix  -  -  n  -     1  scache
tlsmgr    unix  -  -  n  1000? 1  tlsmgr
postlog   unix-dgram n - n -   1  postlogd
";
    let mut text = format!("{} inet n - n - - smtpd\n{SERVICES}", setup.listen);
    for service in &setup.services {
        text.push_str(service);
        text.push('\n');
    }
    text
}

fn postfix_user() -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    let find = || {
        let line = users.lines().find(|line| line.starts_with("postfix:"))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    find().context("there is no user `postfix`; the package makes it")
}
