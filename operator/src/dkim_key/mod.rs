//! Signing keys of RelayDomains: made, shown, looked for in the DNS, used, followed by others, and taken out of use.
//!
//! One look brings all keys of a domain one step on, because what becomes of one depends on the others.
//!
//! ```text
//! lifecycle.rs  the table of phases; pure
//! keymaker.rs   private keys, their Secrets and DkimKeys
//! verify.rs     whether a record is there, as the domain's servers say
//! observe.rs    all keys of a domain as they are now
//! publish.rs    the records as people are told of them
//! status.rs     what is written: of each key, and of the domain
//! ```

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use resource::{DkimMode, KeySource, RelayCluster, RelayDomain};

use crate::conditions::is_true;
use crate::context::Context;
use crate::error::Error;
use crate::names;
use crate::place;

mod keymaker;
mod lifecycle;
mod observe;
mod publish;
mod status;
mod verify;

pub use keymaker::private_key;
pub use verify::Looks;

use keymaker::Order;
use lifecycle::Wish;
use observe::Seen;

/// What waits for another controller, or for a person, looks again so soon.
const SOON: Duration = Duration::from_secs(30);
/// Nothing is to be done with the domain's keys.
const AT_REST: Duration = Duration::from_secs(600);
/// The clock of a test runs at most so much faster: a year in six minutes.
const DIVISOR_MAX: u32 = 86_400;

/// Brings all keys of one domain a step on; says when to look again.
pub async fn bring_on(
    context: &Context,
    domain: &RelayDomain,
    cluster: &RelayCluster,
) -> Result<Duration, Error> {
    let (namespace, name) = place(domain)?;
    let accepted = domain
        .status
        .as_ref()
        .is_some_and(|status| is_true(&status.conditions, "Accepted"));
    if !accepted {
        status::not_accepted(context, domain).await?;
        return Ok(AT_REST);
    }
    let order = Order {
        domain,
        namespace,
        name,
        deletion: cluster.spec.deletion_policy,
    };
    let wish = wish(domain, context.test_clock);
    let now = Timestamp::now();
    let mut seen = observe::observe(context, &order, cluster, &wish, now).await?;
    if make_what_is_missing(context, &order, &wish, &mut seen, now).await? {
        let problems = seen.problems;
        seen = observe::observe(context, &order, cluster, &wish, now).await?;
        seen.problems.extend(problems);
    }
    let keys: Vec<lifecycle::Key> = seen.keys.iter().map(|one| one.key.clone()).collect();
    let next = lifecycle::step(&wish, &keys, now);
    for (one, next) in seen.keys.iter_mut().zip(next) {
        status::move_on(context, &order, one, next, now).await?;
    }
    seen.keys.retain(|one| !one.gone);
    status::write_domain(context, domain, cluster, &wish, &seen, now).await?;
    let looks = seen
        .keys
        .iter()
        .map(|one| lifecycle::look_every(&wish, &one.key, now));
    let waits_for_a_person = (!seen.problems.is_empty()).then_some(SOON);
    let pause = looks.chain(waits_for_a_person).min().unwrap_or(AT_REST);
    Ok(pause)
}

/// What the domain asks for.
fn wish(domain: &RelayDomain, test_clock: bool) -> Wish<'_> {
    let notes = domain.annotations();
    let divisor = notes
        .get(names::TEST_CLOCK_DIVISOR)
        .filter(|_| test_clock)
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    Wish {
        dkim: domain.spec.outbound.as_ref().map(|outbound| &outbound.dkim),
        rotate: notes.get(names::ROTATE).map(String::as_str),
        divisor: u32::clamp(divisor, 1, DIVISOR_MAX),
    }
}

/// Makes, takes over and imports; says whether anything changed.
async fn make_what_is_missing(
    context: &Context,
    order: &Order<'_>,
    wish: &Wish<'_>,
    seen: &mut Seen,
    now: Timestamp,
) -> Result<bool, Error> {
    let Some(dkim) = wish.dkim else {
        return Ok(false);
    };
    let objects: Vec<resource::DkimKey> = seen.keys.iter().map(|one| one.object.clone()).collect();
    if dkim.mode == DkimMode::Managed && keymaker::adopt(context, order, &objects).await? {
        return Ok(true);
    }
    let mut changed = false;
    if dkim.mode == DkimMode::Imported {
        for wanted in &dkim.keys {
            let there = objects
                .iter()
                .find(|key| key.spec.selector == wanted.selector);
            match there.map(|key| (key.spec.source, key.spec.secret_name == wanted.secret_name)) {
                None => {}
                Some((KeySource::Imported, true)) => continue,
                // Another Secret is another key: it begins anew.
                Some((KeySource::Imported, false)) => {
                    status::delete_key(context, order, &wanted.selector).await?;
                }
                Some((KeySource::Generated, _)) => {
                    seen.problems.push(format!(
                        "{}: that selector is one of a made key; choose another",
                        wanted.selector
                    ));
                    continue;
                }
            }
            match observe::imported(context, order.namespace, &wanted.secret_name).await? {
                Ok(public) => {
                    let (selector, secret) = (&wanted.selector, &wanted.secret_name);
                    let made = keymaker::import(context, order, public.algorithm, selector, secret)
                        .await?;
                    changed |= made.is_ok();
                    seen.problems.extend(made.err());
                }
                Err(text) => seen.problems.push(format!(
                    "{}: the Secret {} cannot be used: {text}",
                    wanted.selector, wanted.secret_name
                )),
            }
        }
    }
    let keys: Vec<lifecycle::Key> = seen.keys.iter().map(|one| one.key.clone()).collect();
    for algorithm in lifecycle::to_make(wish, &keys, now) {
        let day = now.strftime("%Y%m%d").to_string();
        let taken = |selector: &str| keys.iter().any(|key| key.selector == selector);
        let selector = resource::dkim::selector(&dkim.selector_prefix, &day, algorithm, taken);
        let made = keymaker::make(context, order, algorithm, &selector).await?;
        changed |= made.is_ok();
        seen.problems.extend(made.err());
    }
    Ok(changed)
}
