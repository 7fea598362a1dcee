//! Conditions of an object's status (`metav1.Condition`): what is so, since when, why, and what to do.

use jiff::Timestamp;
use resource::{Condition, ConditionStatus};

/// Why a condition is as it is: one word for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is as declared.
    AsDeclared,
    /// Nobody looked yet.
    NotLookedAt,
    /// The RelayCluster that is named is not there.
    ClusterNotFound,
    /// The RelayCluster has no QueuePool.
    QueuePoolNotFound,
    /// There is an older QueuePool of the same cluster.
    QueuePoolConflict,
    /// `spec.paused` is set.
    Paused,
    /// The cluster's CA is there and not about to end.
    Valid,
    /// The cluster's CA ends soon.
    EndsSoon,
    /// The cluster's CA has ended.
    Ended,
    /// Clients' addresses are not known.
    SourceAddressHidden,
    /// A certificate for clients is not there.
    CertificateMissing,
    /// Not all pods are ready.
    PodsNotReady,
    /// A new image has not reached all nodes that get it before.
    NotItsTurn,
    /// Nothing is to be done.
    Settled,
    /// Something is being done.
    Working,
    /// All groups have a leader and a majority.
    EveryGroupHasALeader,
    /// Some groups have no leader.
    GroupsWithoutLeader,
    /// The queue does not answer.
    QueueUnreachable,
    /// The queue does not let its nodes be changed so.
    RefusedByQueue,
    /// Nothing stands in the way.
    NotBlocked,
    /// Nodes did not say yet that they have it.
    NotAcknowledged,
    /// A node cannot use it, or the API server does not admit what it takes.
    Rejected,
    /// Another RelayDomain has claimed the domain before.
    DomainConflict,
    /// The cluster does not admit domains of this namespace.
    NamespaceNotAllowed,
    /// The domain's owner did not agree.
    OwnershipNotVerified,
    /// A network lies outside of those that the cluster allows.
    NetworkNotAllowed,
    /// What is declared cannot be used.
    Invalid,
    /// The cluster does not relay for the domain, so nothing else is done for it.
    NotAccepted,
    /// Nothing is to be signed.
    NothingToSign,
    /// A key signs.
    Signing,
    /// No key signs.
    NoKeySigns,
    /// The Secret with the key is not there, or holds none.
    KeyUnreadable,
    /// The record is there.
    RecordSeen,
    /// The record is not there, or another one is.
    RecordMissing,
    /// Not everybody who counts answered.
    NoAnswer,
    /// Records are not looked for.
    NotChecked,
    /// A key is where its phase says.
    InPhase,
}

impl Reason {
    /// As it stands in the status.
    pub fn text(self) -> String {
        format!("{self:?}")
    }
}

/// The conditions of one object, written anew. A condition that does not change keeps its time, so that a status that says
/// the same is the same.
pub struct Conditions<'a> {
    before: &'a [Condition],
    generation: Option<i64>,
    now: Timestamp,
    after: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Those of an object whose spec is of this generation; `before` are those that stand there.
    pub fn new(before: &'a [Condition], generation: Option<i64>, now: Timestamp) -> Conditions<'a> {
        Conditions {
            before,
            generation,
            now,
            after: Vec::new(),
        }
    }

    /// States one condition.
    pub fn set(&mut self, type_: &str, so: bool, reason: Reason, message: impl Into<String>) {
        let status = match so {
            true => ConditionStatus::True,
            false => ConditionStatus::False,
        };
        self.put(type_, status, reason, message.into());
    }

    /// States that one is not known now.
    pub fn unknown(&mut self, type_: &str, reason: Reason, message: impl Into<String>) {
        self.put(type_, ConditionStatus::Unknown, reason, message.into());
    }

    fn put(&mut self, type_: &str, status: ConditionStatus, reason: Reason, message: String) {
        let before = self.before.iter().find(|old| old.type_ == type_);
        let since = match before {
            Some(old) if old.status == status => old.last_transition_time.clone(),
            // The API's times have whole seconds.
            _ => stamp(self.now),
        };
        self.after.retain(|condition| condition.type_ != type_);
        self.after.push(Condition {
            type_: type_.into(),
            status,
            observed_generation: self.generation,
            last_transition_time: since,
            reason: reason.text(),
            message,
        });
    }

    /// True when it was stated and is so.
    pub fn is(&self, type_: &str) -> bool {
        let mut stated = self.after.iter();
        stated
            .any(|condition| condition.type_ == type_ && condition.status == ConditionStatus::True)
    }

    /// All of them. A known one that was not stated stays as it was, or is Unknown.
    pub fn finish(mut self, known: &[&str]) -> Vec<Condition> {
        for type_ in known {
            if self.after.iter().any(|condition| condition.type_ == *type_) {
                continue;
            }
            match self.before.iter().find(|old| old.type_ == *type_) {
                Some(old) => self.after.push(old.clone()),
                None => self.unknown(type_, Reason::NotLookedAt, "not looked at yet"),
            }
        }
        self.after.sort_by(|a, b| a.type_.cmp(&b.type_));
        self.after
    }
}

/// A time as the API has it: whole seconds.
pub fn stamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A condition of a type that stands there.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// A condition stands there and is so.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == ConditionStatus::True)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let mut first = Conditions::new(&[], Some(1), at(10));
        first.set("Ready", false, Reason::PodsNotReady, "0 of 2");
        let first = first.finish(&["Ready", "Accepted"]);
        assert_eq!(first.len(), 2);
        assert_eq!(first[0].status, ConditionStatus::Unknown);

        let mut second = Conditions::new(&first, Some(2), at(20));
        second.set("Ready", false, Reason::PodsNotReady, "1 of 2");
        let second = second.finish(&["Ready", "Accepted"]);
        assert_eq!(second[1].last_transition_time, "1970-01-01T00:00:10Z");
        assert_eq!(second[1].message, "1 of 2");
        assert_eq!(second[1].observed_generation, Some(2));

        let mut third = Conditions::new(&second, Some(2), at(30));
        third.set("Ready", true, Reason::AsDeclared, "2 of 2");
        assert!(third.is("Ready"));
        let third = third.finish(&[]);
        assert_eq!(third[0].last_transition_time, "1970-01-01T00:00:30Z");
    }
}
