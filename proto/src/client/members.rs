//! Nodes of the queue: who there is, who comes, who goes. Asked of the control group's leader, whoever that is by then.

use tonic::transport::Channel;

use super::{ASK_GIVE_UP, AdminClient, Asked, CallError, RETRY_PAUSE};
use crate::v1::admin_client::AdminClient as Stub;
use crate::v1::{
    AddNodeRequest, ChangeMembersResponse, MembersRequest, MembersResponse, MoveLeadersRequest,
    NotLeader, RemoveNodeRequest,
};

impl AdminClient {
    /// All nodes and where every group is.
    pub async fn members(&self) -> Result<MembersResponse, CallError> {
        let ask = |channel| async move { Stub::new(channel).members(MembersRequest {}).await };
        self.ask_control(ask, |answer| answer.not_leader.as_ref())
            .await
    }

    /// Lets a node join; of one that is known, changes the address and zone. The text says what happens next.
    pub async fn add_node(&self, add: AddNodeRequest) -> Result<String, CallError> {
        let ask = |channel| {
            let add = add.clone();
            async move { Stub::new(channel).add_node(add).await }
        };
        done(self.ask_control(ask, redirect).await?)
    }

    /// Lets a node go: its replicas move first.
    pub async fn remove_node(&self, node: u64) -> Result<String, CallError> {
        let ask = |channel| async move {
            Stub::new(channel)
                .remove_node(RemoveNodeRequest { node })
                .await
        };
        done(self.ask_control(ask, redirect).await?)
    }

    /// Lets others lead what a node leads, until its process starts anew or for ten minutes.
    pub async fn move_leaders(&self, node: u64) -> Result<String, CallError> {
        let ask = |channel| async move {
            Stub::new(channel)
                .move_leaders(MoveLeadersRequest { node })
                .await
        };
        done(self.ask_control(ask, redirect).await?)
    }

    /// Every one of these may be asked twice, so an answer that was lost is no problem.
    async fn ask_control<R, F>(
        &self,
        call: impl Fn(Channel) -> F,
        redirect: impl Fn(&R) -> Option<&NotLeader>,
    ) -> Result<R, CallError>
    where
        F: Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    {
        let client = self.client();
        let until = tokio::time::Instant::now() + ASK_GIVE_UP;
        let mut hint: Option<String> = None;
        let mut last = String::new();
        let mut turn = 0_usize;
        while tokio::time::Instant::now() < until {
            let address = hint.take().unwrap_or_else(|| {
                let view = client.view();
                let known = view.leader_of_group(0).filter(|_| turn.is_multiple_of(2));
                known.map(str::to_owned).unwrap_or_else(|| {
                    let all = view.addresses(&client.inner.nodes.config.endpoints);
                    all.get(turn % all.len().max(1))
                        .cloned()
                        .unwrap_or_default()
                })
            });
            turn += 1;
            match client.ask_node(&address, &call).await {
                Ok(answer) => match redirect(&answer) {
                    None => return Ok(answer),
                    Some(not_leader) => {
                        last = format!("{address} does not lead the control group");
                        let to = &not_leader.leader_address;
                        hint = (!to.is_empty()).then(|| to.clone());
                    }
                },
                Err(Asked::Never(error)) => return Err(error),
                Err(Asked::Again(why)) => last = why,
            }
            if turn > 1 {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        Err(CallError::GaveUp {
            seconds: ASK_GIVE_UP.as_secs(),
            last,
        })
    }
}

fn redirect(answer: &ChangeMembersResponse) -> Option<&NotLeader> {
    answer.not_leader.as_ref()
}

fn done(answer: ChangeMembersResponse) -> Result<String, CallError> {
    match answer.refusal.is_empty() {
        true => Ok(answer.done),
        false => Err(CallError::Declined {
            text: answer.refusal,
        }),
    }
}
