//! The Queue and Admin services: rights first, then the streams and questions.

use proto::v1;
use proto::v1::admin_server::Admin;
use proto::v1::queue_server::Queue;
use proto::{Right, require};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, AppendAnswers, Services};
use crate::event::{MembersCall, Question, RaftEvent, StateEvent};

/// The largest range that one Fetch gives, octets.
const FETCH_BYTES_MAX: u32 = 1 << 20;

/// An administration request that no thread answers within this time: the node is overloaded or stopping.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

#[tonic::async_trait]
impl Queue for Services {
    type AppendStream = AppendAnswers;
    type LeaseStream = Answers<v1::LeaseEvents>;
    type SettleStream = Answers<v1::SettleAnswers>;
    type WatchTopologyStream = Answers<v1::Topology>;

    async fn append(
        &self,
        request: Request<Streaming<v1::AppendFrame>>,
    ) -> Result<Response<AppendAnswers>, Status> {
        require(&request, Right::Append)?;
        self.check_running()?;
        Ok(Response::new(self.append_stream(request.into_inner())))
    }

    async fn lease(
        &self,
        request: Request<Streaming<v1::LeaseFrame>>,
    ) -> Result<Response<Self::LeaseStream>, Status> {
        require(&request, Right::Lease)?;
        self.check_running()?;
        Ok(Response::new(self.lease_stream(request.into_inner())))
    }

    async fn settle(
        &self,
        request: Request<Streaming<v1::SettleFrame>>,
    ) -> Result<Response<Self::SettleStream>, Status> {
        require(&request, Right::Settle)?;
        self.check_running()?;
        Ok(Response::new(self.settle_stream(request.into_inner())))
    }

    async fn fetch(
        &self,
        request: Request<v1::FetchRequest>,
    ) -> Result<Response<v1::FetchResponse>, Status> {
        require(&request, Right::Fetch)?;
        let mut request = request.into_inner();
        request.length = request.length.min(FETCH_BYTES_MAX);
        let group = request.shard + 1;
        let pieces = match self.ask(|to| Question::Locate(request.clone(), to)).await? {
            Ok(pieces) => pieces,
            Err(leader_address) => {
                let not_leader = Some(v1::NotLeader { leader_address });
                return Ok(Response::new(v1::FetchResponse {
                    not_leader,
                    ..Default::default()
                }));
            }
        };
        // No data: the message is not in the queue any more, or the range is beyond its body.
        let data = self.read(group, pieces).await.map_err(Status::data_loss)?;
        Ok(Response::new(v1::FetchResponse {
            data,
            not_leader: None,
        }))
    }

    async fn watch_topology(
        &self,
        request: Request<v1::WatchTopologyRequest>,
    ) -> Result<Response<Self::WatchTopologyStream>, Status> {
        require(&request, Right::WatchTopology)?;
        let mut watch = self.directory.watch();
        let (to, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let topology = watch.borrow_and_update().clone();
                if to.send(Ok(topology)).await.is_err() || watch.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(
            stream,
        )))
    }
}

#[tonic::async_trait]
impl Admin for Services {
    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::NodeStatus>, Status> {
        require(&request, Right::Admin)?;
        let (to, groups) = oneshot::channel();
        let _ = self.mail.raft.send(RaftEvent::Status(to));
        let groups = tokio::time::timeout(ANSWER_TIMEOUT, groups).await;
        // A node that has stopped still says why.
        let groups = groups.ok().and_then(Result::ok).unwrap_or_default();
        let topology = self.directory.watch().borrow().clone();
        let (disk, space) = (self.health.disk(), self.health.space());
        Ok(Response::new(v1::NodeStatus {
            cluster_id: topology.cluster_id,
            node: self.node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            shards: self.shards,
            groups,
            nodes: topology.nodes,
            disk: Some(v1::DiskStatus {
                limit_bytes: disk.limit,
                used_bytes: disk.used,
                free_segments: disk.free_segments,
                full: disk.full,
                stopped: self.health.stopped().unwrap_or_default(),
                live_bytes: space.live,
                dead_bytes: space.dead,
                collecting_bytes: space.collecting,
            }),
        }))
    }

    async fn summary(
        &self,
        request: Request<v1::SummaryRequest>,
    ) -> Result<Response<v1::SummaryResponse>, Status> {
        require(&request, Right::Admin)?;
        self.ask(|to| Question::Summary(request.into_inner(), to))
            .await
            .map(Response::new)
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        require(&request, Right::Admin)?;
        self.ask(|to| Question::List(request.into_inner(), to))
            .await
            .map(Response::new)
    }

    async fn show(
        &self,
        request: Request<v1::ShowRequest>,
    ) -> Result<Response<v1::ShowResponse>, Status> {
        require(&request, Right::Admin)?;
        self.ask(|to| Question::Show(request.into_inner(), to))
            .await
            .map(Response::new)
    }

    async fn act(
        &self,
        request: Request<v1::ActRequest>,
    ) -> Result<Response<v1::ActResponse>, Status> {
        require(&request, Right::Admin)?;
        self.ask(|to| Question::Act(request.into_inner(), to))
            .await
            .map(Response::new)
    }

    async fn members(
        &self,
        request: Request<v1::MembersRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        require(&request, Right::Admin)?;
        self.members_call(MembersCall::List).await
    }

    async fn add_node(
        &self,
        request: Request<v1::AddNodeRequest>,
    ) -> Result<Response<v1::ChangeMembersResponse>, Status> {
        require(&request, Right::Admin)?;
        let request = request.into_inner();
        proto::tls::endpoint(&request.peer_address).map_err(Status::invalid_argument)?;
        self.members_call(|to| MembersCall::Add(request, to)).await
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::ChangeMembersResponse>, Status> {
        require(&request, Right::Admin)?;
        let node = request.into_inner().node;
        self.members_call(|to| MembersCall::Remove(node, to)).await
    }

    async fn move_leaders(
        &self,
        request: Request<v1::MoveLeadersRequest>,
    ) -> Result<Response<v1::ChangeMembersResponse>, Status> {
        require(&request, Right::Admin)?;
        let node = request.into_inner().node;
        self.members_call(|to| MembersCall::MoveLeaders(node, to))
            .await
    }

    async fn set_replication_factor(
        &self,
        request: Request<v1::SetReplicationFactorRequest>,
    ) -> Result<Response<v1::ChangeMembersResponse>, Status> {
        require(&request, Right::Admin)?;
        let factor = request.into_inner().replication_factor;
        self.members_call(|to| MembersCall::SetFactor(factor, to))
            .await
    }
}

impl Services {
    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Result<T, Status> {
        self.check_running()?;
        let (to, answer) = oneshot::channel();
        let question = question(to);
        if question.shard() >= self.shards {
            let text = format!(
                "shard {} does not exist; this cluster has {}",
                question.shard(),
                self.shards
            );
            return Err(Status::invalid_argument(text));
        }
        let _ = self.mail.state.send(StateEvent::Ask(question));
        answered(answer).await
    }

    async fn members_call<T>(
        &self,
        call: impl FnOnce(oneshot::Sender<T>) -> MembersCall,
    ) -> Result<Response<T>, Status> {
        self.check_running()?;
        let (to, answer) = oneshot::channel();
        let _ = self.mail.state.send(StateEvent::Members(call(to)));
        answered(answer).await.map(Response::new)
    }
}

pub(super) async fn answered<T>(answer: oneshot::Receiver<T>) -> Result<T, Status> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(Status::unavailable("this node is stopping; ask again")),
        Err(_) => Err(Status::deadline_exceeded(
            "this node did not answer within 10 s; look at its load and disk",
        )),
    }
}
