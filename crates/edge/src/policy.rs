//! Who may relay what: the relay decision of one RCPT, as a pure function.

use std::net::IpAddr;
use std::sync::Arc;

use mail::{Destination, Reply};
use resource::{Catalog, Principal};

/// Tenant and class of mail that is nobody's but the relay's own.
const DEFAULT: &str = "default";

/// On whose account a message is taken. The first accepted RCPT of a transaction sets it for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Who answers for the mail.
    pub tenant: Arc<str>,
    /// What delivery pools choose by.
    pub class: Arc<str>,
    /// The principal whose mail it is; `None`: mail of anybody for an inbound domain. Only a principal's mail is signed.
    pub principal: Option<Arc<str>>,
}

/// One RCPT, with what the transaction knows so far.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The client's own address; `None`: it is hidden behind somebody else's, and the client is no principal.
    pub client: Option<IpAddr>,
    /// The domain of MAIL FROM (lower-case A-label, or a literal with its brackets); `None`: the null path.
    pub sender: Option<&'a str>,
    /// Where the recipient's mail goes.
    pub recipient: &'a Destination,
    /// That is where our own postmaster's mail goes.
    pub postmaster: bool,
    /// What an earlier RCPT of this transaction set.
    pub admitted: Option<&'a Admission>,
}

/// Decides one RCPT; `None` as catalog: no configuration has come yet.
///
/// First match: (1) the recipient's domain is inbound, or its address was declared for our postmaster, who must be reachable
/// by anybody (RFC 5321 section 4.5.1); (2) the client is a principal and MAIL FROM is in one of its
/// sender domains, or is null and it has at least one; (3) 550 5.7.1.
///
/// # Diagnostics
/// Every refusal is policy, none is an error of ours: 421 4.3.2 while there is no configuration, 550 5.7.1 for mail that is
/// nobody's, 452 4.5.3 for a recipient of another tenant or class (RFC 5321 section 4.5.3.1.10 makes the client send it again).
pub fn decide(catalog: Option<&Catalog>, question: Question<'_>) -> Result<Admission, Reply> {
    let Some(catalog) = catalog else {
        return Err(Reply::shutting_down().with_text("no configuration yet, try again"));
    };
    let client = question.client;
    let principal = client.and_then(|client| catalog.outbound_for(client, question.sender));
    let admission = match catalog.inbound(question.recipient.as_str()) {
        Some(inbound) => Admission {
            tenant: inbound.tenant.clone(),
            class: inbound.class.clone(),
            principal: principal
                .filter(|principal| principal.tenant == inbound.tenant)
                .map(|principal| principal.name.clone()),
        },
        None if question.postmaster => Admission {
            tenant: DEFAULT.into(),
            class: DEFAULT.into(),
            principal: None,
        },
        None => match principal {
            Some(principal) => from_principal(principal),
            None => return Err(Reply::relay_denied()),
        },
    };
    match question.admitted {
        Some(first) if first.tenant != admission.tenant || first.class != admission.class => {
            Err(Reply::other_tenant())
        }
        // The first RCPT speaks for the transaction, also in the log.
        Some(first) => Ok(first.clone()),
        None => Ok(admission),
    }
}

