//! What people, programs and the control group ask of a node.

use proto::v1;
use queue::control::Placement;
use tokio::sync::oneshot;

/// A part of a body: a piece of an entry's data.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Raft index of the entry.
    pub index: u64,
    /// Where the log has it.
    pub location: crate::log::Location,
    /// Octets into the entry's data.
    pub offset: u64,
    /// Octets.
    pub length: u64,
}

/// What a person or a program asks of one shard.
pub enum Question {
    /// See `Admin.Summary`.
    Summary(v1::SummaryRequest, oneshot::Sender<v1::SummaryResponse>),
    /// See `Admin.List`.
    List(v1::ListRequest, oneshot::Sender<v1::ListResponse>),
    /// See `Admin.Show`.
    Show(v1::ShowRequest, oneshot::Sender<v1::ShowResponse>),
    /// See `Admin.Act`.
    Act(v1::ActRequest, oneshot::Sender<v1::ActResponse>),
    /// Where a range of a body lies; an error text when there is none.
    Locate(
        v1::FetchRequest,
        oneshot::Sender<Result<Vec<Piece>, String>>,
    ),
}

/// Where one group shall be, as the control group's leader says it to every node.
#[derive(Clone, PartialEq, Debug)]
pub struct GroupOrder {
    /// Which group.
    pub group: u32,
    /// Where.
    pub placement: Placement,
    /// The group's members are exactly these.
    pub settled: bool,
    /// The peers that its log began with.
    pub first: Vec<u64>,
}

/// A Put to the control group's leader.
pub struct PutCall {
    /// What.
    pub put: queue::config::Put,
    /// Once it has taken effect, or why not.
    pub answer: oneshot::Sender<v1::PutConfigResponse>,
}

/// A request about the nodes of the cluster; answered by the control group's leader.
pub enum MembersCall {
    /// See `Admin.Members`.
    List(oneshot::Sender<v1::MembersResponse>),
    /// See `Admin.AddNode`.
    Add(
        v1::AddNodeRequest,
        oneshot::Sender<v1::ChangeMembersResponse>,
    ),
    /// See `Admin.RemoveNode`.
    Remove(u64, oneshot::Sender<v1::ChangeMembersResponse>),
    /// See `Admin.MoveLeaders`.
    MoveLeaders(u64, oneshot::Sender<v1::ChangeMembersResponse>),
    /// See `Admin.SetReplicationFactor`.
    SetFactor(u32, oneshot::Sender<v1::ChangeMembersResponse>),
}
