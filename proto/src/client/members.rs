//! Nodes of the queue: who there is, who comes, who goes. Asked of the control group's leader, whoever that is by then.

use super::{AdminClient, CallError};
use crate::v1::admin_client::AdminClient as Stub;
use crate::v1::{
    AddNodeRequest, ChangeMembersResponse, MembersRequest, MembersResponse, MoveLeadersRequest,
    NotLeader, RemoveNodeRequest, SetReplicationFactorRequest,
};

impl AdminClient {
    /// All nodes and where every group is.
    pub async fn members(&self) -> Result<MembersResponse, CallError> {
        let ask = |channel| async move { Stub::new(channel).members(MembersRequest {}).await };
        self.client()
            .ask_control(ask, |answer| answer.not_leader.as_ref())
            .await
    }

    /// Lets a node join; of one that is known, changes the address and zone. The text says what happens next.
    pub async fn add_node(&self, add: AddNodeRequest) -> Result<String, CallError> {
        let ask = |channel| {
            let add = add.clone();
            async move { Stub::new(channel).add_node(add).await }
        };
        done(self.client().ask_control(ask, redirect).await?)
    }

    /// Lets a node go: its replicas move first.
    pub async fn remove_node(&self, node: u64) -> Result<String, CallError> {
        let ask = |channel| async move {
            Stub::new(channel)
                .remove_node(RemoveNodeRequest { node })
                .await
        };
        done(self.client().ask_control(ask, redirect).await?)
    }

    /// Lets others lead what a node leads, until its process starts anew or for ten minutes.
    pub async fn move_leaders(&self, node: u64) -> Result<String, CallError> {
        let ask = |channel| async move {
            Stub::new(channel)
                .move_leaders(MoveLeadersRequest { node })
                .await
        };
        done(self.client().ask_control(ask, redirect).await?)
    }

    /// Gives every group so many copies (1, 3 or 5), one by one.
    pub async fn set_replication_factor(&self, factor: u32) -> Result<String, CallError> {
        let ask = |channel| async move {
            let request = SetReplicationFactorRequest {
                replication_factor: factor,
            };
            Stub::new(channel).set_replication_factor(request).await
        };
        done(self.client().ask_control(ask, redirect).await?)
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
