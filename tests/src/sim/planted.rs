//! The simulator is worth what it finds: bugs that are planted on purpose, each made by some system in earnest. Those of
//! the Raft driver, the log and the state machine need the feature `planted-bugs`; those of the parts that the
//! simulator itself stands in for (state store, delivery node, a leader's decisions) are planted here.

use crate::sim::profile::Profile;

/// What is wrong in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Planted {
    /// In the order of operations around Raft.
    #[cfg(feature = "planted-bugs")]
    pub group: Option<spool::node::Mutation>,
    /// In the state machine.
    #[cfg(feature = "planted-bugs")]
    pub rows: Option<queue::Mutation>,
    /// In the log.
    #[cfg(feature = "planted-bugs")]
    pub log: Option<spool::log::Mutation>,
    /// The disk loses a write that it reported.
    pub lose_flushed_write: bool,
    /// The state store writes down the applied index without the rows.
    pub applied_apart: bool,
    /// A delivery node that nobody answers sends final dots all the same.
    pub no_fence: bool,
    /// A delivery node takes the answer to any of its OpenSessions.
    pub any_open: bool,
    /// A delivery node forgets a grant as soon as it is settled.
    pub forgets_grants: bool,
    /// A leader hands a grant out when it proposes it.
    pub hand_out_early: bool,
    /// A leader ends lease sessions before their nodes fence themselves.
    pub sessions_short: bool,
    /// A leader's due times and expiries are off by this, ms.
    pub hasty_ms: u64,
    /// A segment is released though a body in it lives.
    pub release_living: bool,
    /// A leader raises the version of the state machine without looking at what the others know.
    pub version_early: bool,
    /// A replica's state machine drifts; only digests of rows are compared.
    pub drift: bool,
    /// A replica is destroyed as soon as the plan is without it, though it may still have to vote.
    pub destroy_early: bool,
    /// A replica that comes back to a node is the peer that it was.
    pub reuse_peers: bool,
    /// The members are not in the batch of the rows.
    pub members_apart: bool,
    /// A snapshot's rows are merged into those that a replica has.
    pub rows_merged: bool,
    /// What became of a snapshot is not always reported.
    pub report_lost: bool,
    /// The rows of a snapshot name the places where its bodies lay at its sender.
    pub places_of_sender: bool,
    /// A start does not complete an installation that a crash came into.
    pub half_installed: bool,
    /// A copy is referred to although its body died while it was copied.
    pub move_blindly: bool,
}

impl Planted {
    /// Plants what is planted in other crates, for this thread.
    pub fn plant(&self) {
        #[cfg(feature = "planted-bugs")]
        {
            queue::plant(self.rows);
            spool::log::plant(self.log);
        }
    }

    /// The thread may run something sound next.
    pub fn clear(&self) {
        Planted::default().plant();
    }
}

/// A bug, where it is looked for, and what it is.
pub struct Bug {
    /// As in the table of tests/README.md.
    pub name: &'static str,
    /// In words.
    pub what: &'static str,
    /// The profile whose seeds are tried.
    pub profile: Profile,
    /// It.
    pub planted: Planted,
}

/// Those that need no feature.
pub fn own_bugs() -> Vec<Bug> {
    let none = Planted::default();
    let bug = |name, what, profile, planted| Bug {
        name,
        what,
        profile,
        planted,
    };
    vec![
        bug(
            "LoseFlushedWrite",
            "the disk loses what it reported",
            Profile::Mixed,
            Planted {
                lose_flushed_write: true,
                ..none
            },
        ),
        bug(
            "AppliedApart",
            "the applied index is not in the batch of the rows",
            Profile::Crashes,
            Planted {
                applied_apart: true,
                ..none
            },
        ),
        bug(
            "NoFence",
            "a delivery node that nobody answers sends final dots all the same",
            Profile::Clocks,
            Planted {
                no_fence: true,
                ..none
            },
        ),
        bug(
            "AnyOpen",
            "a delivery node takes the answer to an OpenSession that is not its last",
            Profile::Network,
            Planted {
                any_open: true,
                ..none
            },
        ),
        bug(
            "ForgetsGrants",
            "a delivery node forgets a grant as soon as it is settled, and a leader that stood still hands it out again",
            Profile::Crashes,
            Planted {
                forgets_grants: true,
                ..none
            },
        ),
        bug(
            "HandOutEarly",
            "a leader, deposed perhaps, hands a grant out before it is committed",
            Profile::Network,
            Planted {
                hand_out_early: true,
                ..none
            },
        ),
        bug(
            "SessionsShort",
            "a leader ends lease sessions before their nodes fence themselves",
            Profile::Network,
            Planted {
                sessions_short: true,
                ..none
            },
        ),
        bug(
            "MoveBlindly",
            "a body that died while the collector copied it rises again",
            Profile::Collect,
            Planted {
                move_blindly: true,
                ..none
            },
        ),
        bug(
            "DestroyEarly",
            "a replica is destroyed before the members are settled without it",
            Profile::Churn,
            Planted {
                destroy_early: true,
                ..none
            },
        ),
        bug(
            "ReusePeers",
            "a replica that comes back to a node is the peer that it was",
            Profile::Churn,
            Planted {
                reuse_peers: true,
                ..none
            },
        ),
        bug(
            "MembersApart",
            "the members are not in the batch of the rows",
            Profile::Churn,
            Planted {
                members_apart: true,
                ..none
            },
        ),
        bug(
            "RowsMerged",
            "a snapshot's rows are merged into those that are there",
            Profile::Churn,
            Planted {
                rows_merged: true,
                ..none
            },
        ),
        bug(
            "ReportLost",
            "what became of a snapshot is not always reported",
            Profile::Churn,
            Planted {
                report_lost: true,
                ..none
            },
        ),
        bug(
            "PlacesOfSender",
            "a snapshot's rows name the places where its bodies lay at the sender",
            Profile::Churn,
            Planted {
                places_of_sender: true,
                ..none
            },
        ),
        bug(
            "HalfInstalled",
            "a crash between a snapshot's rows and the log is not made good at the next start",
            Profile::Churn,
            Planted {
                half_installed: true,
                ..none
            },
        ),
        bug(
            "ReleaseLiving",
            "a segment is recycled though a body in it lives",
            Profile::Disk,
            Planted {
                release_living: true,
                ..none
            },
        ),
        bug(
            "VersionEarly",
            "a leader raises the version before every program knows it",
            Profile::Versions,
            Planted {
                version_early: true,
                ..none
            },
        ),
        bug(
            "Drift",
            "a replica's rows drift from the others'",
            Profile::Versions,
            Planted {
                drift: true,
                ..none
            },
        ),
    ]
}

