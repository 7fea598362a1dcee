//! smtp-sink behind a system, smtp-source in front of it, and what passes between them.

use std::io::Read;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::child::{self, Process};
use tests::netns::Namespace;

use crate::GoOn;

/// Where every system listens, in its own namespace.
pub const SYSTEM: &str = "127.0.0.1:2525";
/// Where the sink listens.
pub const SINK_PORT: u16 = 2526;
/// What comes after the last message has arrived (settles, removal from the queue) is counted too.
const AFTERMATH: Duration = Duration::from_millis(500);
/// Between two looks at the sink's counter.
const LOOK: Duration = Duration::from_millis(2);

/// How messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Octets of content after the header.
    pub octets: u32,
    /// SMTP sessions at a time.
    pub sessions: u32,
    /// Messages follow each other over the same connections.
    pub keep: bool,
}

/// What a run was.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Messages.
    pub messages: u64,
    /// From the first connection to the last message in the sink.
    pub seconds: f64,
    /// Until smtp-source had its last 250.
    pub accepted_seconds: f64,
    /// CPU time of the system under test, seconds.
    pub cpu: f64,
    /// CPU time of smtp-source and smtp-sink, seconds.
    pub tools: f64,
    /// Messages that came more than once.
    pub extra: u64,
}

/// smtp-sink, which counts.
#[derive(Debug)]
pub struct Sink {
    process: Process,
    count: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
}

impl Sink {
    /// Starts it.
    pub fn start(namespace: &Namespace) -> Result<Sink> {
        let mut command = namespace.command("smtp-sink");
        command
            .args(["-c", "-u", "postfix", "-m", "2000"])
            .args([&format!("127.0.0.1:{SINK_PORT}"), "1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = Process::start("smtp-sink", &mut command)?;
        let mut output = process.child().stdout.take().context("a pipe")?;
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            let mut rest = String::new();
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                // "sess=1 quit=0 mesg=17\r", again and again.
                rest.push_str(&String::from_utf8_lossy(&buffer[..n]));
                let Some((whole, begun)) = rest.rsplit_once('\r') else {
                    continue;
                };
                if let Some(messages) = whole.rsplit("mesg=").next().and_then(|n| n.parse().ok()) {
                    counted.store(messages, Ordering::Relaxed);
                }
                rest = begun.to_owned();
            }
        });
        Ok(Sink {
            process,
            count,
            reader: Some(reader),
        })
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.process.stop();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Where load is made.
pub struct Bench<'a> {
    /// The system's namespace.
    pub namespace: &'a Namespace,
    /// Behind it.
    pub sink: &'a Sink,
    /// Processes of the system.
    pub pids: Vec<u32>,
    /// See [`GoOn`].
    pub go_on: &'a GoOn,
}

impl Bench<'_> {
    /// Waits until a message passes: a system that has just been started may refuse some.
    pub fn first(&self, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        let one = Shape {
            octets: 100,
            sessions: 1,
            keep: false,
        };
        loop {
            let before = self.sink.count();
            if self.source(one, 1, Duration::from_secs(10)).is_ok() {
                let left = until.saturating_duration_since(Instant::now());
                return self.arrived(before + 1, left.max(Duration::from_secs(5)));
            }
            ensure!(self.go_on.yes(), "interrupted");
            ensure!(
                Instant::now() < until,
                "the system takes no mail after {} s",
                limit.as_secs()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Sends so many messages and waits until the sink has them.
    pub fn send(&self, shape: Shape, messages: u64, limit: Duration) -> Result<Run> {
        let before = self.sink.count();
        let tools = [self.sink.process.pid()];
        let (cpu, sink_cpu) = (child::cpu(&self.pids), child::cpu(&tools));
        let begun = Instant::now();
        // Arrival is watched while it is sent: some systems are done before smtp-source is.
        let (source, ended) = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let arrived = self.arrived(before + messages, limit);
                (arrived, begun.elapsed())
            });
            let source = self.source(shape, messages, limit);
            let accepted = begun.elapsed();
            (source.map(|cpu| (cpu, accepted)), waiter.join())
        });
        let (source_cpu, accepted) = source?;
        let Ok((arrived, elapsed)) = ended else {
            bail!("the thread that watches the sink has panicked");
        };
        arrived?;
        std::thread::sleep(AFTERMATH);
        let tools_cpu = source_cpu + child::cpu(&tools).saturating_sub(sink_cpu);
        Ok(Run {
            messages,
            seconds: elapsed.as_secs_f64(),
            accepted_seconds: accepted.as_secs_f64(),
            cpu: child::cpu(&self.pids).saturating_sub(cpu).as_secs_f64(),
            tools: tools_cpu.as_secs_f64(),
            extra: self.sink.count() - before - messages,
        })
    }

    /// Runs smtp-source to its end and gives its CPU time.
    fn source(&self, shape: Shape, messages: u64, limit: Duration) -> Result<Duration> {
        let before = child::reaped_cpu();
        let mut command = self.namespace.command("smtp-source");
        command
            .args(["-C", "20", "-M", "client.test"])
            .args(["-f", "sender@origin.test", "-t", "someone@example.com"])
            .args(["-l", &shape.octets.to_string()])
            .args(["-s", &shape.sessions.to_string()])
            .args(["-m", &messages.to_string()])
            .args(shape.keep.then_some("-d"))
            .arg(SYSTEM)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut source = Process::start("smtp-source", &mut command)?;
        let status = source.wait(limit, || self.go_on.yes())?;
        if !status.success() {
            let mut said = String::new();
            if let Some(mut output) = source.child().stderr.take() {
                output.read_to_string(&mut said)?;
            }
            bail!("smtp-source failed: {}", said.trim());
        }
        Ok(child::reaped_cpu().saturating_sub(before))
    }

    fn arrived(&self, wanted: u64, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        while self.sink.count() < wanted {
            ensure!(self.go_on.yes(), "interrupted");
            if Instant::now() > until {
                bail!(
                    "{} message(s) did not arrive within {} s",
                    wanted - self.sink.count(),
                    limit.as_secs()
                );
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}