fn from_principal(principal: &Principal) -> Admission {
    Admission {
        tenant: principal.tenant.clone(),
        class: principal.class.clone(),
        principal: Some(principal.name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECLARED: &str = "\
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: shop, namespace: team-a}
spec: {domain: shop.example, inbound: {}, outbound: {networks: [10.0.0.0/8]}}
---
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: news, namespace: team-a}
spec: {domain: news.example, outbound: {class: bulk, networks: [10.0.0.0/8]}}
---
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: bank, namespace: team-b}
spec: {domain: bank.example, inbound: {}}
";

    fn catalog() -> Catalog {
        resource::load_dir(vec![("t.yaml".into(), DECLARED.into())]).expect("a good document")
    }

    /// Answers each (client, sender, recipient) of one transaction after the other.
    fn transaction(client: &str, sender: Option<&str>, recipients: &[&str]) -> Vec<String> {
        let catalog = catalog();
        let mut admitted = None;
        let mut answers = Vec::new();
        for recipient in recipients {
            let question = Question {
                client: Some(client.parse().unwrap()),
                sender,
                recipient: &Destination::from_canonical(recipient),
                postmaster: false,
                admitted: admitted.as_ref(),
            };
            answers.push(match decide(Some(&catalog), question) {
                Ok(admission) => {
                    let text = format!("{}/{}", admission.tenant, admission.class);
                    admitted = Some(admission);
                    text
                }
                Err(reply) => format!(
                    "{} {}",
                    reply.code,
                    reply.enhanced.expect("the table gives one")
                ),
            });
        }
        answers
    }

    #[test]
    fn the_relay_decision() {
        let (inside, outside) = ("10.1.2.3", "192.0.2.1");
        for (client, sender, recipient, answer) in [
            // (1) inbound, whoever sends
            (
                outside,
                Some("else.example"),
                "shop.example",
                "team-a/default",
            ),
            (outside, None, "bank.example", "team-b/default"),
            (
                inside,
                Some("news.example"),
                "bank.example",
                "team-b/default",
            ),
            // (2) a principal in its sender domain
            (
                inside,
                Some("shop.example"),
                "else.example",
                "team-a/default",
            ),
            (inside, Some("news.example"), "else.example", "team-a/bulk"),
            (inside, None, "else.example", "team-a/bulk"),
            (
                inside,
                Some("shop.example"),
                "[192.0.2.9]",
                "team-a/default",
            ),
            (
                "::ffff:10.1.2.3",
                Some("shop.example"),
                "else.example",
                "team-a/default",
            ),
            // (3) nobody's
            (inside, Some("else.example"), "else.example", "550 5.7.1"),
            (inside, Some("bank.example"), "else.example", "550 5.7.1"),
            (
                inside,
                Some("sub.shop.example"),
                "else.example",
                "550 5.7.1",
            ),
            (outside, Some("shop.example"), "else.example", "550 5.7.1"),
            (outside, None, "else.example", "550 5.7.1"),
            (
                outside,
                Some("else.example"),
                "sub.shop.example",
                "550 5.7.1",
            ),
            (outside, Some("shop.example"), "[10.1.2.3]", "550 5.7.1"),
        ] {
            assert_eq!(
                transaction(client, sender, &[recipient]),
                [answer],
                "{client} {sender:?} {recipient}"
            );
        }
    }

    #[test]
    fn a_principal_stays_one_when_it_writes_to_its_own_inbound_domain_and_nobody_else_becomes_one()
    {
        let catalog = catalog();
        let principal = |client: Option<&str>, sender: &str, recipient: &str| {
            let question = Question {
                client: client.map(|client| client.parse().unwrap()),
                sender: Some(sender),
                recipient: &Destination::from_canonical(recipient),
                postmaster: false,
                admitted: None,
            };
            decide(Some(&catalog), question).map(|admission| admission.principal.is_some())
        };
        let (inside, outside) = (Some("10.1.2.3"), Some("192.0.2.1"));
        for (client, sender, recipient, answer) in [
            (inside, "shop.example", "shop.example", Some(true)),
            (inside, "shop.example", "else.example", Some(true)),
            (outside, "shop.example", "shop.example", Some(false)),
            // Of another tenant.
            (inside, "shop.example", "bank.example", Some(false)),
            (inside, "else.example", "shop.example", Some(false)),
            // Hidden behind a load balancer's address.
            (None, "shop.example", "shop.example", Some(false)),
            (None, "shop.example", "else.example", None),
        ] {
            assert_eq!(
                principal(client, sender, recipient).ok(),
                answer,
                "{client:?} {sender} {recipient}"
            );
        }
    }

    #[test]
    fn the_postmaster_is_reachable_by_anybody_wherever_the_mail_goes() {
        let catalog = catalog();
        let tenant = |recipient: &str| {
            let question = Question {
                client: Some("192.0.2.1".parse().unwrap()),
                sender: None,
                recipient: &Destination::from_canonical(recipient),
                postmaster: true,
                admitted: None,
            };
            decide(Some(&catalog), question).unwrap().tenant
        };
        assert_eq!(&*tenant("bank.example"), "team-b");
        assert_eq!(&*tenant("else.example"), "default");
    }

    #[test]
    fn a_recipient_of_another_tenant_or_class_comes_again_in_its_own_transaction() {
        let answers = transaction(
            "10.1.2.3",
            Some("shop.example"),
            &["else.example", "bank.example", "shop.example"],
        );
        assert_eq!(answers, ["team-a/default", "452 4.5.3", "team-a/default"]);
        let answers = transaction(
            "10.1.2.3",
            Some("news.example"),
            &["else.example", "shop.example"],
        );
        assert_eq!(answers, ["team-a/bulk", "452 4.5.3"]);
        let answers = transaction("192.0.2.1", None, &["else.example", "bank.example"]);
        assert_eq!(
            answers,
            ["550 5.7.1", "team-b/default"],
            "a refused recipient sets nothing"
        );
    }

    #[test]
    fn nothing_declared_relays_nothing_and_no_configuration_defers() {
        let recipient = Destination::from_canonical("shop.example");
        let question = Question {
            client: Some("127.0.0.1".parse().unwrap()),
            sender: None,
            recipient: &recipient,
            postmaster: false,
            admitted: None,
        };
        assert_eq!(
            decide(Some(&Catalog::default()), question)
                .unwrap_err()
                .code,
            550
        );
        let reply = decide(None, question).unwrap_err();
        assert_eq!(
            (reply.code, reply.enhanced.unwrap().to_string().as_str()),
            (421, "4.3.2")
        );
    }
}
