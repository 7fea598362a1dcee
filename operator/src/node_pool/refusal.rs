//! What the API server does not take: a pod with a toleration that is none, more than a quota has room for, what a policy forbids.
//! Trying again changes nothing of it, so people hear it where they look: in the object's status, and by an event.

use kube::Resource;
use kube::core::Status;
use resource::Condition;

use crate::conditions::{Conditions, Reason};
use crate::context::Context;
use crate::error::Error;

/// A longer message, a list of a hundred faults perhaps, helps nobody; the API server takes 32,768 characters of a condition.
const TEXT_OCTETS_MAX: usize = 4096;
/// How a message begins by which server-side apply refuses a field that it does not know or that has another type: with 500
/// (kubernetes#122480), as if the fault were the server's.
const NO_SUCH_FIELD: &str = "failed to create typed patch object";

/// A refusal, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whether what is declared is wrong, or is not allowed.
    pub reason: Reason,
    /// What the API server said.
    pub text: String,
}

impl Refusal {
    /// `None`: it is another error, which may pass by itself.
    pub fn of(error: &Error) -> Option<Refusal> {
        let (reason, text) = match error {
            Error::Api(kube::Error::Api(status)) => {
                let text = format!("the API server refuses it: {}", status.message);
                (reason(status)?, text)
            }
            // The only part of a pool's objects that is not ours comes from a template.
            Error::Object(problem) => {
                let text = format!("no pod can be made of what template says: {problem}");
                (Reason::Invalid, text)
            }
            _ => return None,
        };
        let text = cut(&text, TEXT_OCTETS_MAX).to_owned();
        Some(Refusal { reason, text })
    }

    /// By an event, unless one of the conditions that stand there says the same already.
    pub async fn warn<K>(&self, context: &Context, object: &K, before: &[Condition])
    where
        K: Resource<DynamicType = ()>,
    {
        if before.iter().any(|old| old.message == self.text) {
            return;
        }
        context
            .warn(object, &self.reason.text(), self.text.clone())
            .await;
    }
}

/// What is wrong with the declaration (422), and what somebody may still allow (403). Anything else is no refusal.
fn reason(status: &Status) -> Option<Reason> {
    match status.code {
        400 | 422 => Some(Reason::Invalid),
        403 => Some(Reason::Rejected),
        500 if status.message.starts_with(NO_SUCH_FIELD) => Some(Reason::Invalid),
        _ => None,
    }
}

/// At most so many octets of a text.
fn cut(text: &str, octets: usize) -> &str {
    let mut end = text.len().min(octets);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Tells people of a refusal, and gives the error back: after the status is written it makes the controller pause, longer each time.
/// Any other failure is returned as one.
pub async fn tell<K>(
    context: &Context,
    object: &K,
    before: &[Condition],
    outcome: Result<(), Error>,
    conditions: &mut Conditions<'_>,
) -> Result<Option<Error>, Error>
where
    K: Resource<DynamicType = ()>,
{
    let Err(error) = outcome else {
        return Ok(None);
    };
    let Some(refusal) = Refusal::of(&error) else {
        return Err(error);
    };
    refusal.warn(context, object, before).await;
    // What runs, runs on; but it is not what is declared.
    for type_ in ["Accepted", "Ready"] {
        conditions.set(type_, false, refusal.reason, refusal.text.clone());
    }
    Ok(Some(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16, message: &str) -> Error {
        let status = Status::failure(message, "").with_code(code);
        Error::Api(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn people_are_told_of_what_does_not_pass_by_itself_in_the_api_servers_words() {
        let said = |code, message| Refusal::of(&answered(code, message));
        let invalid = said(422, "tolerations[0].operator: Invalid value").expect("a refusal");
        assert_eq!(invalid.reason, Reason::Invalid);
        assert!(
            invalid
                .text
                .ends_with("tolerations[0].operator: Invalid value")
        );
        let quota = said(403, "exceeded quota: mail").expect("a refusal");
        assert_eq!(quota.reason, Reason::Rejected);
        let unknown = "failed to create typed patch object (mail/front-edge; apps/v1, Kind=Deployment): \
                       .spec.template.spec.tolerations[0].kee: field not declared in schema";
        let unknown = said(500, unknown).expect("a refusal");
        assert_eq!(unknown.reason, Reason::Invalid);
        let template = serde_json::from_str::<u8>("{}").expect_err("no number");
        assert!(Refusal::of(&Error::Object(template)).is_some());
        for (code, message) in [(500, "etcd is away"), (409, "conflict"), (429, "later")] {
            assert_eq!(said(code, message), None, "{code}");
        }
    }

    #[test]
    fn a_long_message_is_cut_between_letters() {
        assert_eq!(cut("ready", 8), "ready");
        assert_eq!(cut("grün", 3), "gr");
        let long = Refusal::of(&answered(422, &"x".repeat(40_000))).expect("a refusal");
        assert_eq!(long.text.len(), TEXT_OCTETS_MAX);
    }
}
