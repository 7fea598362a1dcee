//! Following documents: one stream at the control group's leader, made again at the next one when it ends.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::Streaming;
use tonic::transport::Channel;

use super::stub;
use crate::client::{CALL_TIMEOUT, QueueClient, explain};
use crate::v1::{
    AckConfigRequest, ConfigDocument, ConfigFrame, RejectedDocument, WatchConfigRequest,
    config_event::What,
};

/// A leader says Synced every 5 s; three times that without a word is a dead one.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The first pause after a stream that could not be opened; doubled up to the next, with jitter of a half.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// A new leader is found within this.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A change of the leader takes a try or two; what lasts longer is logged.
const FAILURES_QUIET: u32 = 4;

/// What came since the last news, or all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigNews {
    /// These are all documents: what is not among them is gone.
    pub whole: bool,
    /// Documents that came or changed.
    pub upserts: Vec<ConfigDocument>,
    /// Keys that are gone.
    pub deletes: Vec<String>,
    /// The revision that is whole with them.
    pub revision: u64,
}

/// The documents that are for this client's role, as they change.
pub struct ConfigStream {
    client: QueueClient,
    /// The last revision that is whole here.
    revision: u64,
    open: Option<Open>,
    turn: usize,
    pause: Duration,
    hint: Option<String>,
    /// Tries since the last news, and what was logged of them.
    failures: u32,
    said: String,
    /// What this node says is in effect.
    ack: Option<AckConfigRequest>,
    /// The leader of the open stream knows it.
    told: bool,
}

struct Open {
    channel: Channel,
    frames: Streaming<ConfigFrame>,
    /// When the leader said something last: callers may drop what they wait for, and ask again.
    heard: Instant,
    begun: bool,
    whole: bool,
    /// What came since the last Synced; of each key the last word.
    came: BTreeMap<String, Option<ConfigDocument>>,
}

impl ConfigStream {
    pub(super) fn new(client: QueueClient) -> ConfigStream {
        ConfigStream {
            client,
            revision: 0,
            open: None,
            turn: 0,
            pause: PAUSE_MIN,
            hint: None,
            failures: 0,
            said: String::new(),
            ack: None,
            told: false,
        }
    }

    /// The next news; for a new stream, also when nothing changed. Waits as long as it takes, through changes of the leader.
    /// May be dropped and called again: what came in part is kept.
    pub async fn next(&mut self) -> ConfigNews {
        loop {
            let got = match self.open.is_some() {
                true => self.frame().await,
                false => self.connect().await.map(|()| None),
            };
            match got {
                Ok(None) => self.tell().await,
                Ok(Some(news)) => {
                    self.revision = news.revision;
                    self.pause = PAUSE_MIN;
                    self.said.clear();
                    self.failures = 0;
                    return news;
                }
                Err(why) => {
                    self.open = None;
                    self.complain(why);
                    let jitter = rand::random_range(0.5..1.5);
                    tokio::time::sleep(self.pause.mul_f64(jitter)).await;
                    self.pause = (self.pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Says that a revision is in effect here but for what is rejected. Told again to each new leader.
    pub async fn acknowledge(&mut self, revision: u64, rejected: Vec<RejectedDocument>) {
        self.ack = Some(AckConfigRequest {
            name: self.client.inner.nodes.config.name.clone(),
            revision,
            rejected,
            ca_hash: self.client.config().ca_hash(),
        });
        self.told = false;
        self.tell().await;
    }

    async fn tell(&mut self) {
        let (Some(ack), Some(open), false) = (&self.ack, &self.open, self.told) else {
            return;
        };
        let mut stub = stub(open.channel.clone());
        let asked = tokio::time::timeout(CALL_TIMEOUT, stub.ack_config(ack.clone())).await;
        // Else it is said again with the next Synced, to whoever leads then.
        if let Ok(Ok(answer)) = asked {
            let answer = answer.into_inner();
            self.told = answer.not_leader.is_none() && !answer.unknown;
        }
    }

    fn complain(&mut self, why: String) {
        self.failures += 1;
        if self.failures >= FAILURES_QUIET && why != self.said {
            tracing::warn!(
                reason = why,
                "cannot follow the configuration; what was declared before stays, trying again"
            );
            self.said = why;
        }
    }

    async fn connect(&mut self) -> Result<(), String> {
        let address = match self.hint.take() {
            Some(address) => address,
            None => self.client.control_address(self.turn),
        };
        self.turn = self.turn.wrapping_add(1);
        let node = self.client.inner.nodes.get(&address)?;
        let ask = WatchConfigRequest {
            name: self.client.inner.nodes.config.name.clone(),
            from: self.revision,
        };
        let channel = node.channel.clone();
        let mut stub = stub(channel.clone());
        let opened = tokio::time::timeout(CALL_TIMEOUT, stub.watch_config(ask));
        let frames = match opened.await {
            Ok(Ok(frames)) => frames.into_inner(),
            Ok(Err(status)) => return Err(format!("{address}: {}", explain(&status))),
            Err(_) => {
                return Err(format!(
                    "{address}: no answer for {} s",
                    CALL_TIMEOUT.as_secs()
                ));
            }
        };
        self.told = false;
        self.open = Some(Open {
            channel,
            frames,
            heard: Instant::now(),
            begun: false,
            whole: false,
            came: BTreeMap::new(),
        });
        Ok(())
    }

    /// One frame; news when it ends some. The error says why the stream is over.
    async fn frame(&mut self) -> Result<Option<ConfigNews>, String> {
        let Some(open) = &mut self.open else {
            return Err("it is not open".into());
        };
        let until = open.heard + SILENCE_MAX;
        let frame = match timeout_at(until, open.frames.message()).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => return Err("the leader ended the stream".into()),
            Ok(Err(status)) => return Err(explain(&status)),
            Err(_) => {
                return Err(format!(
                    "the leader said nothing for {} s",
                    SILENCE_MAX.as_secs()
                ));
            }
        };
        open.heard = Instant::now();
        if let Some(not_leader) = frame.not_leader {
            let to = not_leader.leader_address;
            let why = "a node that was asked does not lead the control group";
            self.hint = (!to.is_empty()).then_some(to);
            return Err(why.into());
        }
        let mut ended = None;
        for what in frame.events.into_iter().filter_map(|event| event.what) {
            match what {
                What::Begin(begin) => {
                    open.begun = true;
                    open.whole = begin.whole;
                }
                What::Upsert(document) => {
                    open.came.insert(document.key.clone(), Some(document));
                }
                What::Delete(key) => {
                    open.came.insert(key, None);
                }
                What::Synced(synced) => {
                    let first = std::mem::take(&mut open.begun);
                    let mut news = ConfigNews {
                        whole: std::mem::take(&mut open.whole),
                        revision: synced.revision,
                        ..ConfigNews::default()
                    };
                    for (key, document) in std::mem::take(&mut open.came) {
                        match document {
                            Some(document) => news.upserts.push(document),
                            None => news.deletes.push(key),
                        }
                    }
                    let nothing = news.upserts.is_empty() && news.deletes.is_empty();
                    if !nothing || first || synced.revision != self.revision {
                        ended = Some(news);
                    }
                }
            }
        }
        Ok(ended)
    }
}
