//! Conversations with an edge whose queue is real as far as the edge can see.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::world::{Client, World, catalog};

const CONTENT: &[u8] = b"Message-ID: <1@client.example>\r\nSubject: hi\r\n\r\nline  \t\r\n\xff\x00 odd octets stay\r\n\r\n";

#[tokio::test]
async fn a_message_gets_250_and_arrives_byte_for_byte_behind_its_trace_header() {
    let world = World::new().await;
    let mut client = world.client().await;
    let reply = client
        .mail("a@client.example", &["b@else.example"], CONTENT)
        .await;
    let id = reply.strip_prefix("250 2.0.0 queued as ").expect(&reply);

    let messages = world.store.messages();
    let (facts, body) = &messages[0];
    assert_eq!(
        mail::Ulid::from_bytes(facts.message[..].try_into().unwrap()).to_string(),
        id
    );
    let trace = body
        .strip_suffix(CONTENT)
        .expect("the content is the end of the body");
    let trace = std::str::from_utf8(trace).unwrap();
    assert!(
        trace
            .starts_with("Received: from [127.0.0.1] ([127.0.0.1])\r\n\tby mx.test with ESMTP id "),
        "{trace}"
    );
    assert!(
        trace.contains(&format!(" id {id}\r\n\tfor <b@else.example>;\r\n\t")),
        "{trace}"
    );
    let end_of_header = body.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(facts.header_size as usize, end_of_header);
    assert_eq!(
        (facts.tenant.as_str(), facts.class.as_str(), facts.chunks),
        ("default", "default", 0)
    );
    let origin = facts.origin.as_ref().unwrap();
    assert_eq!(origin.message_id, "<1@client.example>");
    assert_eq!(origin.principal, "network 127.0.0.0/8 of client.example");
    assert_eq!(
        (origin.client_address.as_str(), origin.edge.as_str()),
        ("127.0.0.1", "e1")
    );
    assert_eq!(facts.trace_context.len(), 55);
    assert!(client.ask("QUIT").await.starts_with("221 "));
}

#[tokio::test]
async fn nobody_hears_250_before_the_queue_has_answered() {
    let world = World::new().await;
    let mut client = world.client().await;
    client
        .begin("slow@client.example", &["b@else.example"])
        .await;
    client.send(b"x: y\r\n\r\nbody\r\n.\r\n").await;
    world.store.waiting.notified().await;
    let early = tokio::time::timeout(Duration::from_millis(200), client.reply()).await;
    assert!(early.is_err(), "a reply before the outcome: {early:?}");
    world.store.gate.notify_one();
    assert!(client.reply().await.starts_with("250 2.0.0 queued as "));
}

#[tokio::test]
async fn outcomes_of_the_queue_become_replies() {
    let world = World::with(|_| {}, Duration::from_secs(1)).await;
    let mut client = world.client().await;
    for (sender, reply) in [
        ("full", "452 4.3.1"),
        ("stale", "451 4.3.0"),
        ("conflict", "451 4.3.0"),
        ("busy", "451 4.3.0"),
        ("good", "250 2.0.0"),
    ] {
        let said = client
            .mail(
                &format!("{sender}@client.example"),
                &["b@else.example"],
                b"a: b\r\n\r\n",
            )
            .await;
        assert!(said.starts_with(reply), "{sender}: {said}");
    }
    assert_eq!(world.store.messages().len(), 1);
    // Written and never answered: the connection ends without a word.
    let said = client
        .mail("never@client.example", &["b@else.example"], b"a: b\r\n\r\n")
        .await;
    assert_eq!(said, "");
}

