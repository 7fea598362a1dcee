//! One `postroad` process.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Of a log that is printed when a test fails, octets.
const LOG_SHOWN: u64 = 12_000;
/// Between two looks at whether a process ended.
const LOOK: Duration = Duration::from_millis(20);

/// A process that runs, or ran; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `postroad` with these arguments, under this group id if there is one; what it says goes to the end of
    /// `log`.
    pub fn start(name: &str, args: &[String], log: &Path, group: Option<u32>) -> Result<Process> {
        let file = File::options().create(true).append(true).open(log)?;
        let mut command = match group {
            None => Command::new(program()?),
            Some(group) => {
                let mut command = Command::new("setpriv");
                command.args(["--regid", &group.to_string(), "--clear-groups"]);
                command.arg(program()?);
                command
            }
        };
        let child = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            ended: None,
        })
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Ends it as a power switch would end the process: no handler runs, what it wrote stays in the page cache.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill()?;
            self.ended = Some(self.child.wait()?);
        }
        Ok(())
    }

    /// Asks it to leave.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Stops it in the middle of whatever it does (SIGSTOP): its sockets stay open and nobody answers on them.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT), with a clock that has jumped.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("a process has an id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory that it has now, octets (VmRSS).
    pub fn memory(&self) -> Result<u64> {
        self.status_field("VmRSS:")
    }

    /// Waits until it ends by itself.
    pub async fn end(&mut self, within: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < until,
                "{} did not end in {within:?}",
                self.name
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Fails when it ended by itself, with what it said last.
    pub fn runs(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}\n{}", self.name, self.said()),
        }
    }

    /// The most memory that it had at once, octets (VmHWM).
    pub fn memory_peak(&self) -> Result<u64> {
        self.status_field("VmHWM:")
    }

    fn status_field(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        let kib = line.and_then(|l| l.split_whitespace().next());
        Ok(kib.context("it is in every status")?.parse::<u64>()? * 1024)
    }

    /// The end of its log.
    pub fn said(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let length = file.metadata().map_or(0, |m| m.len());
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(LOG_SHOWN)));
            let _ = file.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.ended.map(|status| format!(" ({status})"));
        let _ = self.kill();
        if std::thread::panicking() {
            eprintln!(
                "---- {}{} ----\n{}",
                self.name,
                ended.unwrap_or_default(),
                self.said()
            );
        }
    }
}

/// The program under test, of the profile that this test was built with; built when nobody did so before.
/// `POSTROAD_BIN` names another.
pub fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = PROGRAM.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    match found {
        Ok(path) => Ok(path),
        Err(error) => bail!("{error}"),
    }
}

fn build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("POSTROAD_BIN") {
        return Ok(path.into());
    }
    // target/PROFILE/deps/this-test, or target/PROFILE/this-program
    let own = std::env::current_exe()?;
    let profile = own
        .ancestors()
        .skip(1)
        .find(|dir| !dir.ends_with("deps"))
        .context("a test lies in target/PROFILE/deps")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "build",
        "--quiet",
        "--workspace",
        "--bin",
        "postroad",
    ]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    ensure!(cargo.status()?.success(), "postroad could not be built");
    Ok(profile.join("postroad"))
}
