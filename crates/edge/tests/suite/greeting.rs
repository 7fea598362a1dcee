//! What clients meet before they may say anything, and the one mailbox that every server has.

use std::time::Duration;

use crate::world::{Client, World};

const LONG: Duration = Duration::from_secs(120);

#[tokio::test]
async fn who_talks_before_the_greeting_is_refused_and_who_waits_is_greeted() {
    let pause = Duration::from_millis(700);
    let world = World::with(|config| config.settings.greeting_pause = pause, LONG).await;
    let mut early = Client::connect(world.address).await;
    early.send(b"EHLO spam.example\r\n").await;
    let reply = early.reply().await;
    assert!(reply.starts_with("554 5.5.0"), "{reply}");
    assert_eq!(early.reply().await, "", "and the connection ends");
    let began = std::time::Instant::now();
    let mut patient = Client::connect(world.address).await;
    assert!(patient.reply().await.starts_with("220 "));
    assert!(began.elapsed() >= pause);
    let reply = patient.ask("EHLO [127.0.0.1]").await;
    assert!(reply.starts_with("250"), "{reply}");
}

#[tokio::test]
async fn without_a_pause_nobody_waits_and_nobody_is_refused_for_talking() {
    let world = World::new().await;
    let mut early = Client::connect(world.address).await;
    early.send(b"EHLO [127.0.0.1]\r\n").await;
    assert!(early.reply().await.starts_with("220 "));
    assert!(early.reply().await.starts_with("250"));
}

#[tokio::test]
async fn the_postmaster_is_reachable_by_anybody_once_it_is_declared() {
    let declare = |config: &mut edge::Config| {
        config.settings.postmaster = Some("ops@else.example".into());
    };
    let world = World::with(declare, LONG).await;
    let mut client = world.client().await;
    for to in ["Postmaster", "postMASTER@mx.test"] {
        let reply = client.mail("x@spam.example", &[to], b"a: b\r\n\r\n").await;
        assert!(reply.starts_with("250 "), "{to}: {reply}");
    }
    for (facts, _) in world.store.messages() {
        assert_eq!(facts.items[0].destination, "else.example");
        assert_eq!(facts.items[0].recipients[0].address, "ops@else.example");
        assert_eq!(facts.tenant, "default");
    }
    // Nobody else is.
    assert!(
        client
            .ask("MAIL FROM:<x@spam.example>")
            .await
            .starts_with("250 ")
    );
    let reply = client.ask("RCPT TO:<ops@else.example>").await;
    assert!(reply.starts_with("550 5.7.1"), "{reply}");
    let reply = client.ask("RCPT TO:<hostmaster@mx.test>").await;
    assert!(reply.starts_with("550 5.7.1"), "{reply}");
}

#[tokio::test]
async fn without_a_declared_postmaster_its_mail_is_refused() {
    let world = World::new().await;
    let mut client = world.client().await;
    assert!(
        client
            .ask("MAIL FROM:<x@spam.example>")
            .await
            .starts_with("250 ")
    );
    let reply = client.ask("RCPT TO:<Postmaster>").await;
    assert!(reply.starts_with("550 5.7.1"), "{reply}");
}