/// All of them.
#[cfg(feature = "planted-bugs")]
pub fn all_bugs() -> Vec<Bug> {
    use queue::Mutation as Rows;
    use spool::log::Mutation as Log;
    use spool::node::Mutation as Group;
    let none = Planted::default();
    let group = |mutation, what, profile| Bug {
        name: name_of(mutation),
        what,
        profile,
        planted: Planted {
            group: Some(mutation),
            ..none
        },
    };
    let rows = |mutation, what, profile| Bug {
        name: name_of(mutation),
        what,
        profile,
        planted: Planted {
            rows: Some(mutation),
            hasty_ms: match mutation {
                Rows::ExpireEarly | Rows::GrantEarly => 3000,
                _ => 0,
            },
            ..none
        },
    };
    let log = |mutation, what| Bug {
        name: name_of(mutation),
        what,
        profile: Profile::Disk,
        planted: Planted {
            log: Some(mutation),
            ..none
        },
    };
    let mut bugs = vec![
        group(
            Group::FollowerEarly,
            "append responses and votes leave before the fsync",
            Profile::Mixed,
        ),
        group(
            Group::AckLocal,
            "answered when the leader's own disk has it",
            Profile::Mixed,
        ),
        group(
            Group::AckProposed,
            "answered when it is proposed, before any commit",
            Profile::Mixed,
        ),
        group(
            Group::Fifo,
            "proposals are answered in their order",
            Profile::Mixed,
        ),
        group(
            Group::EmptyEarly,
            "a Ready without a write overtakes those before it",
            Profile::Mixed,
        ),
        group(
            Group::NoTermCheck,
            "answered by the index alone",
            Profile::Mixed,
        ),
        group(
            Group::TermVoteNotWaited,
            "a Ready with only a term or vote is not waited for",
            Profile::Crashes,
        ),
        group(
            Group::PromoteEarly,
            "a learner is promoted whatever it lacks",
            Profile::Churn,
        ),
        group(
            Group::StayJoint,
            "only the leader that began a joint configuration ends it",
            Profile::Churn,
        ),
        group(
            Group::RemoveFirst,
            "the old replica is demoted before the new one votes",
            Profile::Churn,
        ),
        group(
            Group::TruncatesPast,
            "the log does not wait for a snapshot that is on its way",
            Profile::Churn,
        ),
        rows(
            Rows::ForgetEarly,
            "a finished message's id is forgotten within seconds",
            Profile::Clients,
        ),
        rows(
            Rows::ExpireEarly,
            "an item expires before its time",
            Profile::Mixed,
        ),
        rows(
            Rows::GrantEarly,
            "an item is granted before it is due",
            Profile::Mixed,
        ),
        rows(
            Rows::StaleCounts,
            "a failure under an old token counts",
            Profile::Clients,
        ),
        rows(
            Rows::LateSuccessRefused,
            "a success under an old token does not count",
            Profile::Clients,
        ),
        rows(
            Rows::SessionsLeaveItems,
            "a lease session ends and its items stay leased",
            Profile::Clients,
        ),
        rows(
            Rows::OwnOpinion,
            "apply depends on what else its replica did",
            Profile::Calm,
        ),
        rows(
            Rows::UploadsStay,
            "an upload that nobody ends is kept for ever",
            Profile::Clients,
        ),
        log(Log::NoSync, "a write is reported without its fdatasync"),
        log(
            Log::NoDirSync,
            "a new segment's directory entry is not synced",
        ),
        log(
            Log::TornTaken,
            "a last batch whose payloads are torn counts",
        ),
    ];
    bugs.extend(own_bugs());
    bugs
}

#[cfg(feature = "planted-bugs")]
fn name_of(mutation: impl std::fmt::Debug) -> &'static str {
    // A handful for each run of the program.
    Box::leak(format!("{mutation:?}").into_boxed_str())
}