#[tokio::test]
async fn twenty_sessions_at_once_mix_nothing_up() {
    let world = World::new().await;
    let mut tasks = Vec::new();
    for n in 0..20 {
        let mut client = world.client().await;
        tasks.push(tokio::spawn(async move {
            for m in 0..10 {
                let content = format!("Subject: {n}-{m}\r\n\r\n{}\r\n", "x".repeat(n * 700 + m));
                let to = format!("r{n}-{m}@else.example");
                let reply = client
                    .mail("a@client.example", &[&to], content.as_bytes())
                    .await;
                assert!(reply.starts_with("250 "), "{reply}");
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let messages = world.store.messages();
    assert_eq!(messages.len(), 200);
    for (facts, body) in messages {
        let name = facts.items[0].recipients[0]
            .address
            .strip_prefix('r')
            .unwrap()
            .split('@')
            .next()
            .unwrap()
            .to_owned();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains(&format!("Subject: {name}\r\n")), "{name}");
    }
}

#[tokio::test]
async fn a_large_message_goes_in_chunks_and_is_whole() {
    let world = World::with(|config| config.body_bytes = 0, Duration::from_secs(120)).await;
    let line: String = (0..99).map(|n| char::from(b'a' + n % 26)).collect();
    let content: Vec<u8> = (0..50_000)
        .flat_map(|n| format!("{n} {line}\r\n").into_bytes())
        .collect();
    let content = [b"a: b\r\n\r\n".as_slice(), &content].concat();
    // Two at once with the least memory: each waits for the other's chunks, none for ever.
    let (mut one, mut two) = (world.client().await, world.client().await);
    let to = ["b@else.example"];
    let replies = tokio::join!(
        one.mail("a@client.example", &to, &content),
        two.mail("a@client.example", &to, &content)
    );
    assert!(
        replies.0.starts_with("250 ") && replies.1.starts_with("250 "),
        "{replies:?}"
    );
    for (facts, body) in world.store.messages() {
        assert!(facts.chunks <= edge::CHUNKS_MAX);
        assert!(
            facts.chunks as usize >= content.len() / edge::CHUNK_BYTES_MAX,
            "{}",
            facts.chunks
        );
        assert!(body.ends_with(&content));
        let trace = String::from_utf8_lossy(&body[..200]);
        let id = mail::Ulid::from_bytes(facts.message[..].try_into().unwrap());
        assert!(
            trace.contains(&format!(" id {id}\r\n")),
            "the first chunk has the id: {trace}"
        );
    }
}

/// Memory so short that each read of a client would become a chunk: a message may have 256, and 8 MiB came to more.
#[tokio::test]
async fn a_large_message_passes_when_memory_is_short() {
    let world = World::with(|config| config.body_bytes = 0, Duration::from_secs(120)).await;
    let line = format!("{}\r\n", "x".repeat(998));
    let content = [b"a: b\r\n\r\n", line.repeat(12 << 10).as_bytes()].concat();
    let send = async |mut client: Client| {
        let to = ["b@else.example"];
        client.mail("a@client.example", &to, &content).await
    };
    let clients = [
        world.client().await,
        world.client().await,
        world.client().await,
    ];
    let replies = futures::future::join_all(clients.into_iter().map(send)).await;
    for reply in replies {
        assert!(reply.starts_with("250 "), "{reply}");
    }
    for (facts, body) in world.store.messages() {
        assert!(facts.chunks <= edge::CHUNKS_MAX, "{}", facts.chunks);
        assert_eq!(&body[body.len() - content.len()..], content);
    }
}

#[tokio::test]
async fn a_slow_message_is_sent_as_it_comes_and_a_lost_upload_is_told_at_the_dot() {
    let world = World::with(
        |config| config.chunk_after = Duration::from_millis(50),
        Duration::from_secs(120),
    )
    .await;
    let mut client = world.client().await;
    client.begin("a@client.example", &["b@else.example"]).await;
    client.send(b"a: b\r\n\r\nfirst\r\n").await;
    while world.store.chunk_counts().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.send(b"second\r\n.\r\n").await;
    assert!(client.reply().await.starts_with("250 "));
    let (facts, body) = world.store.messages().remove(0);
    assert!(facts.chunks >= 2 && body.ends_with(b"\r\n\r\nfirst\r\nsecond\r\n"));

    world.store.chunks_gone.store(true, Ordering::SeqCst);
    client.begin("a@client.example", &["b@else.example"]).await;
    client.send(b"a: b\r\n\r\nfirst\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send(b"second\r\n.\r\n").await;
    assert!(client.reply().await.starts_with("451 4.3.0"));
}

#[tokio::test]
async fn what_a_client_uploaded_before_it_left_is_not_kept() {
    let world = World::new().await;
    let content = "x\r\n".repeat(1 << 20);
    for breaks_off in [true, false] {
        let mut client = world.client().await;
        client.begin("a@client.example", &["b@else.example"]).await;
        client.send(content.as_bytes()).await;
        while world.store.chunk_counts().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if breaks_off {
            drop(client);
        } else {
            // A message that is refused in its middle.
            client.send(b"bare\nline\r\n").await;
            assert!(client.reply().await.starts_with("554 5.5.2"));
        }
        tokio::time::timeout(Duration::from_secs(20), async {
            while !world.store.chunk_counts().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("the queue is told");
    }
    // What was appended is not touched: the chunks of a message stay its body.
    let mut client = world.client().await;
    let content = format!("a: b\r\n\r\n{content}");
    let to = ["b@else.example"];
    let reply = client
        .mail("a@client.example", &to, content.as_bytes())
        .await;
    assert!(reply.starts_with("250 "), "{reply}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.store.chunk_counts().len(), 1);
}

#[tokio::test]
async fn a_drain_ends_idle_sessions_and_finishes_the_message_in_progress() {
    let mut world = World::new().await;
    let idle = world.client().await;
    let mut busy = world.client().await;
    busy.begin("a@client.example", &["b@else.example"]).await;
    busy.send(b"a: b\r\n\r\nhalf").await;
    tokio::time::sleep(Duration::from_millis(50)).await;

    world.stop.cancel();
    assert!(idle.rest().await.starts_with("421 4.3.2"));
    let drained = tokio::spawn(world.edge.take().unwrap().drained());
    busy.send(b" and half\r\n.\r\n").await;
    assert!(busy.reply().await.starts_with("250 "));
    assert!(busy.rest().await.starts_with("421 4.3.2"));
    tokio::time::timeout(Duration::from_secs(5), drained)
        .await
        .unwrap()
        .unwrap();
    assert!(
        tokio::net::TcpStream::connect(world.address).await.is_err(),
        "the listener is closed"
    );
    assert!(world.store.messages()[0].1.ends_with(b"half and half\r\n"));
}

#[tokio::test]
async fn a_session_that_does_not_end_is_cut_off_after_the_drain_time() {
    let drain = Duration::from_millis(100);
    let mut world = World::with(
        |config| config.settings.drain = drain,
        Duration::from_secs(120),
    )
    .await;
    let mut stuck = world.client().await;
    stuck.begin("a@client.example", &["b@else.example"]).await;
    world.stop.cancel();
    let drained = world.edge.take().unwrap().drained();
    tokio::time::timeout(Duration::from_secs(5), drained)
        .await
        .unwrap();
    assert_eq!(stuck.rest().await, "");
}

#[tokio::test]
async fn sessions_are_bounded_in_all_and_by_source() {
    let world = World::with(
        |config| config.settings.connections_per_source = 2,
        Duration::from_secs(120),
    )
    .await;
    let (one, _two) = (world.client().await, world.client().await);
    assert!(
        Client::connect(world.address)
            .await
            .rest()
            .await
            .starts_with("421 4.7.0")
    );
    drop(one);
    // Its place is free as soon as the edge has seen it go.
    let again = async {
        while !Client::connect(world.address)
            .await
            .reply()
            .await
            .starts_with("220 ")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), again)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_declared_holds_from_the_next_command_on() {
    let world = World::new().await;
    let mut client = world.client().await;
    assert!(
        client
            .ask("MAIL FROM:<a@client.example>")
            .await
            .starts_with("250 ")
    );
    assert!(
        client
            .ask("RCPT TO:<b@else.example>")
            .await
            .starts_with("250 ")
    );
    assert!(
        client
            .ask("RCPT TO:<b@inbound.example>")
            .await
            .starts_with("452 4.5.3"),
        "another tenant"
    );
    assert!(client.ask("RSET").await.starts_with("250 "));
    assert!(
        client
            .ask("MAIL FROM:<a@stranger.example>")
            .await
            .starts_with("250 "),
        "decided at RCPT"
    );
    assert!(
        client
            .ask("RCPT TO:<b@else.example>")
            .await
            .starts_with("550 5.7.1")
    );
    assert!(
        client
            .ask("RCPT TO:<b@inbound.example>")
            .await
            .starts_with("250 ")
    );

    world.catalog.send_replace(catalog(""));
    assert!(
        client
            .ask("RCPT TO:<c@inbound.example>")
            .await
            .starts_with("550 5.7.1")
    );
    world.catalog.send_replace(None);
    assert!(
        Client::connect(world.address)
            .await
            .rest()
            .await
            .starts_with("421 4.3.2")
    );
}

#[tokio::test]
async fn recipients_become_items_by_destination() {
    let world = World::new().await;
    let mut client = world.client().await;
    let to: Vec<String> = (0..250)
        .map(|n| format!("u{n}@{}.example", if n % 5 == 0 { "x" } else { "y" }))
        .collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    assert!(
        client
            .mail("a@client.example", &to, b"a: b\r\n\r\n")
            .await
            .starts_with("250 ")
    );
    let (facts, body) = world.store.messages().remove(0);
    let shape: Vec<(&str, usize)> = facts
        .items
        .iter()
        .map(|i| (i.destination.as_str(), i.recipients.len()))
        .collect();
    assert_eq!(
        shape,
        [("x.example", 50), ("y.example", 100), ("y.example", 100)]
    );
    assert!(
        !body.windows(5).any(|w| w == b"for <"),
        "one recipient is not told of another"
    );
}
