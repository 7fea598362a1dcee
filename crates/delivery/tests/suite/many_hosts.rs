//! Destinations with more hosts or addresses than are tried: none is hidden by the others, and nothing fails for good while a
//! host was not asked.

use std::net::IpAddr;

use dns::AddressAnswer;
use proto::v1::{RecipientResult, Verdict};

use crate::support::World;
use crate::support::remote::{Action, Remote, say};

/// MX records of `domain` for so many hosts, `mx0` the best. Gives their names.
fn records(world: &World, domain: &str, hosts: usize) -> Vec<String> {
    let names: Vec<_> = (0..hosts).map(|n| format!("mx{n}.{domain}")).collect();
    let records: Vec<_> = (1..).zip(names.iter().map(String::as_str)).collect();
    world.mx(domain, &records);
    names
}

/// All names but the last one are hosts that do this at that verb; the last one is a good host.
async fn good_behind(
    world: &mut World,
    names: &[String],
    verb: &'static str,
    action: Action,
) -> [Remote; 2] {
    let (last, names) = names.split_last().unwrap();
    let script = move |at: &str, _: usize| match at == verb {
        true => action.clone(),
        false => Action::Good,
    };
    let bad = world.remote(&names[0], script).await;
    for name in names {
        let at = AddressAnswer::Found(vec![bad.address.ip()]);
        world.dns.set_addresses(name, at);
    }
    let good = world.remote(last, |_, _| Action::Good).await;
    [bad, good]
}

/// Sends a message that needs 8BITMIME.
async fn send(world: &World, domain: &str) -> RecipientResult {
    let body = "Subject: x\r\n\r\n\u{fc}\r\n";
    let id = world.queue.append_with(domain, &["a"], body, |handout| {
        handout.message.as_mut().unwrap().eight_bit = true;
    });
    world.queue.results(id, 0).await.remove(0)
}

#[tokio::test]
async fn the_many_addresses_of_the_best_host_do_not_hide_the_next_one() {
    let mut world = World::new().await;
    let names = records(&world, "d.test", 2);
    let good = world.remote(&names[1], |_, _| Action::Good).await;
    // Nobody listens there.
    let dark = (1..=8).map(|last| IpAddr::from([127, 0, 1, last]));
    let dark = AddressAnswer::Found(dark.collect());
    world.dns.set_addresses(&names[0], dark);
    let node = world.node(world.config()).await;
    let result = send(&world, "d.test").await;
    assert_eq!(result.verdict(), Verdict::Delivered, "{result:?}");
    assert_eq!(good.taken().len(), 1);
    node.leave().await;
}

#[tokio::test]
async fn names_without_an_address_do_not_hide_a_host_behind_them() {
    let mut world = World::new().await;
    let names = records(&world, "d.test", 9);
    let good = world.remote(&names[8], |_, _| Action::Good).await;
    // Where there are too many to look at all, the mail waits.
    records(&world, "many.test", 100);
    records(&world, "none.test", 9);
    let node = world.node(world.config()).await;
    let result = send(&world, "d.test").await;
    assert_eq!(result.verdict(), Verdict::Delivered, "{result:?}");
    assert_eq!(good.taken().len(), 1);
    for (domain, verdict, enhanced) in [
        ("many.test", Verdict::Deferred, "4.4.4"),
        ("none.test", Verdict::Failed, "5.4.4"),
    ] {
        let result = send(&world, domain).await;
        assert_eq!(result.verdict(), verdict, "{result:?}");
        assert_eq!(result.enhanced, enhanced, "{domain}");
    }
    node.leave().await;
}

/// The ninth of nine hosts would take it, and has no place among those that are tried.
#[tokio::test]
async fn what_the_hosts_that_are_tried_refuse_does_not_fail_while_another_one_was_not() {
    let mut world = World::new().await;
    let mut cases = Vec::new();
    for (domain, verb, line, enhanced) in [
        ("lacks.test", "EHLO", "250 remote.test", "4.6.3"),
        ("greets.test", "CONNECT", "554 no mail here", "4.3.2"),
    ] {
        let names = records(&world, domain, 9);
        let remotes = good_behind(&mut world, &names, verb, say(line)).await;
        cases.push((domain, enhanced, remotes));
    }
    let node = world.node(world.config()).await;
    for (domain, enhanced, [bad, good]) in cases {
        let result = send(&world, domain).await;
        assert_eq!(result.verdict(), Verdict::Deferred, "{result:?}");
        assert_eq!(result.enhanced, enhanced, "{domain}");
        assert_eq!((bad.count("CONNECT"), good.count("CONNECT")), (8, 0));
    }
    node.leave().await;
}

/// Nor while the addresses of one are not known just now.
#[tokio::test]
async fn what_one_host_lacks_another_one_may_have_that_could_not_be_looked_up() {
    let mut world = World::new().await;
    let names = records(&world, "d.test", 2);
    good_behind(&mut world, &names, "EHLO", say("250 remote.test")).await;
    let unknown = AddressAnswer::TempFail("SERVFAIL".into());
    world.dns.set_addresses(&names[1], unknown);
    let node = world.node(world.config()).await;
    let result = send(&world, "d.test").await;
    assert_eq!(result.verdict(), Verdict::Deferred, "{result:?}");
    assert_eq!(result.enhanced, "4.6.3");
    node.leave().await;
}
