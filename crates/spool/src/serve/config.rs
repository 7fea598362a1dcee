//! The Config service: documents in, documents out, and who has them.

use std::time::Duration;

use proto::v1;
use proto::v1::config_server::Config;
use proto::{Right, Role, require};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{Answers, Services};
use crate::desk::ConfigDesk;
use crate::event::{PutCall, StateEvent};

/// A watcher hears at least so often that all is as it was; after three times as long without a word it asks elsewhere.
const SAID_EVERY: Duration = Duration::from_secs(5);
/// Frames ahead of the HTTP/2 window: each is up to a quarter MiB.
const FRAMES_AHEAD: usize = 2;

#[tonic::async_trait]
impl Config for Services {
    type WatchConfigStream = Answers<v1::ConfigFrame>;

    async fn put_config(
        &self,
        request: Request<v1::PutConfigRequest>,
    ) -> Result<Response<v1::PutConfigResponse>, Status> {
        let who = require(&request, Right::PutConfig)?;
        self.check_running()?;
        let put = request.into_inner().put.unwrap_or_default();
        let put = match crate::wire::config::put_asked(put) {
            Ok(put) => put,
            Err(error) => {
                return Ok(Response::new(v1::PutConfigResponse {
                    outcome: v1::PutConfigOutcome::Invalid.into(),
                    text: error.to_string(),
                    ..Default::default()
                }));
            }
        };
        tracing::debug!(%who, writer = %put.writer, upserts = put.upserts.len(), deletes = put.deletes.len(), "PutConfig");
        let (to, answer) = tokio::sync::oneshot::channel();
        let call = PutCall { put, answer: to };
        let _ = self.mail.state.send(StateEvent::Put(call));
        super::admin::answered(answer).await.map(Response::new)
    }

    async fn watch_config(
        &self,
        request: Request<v1::WatchConfigRequest>,
    ) -> Result<Response<Self::WatchConfigStream>, Status> {
        let who = require(&request, Right::WatchConfig)?;
        self.check_running()?;
        let request = request.into_inner();
        check_name(&request.name)?;
        let (to, stream) = mpsc::channel(FRAMES_AHEAD);
        let services = self.clone();
        tokio::spawn(async move {
            let told = tell(&services.desk, who.role, &request, &to).await;
            if told.is_some() {
                let frame = v1::ConfigFrame {
                    not_leader: Some(services.leader()),
                    events: Vec::new(),
                };
                let _ = to.send(Ok(frame)).await;
            }
        });
        Ok(Response::new(Answers::new(stream)))
    }

    async fn ack_config(
        &self,
        request: Request<v1::AckConfigRequest>,
    ) -> Result<Response<v1::AckConfigResponse>, Status> {
        let who = require(&request, Right::AckConfig)?;
        let mut answer = v1::AckConfigResponse::default();
        if self.desk.watch().borrow().is_none() {
            answer.not_leader = Some(self.leader());
        } else {
            answer.unknown = !self.desk.acknowledge(who.role, request.into_inner());
        }
        Ok(Response::new(answer))
    }

    async fn config_status(
        &self,
        request: Request<v1::ConfigStatusRequest>,
    ) -> Result<Response<v1::ConfigStatusResponse>, Status> {
        require(&request, Right::PutConfig)?;
        self.check_running()?;
        let answer = match *self.desk.watch().borrow() {
            Some(_) => self.desk.status(request.get_ref()),
            None => v1::ConfigStatusResponse {
                not_leader: Some(self.leader()),
                ..Default::default()
            },
        };
        Ok(Response::new(answer))
    }
}

impl Services {
    fn leader(&self) -> v1::NotLeader {
        v1::NotLeader {
            leader_address: self.directory.leader_address(crate::CONTROL_GROUP),
        }
    }
}

fn check_name(name: &str) -> Result<(), Status> {
    let good = |c: char| !c.is_control();
    match name.len() <= proto::identity::NAME_BYTES_MAX && name.chars().all(good) {
        true => Ok(()),
        false => Err(Status::invalid_argument(
            "the node's name (--name) is too long, or holds control characters",
        )),
    }
}

/// Tells all and then every change. `None`: whoever watched is gone, or has to begin again; else this node does not lead.
async fn tell(
    desk: &ConfigDesk,
    role: Role,
    request: &v1::WatchConfigRequest,
    to: &mpsc::Sender<Result<v1::ConfigFrame, Status>>,
) -> Option<()> {
    let mut open = desk.watch();
    if open.borrow_and_update().is_none() {
        return Some(());
    }
    let node = matches!(role, Role::Edge | Role::Delivery | Role::Queue);
    let _listed = node.then(|| desk.list(role, &request.name));
    let (mut cursor, whole) = desk.begin(request.from);
    let event = |what| v1::ConfigEvent { what: Some(what) };
    let begin = v1::config_event::What::Begin(v1::ConfigBegin { whole });
    let mut events = vec![event(begin)];
    let mut first = true;
    loop {
        let mut page = desk.page(&cursor, role, whole && first)?;
        events.append(&mut page.events);
        cursor = page.cursor;
        if let Some(revision) = page.end {
            let synced = v1::config_event::What::Synced(v1::ConfigSynced { revision });
            events.push(event(synced));
            first = false;
        }
        let frame = v1::ConfigFrame {
            not_leader: None,
            events: std::mem::take(&mut events),
        };
        to.send(Ok(frame)).await.ok()?;
        if page.end.is_none() {
            continue;
        }
        tokio::select! {
            changed = open.changed() => changed.ok()?,
            () = tokio::time::sleep(SAID_EVERY) => {}
            () = to.closed() => return None,
        }
        if open.borrow_and_update().is_none() {
            return Some(());
        }
    }
}
