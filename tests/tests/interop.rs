//! With a real Postfix on both sides: as the client that relays to our edge, and as the next hop behind our delivery.
//!
//! A missing Postfix is a failure; `POSTROAD_SKIP_INTEROP=1` leaves these tests out. They need root, because each Postfix
//! has a configuration and a queue of its own.

#[path = "interop/dialogue.rs"]
mod dialogue;
#[path = "interop/report.rs"]
mod report;
#[path = "interop/world.rs"]
mod world;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dialogue::Dialogue;
use report::Report;
use world::{Spec, World};

/// Mail that nothing holds up arrives within this time, on a machine that does other things as well.
const SOON: Duration = Duration::from_secs(30);

/// Runs a test where it can be run.
fn with(spec: Spec, test: impl FnOnce(&mut World) -> Result<()>) {
    if std::env::var_os("POSTROAD_SKIP_INTEROP").is_some() {
        eprintln!("left out: POSTROAD_SKIP_INTEROP is set");
        return;
    }
    let outcome = World::start(spec).and_then(|mut world| {
        test(&mut world).with_context(|| format!("in this world:\n{}", world.logs()))
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

/// Content that programs on the way like to change: dots, spaces at ends of lines, a long line, octets above 127.
fn content(subject: &str) -> Vec<u8> {
    let mut text = format!(
        "From: Sender <sender@origin.test>\nTo: alice@example.com\nSubject: {subject}\n\
         Date: Thu, 01 Jan 2026 00:00:00 +0000\nMessage-ID: <{subject}@origin.test>\nMIME-Version: 1.0\n\
         Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n\
         .\n..\n.dot\nspaces at the end  \n\ttab\n\nGr\u{fc}\u{df}e, \u{65e5}\u{672c}\nFrom here\n"
    );
    text.push_str(&"long ".repeat(190));
    text.push_str("\nlast line\n");
    text.into_bytes()
}

#[test]
fn a_message_of_swaks_arrives_octet_for_octet() {
    with(Spec::default(), |world| {
        let sent = content("octets");
        world.swaks(
            world.edge(),
            "sender@origin.test",
            "alice@example.com",
            &sent,
        )?;
        let got = world.mailbox("alice", 1, SOON)?.remove(0);
        let text = String::from_utf8_lossy(&got).into_owned();
        ensure!(got.ends_with(&sent), "the content was changed:\n{text}");
        let before = &text[..text.len() - sent.len()];
        ensure!(
            before.contains("Return-Path: <sender@origin.test>"),
            "{before}"
        );
        let ours = before
            .find("by postroad.test")
            .context("our trace field is missing")?;
        ensure!(
            before.matches("Received: ").count() == 2 && before[ours..].contains(" with ESMTP"),
            "one trace field each of Postfix and of us was expected:\n{before}"
        );
        Ok(())
    });
}

#[test]
fn postfix_relays_to_us_and_takes_from_us_over_few_connections() {
    const MESSAGES: usize = 60;
    with(Spec::default(), |world| {
        world.smtp_source(world.front(), MESSAGES)?;
        world.mailbox("alice", MESSAGES, SOON)?;
        let front = world.front_log();
        ensure!(
            front.contains("conn_use="),
            "Postfix used no connection to us twice:\n{front}"
        );
        // "disconnect from localhost[127.0.0.1] ehlo=1 mail=9 rcpt=9 data=9 commands=28", of each of our connections.
        let back = world.back_log();
        let connections = back.matches(": connect from").count();
        ensure!(
            connections < MESSAGES / 2,
            "{connections} connections for {MESSAGES} messages:\n{back}"
        );
        Ok(())
    });
}

#[test]
fn eight_bits_and_utf8_addresses_pass_from_postfix_through_us_to_postfix() {
    with(Spec::default(), |world| {
        let mut dialogue = Dialogue::open(world.front())?;
        let offered = dialogue.ask("EHLO client.test")?;
        ensure!(
            offered.contains("SMTPUTF8"),
            "this Postfix has no SMTPUTF8: {offered}"
        );
        dialogue.expect(
            "MAIL FROM:<gr\u{fc}\u{df}e@origin.test> BODY=8BITMIME SMTPUTF8",
            250,
        )?;
        dialogue.expect("RCPT TO:<j\u{f6}rg@example.com>", 250)?;
        let mut sent = "Subject: Gr\u{fc}\u{df}e\nFrom: gr\u{fc}\u{df}e@origin.test\n\
             To: j\u{f6}rg@example.com\nDate: Thu, 01 Jan 2026 00:00:00 +0000\n\
             Message-ID: <utf8@origin.test>\nContent-Transfer-Encoding: 8bit\n\n"
            .to_owned()
            .into_bytes();
        // Not UTF-8: a body may hold any octets with 8BITMIME.
        sent.extend([b'8', 0xe9, 0xff, 0x80, b'\n']);
        dialogue.content(&sent)?;
        dialogue.expect("QUIT", 221)?;
        let got = world.mailbox("joerg", 1, SOON)?.remove(0);
        let text = String::from_utf8_lossy(&got).into_owned();
        ensure!(got.ends_with(&sent), "the content was changed:\n{text}");
        ensure!(
            text.contains("Return-Path: <gr\u{fc}\u{df}e@origin.test>"),
            "{text}"
        );
        // RFC 6531 section 4.3: the protocol of the trace field says it.
        ensure!(
            text.contains("with UTF8SMTP"),
            "our trace field lacks UTF8SMTP:\n{text}"
        );
        Ok(())
    });
}

#[test]
fn a_refused_recipient_of_many_comes_back_as_a_report() {
    with(Spec::default(), |world| {
        let mut dialogue = Dialogue::open(world.edge())?;
        dialogue.expect("EHLO client.test", 250)?;
        dialogue.expect("MAIL FROM:<sender@origin.test>", 250)?;
        for n in 0..40 {
            dialogue.expect(&format!("RCPT TO:<user{n}@example.com>"), 250)?;
        }
        dialogue.expect("RCPT TO:<nobody@example.com>", 250)?;
        dialogue.content(&content("refused"))?;
        dialogue.expect("QUIT", 221)?;
        // Postfix writes one file for each recipient, all of them into one mailbox here.
        world.mailbox("users", 40, SOON)?;
        let got = world.mailbox("sender", 1, SOON)?.remove(0);
        let report = Report::parse(&got)?;
        ensure!(
            report.return_path == "<>",
            "return path {}",
            report.return_path
        );
        report.must_say("Reporting-MTA", "dns; postroad.test")?;
        report.must_say("Final-Recipient", "rfc822; nobody@example.com")?;
        report.must_say("Action", "failed")?;
        report.must_say("Status", "5.1.1")?;
        report.must_say("Diagnostic-Code", "smtp; 550 ")?;
        ensure!(
            report.recipients == 1,
            "{} recipients reported",
            report.recipients
        );
        ensure!(
            report
                .original
                .contains("Message-ID: <refused@origin.test>"),
            "the report does not quote the message: {}",
            report.original
        );
        Ok(())
    });
}

#[test]
fn a_message_that_is_too_large_is_refused_here_and_reported_there() {
    let spec = Spec {
        own_size: Some("256Ki"),
        next_size: Some(100_000),
    };
    with(spec, |world| {
        let mut dialogue = Dialogue::open(world.edge())?;
        let offered = dialogue.ask("EHLO client.test")?;
        ensure!(offered.contains("SIZE 262144"), "{offered}");
        let refusal = dialogue.ask("MAIL FROM:<sender@origin.test> SIZE=262145")?;
        ensure!(refusal.starts_with("552 5.3.4"), "{refusal}");
        dialogue.expect("QUIT", 221)?;
        // Postfix knows our limit from the EHLO reply and returns it without asking.
        let mut large = content("large");
        large.extend(b"0123456789\n".repeat(30_000));
        world.swaks(
            world.front(),
            "sender@front.test",
            "alice@example.com",
            &large,
        )?;
        let said = "exceeds size limit";
        ensure!(
            world::until(SOON, || world.front_log().contains(said)),
            "Postfix did not find it too large for us"
        );
        // Ours to take, and too large for the next hop.
        let mut medium = content("medium");
        medium.extend(b"0123456789\n".repeat(15_000));
        world.swaks(
            world.edge(),
            "sender@origin.test",
            "alice@example.com",
            &medium,
        )?;
        let got = world.mailbox("sender", 1, SOON)?.remove(0);
        let report = Report::parse(&got)?;
        report.must_say("Final-Recipient", "rfc822; alice@example.com")?;
        report.must_say("Action", "failed")?;
        report.must_say("Status", "5.3.4")?;
        Ok(())
    });
}

#[test]
fn a_greylisted_message_waits_and_is_taken_the_next_time() {
    with(Spec::default(), |world| {
        let sent = content("grey");
        world.swaks(
            world.edge(),
            "sender@origin.test",
            "grey@example.com",
            &sent,
        )?;
        ensure!(
            world::until(SOON, || world
                .queue(&["list", "--state", "waiting", "-o", "json"])
                .is_ok_and(|list| list.contains("Greylisted"))),
            "it does not wait for its next attempt with Postfix's words: {:?}",
            world.queue(&["list", "-o", "json"])
        );
        ensure!(world.count("alice") == 0, "it was delivered all the same");
        world.lift_greylisting()?;
        // Postfix reads its tables once a process: ours must have closed its idle connection (the first one was the test's).
        ensure!(
            world::until(SOON, || world
                .back_log()
                .matches(": disconnect from")
                .count()
                >= 2),
            "an idle connection stays open"
        );
        world.queue(&["retry", "--recipient", "grey@example.com", "--yes"])?;
        let got = world.mailbox("alice", 1, SOON)?.remove(0);
        ensure!(got.ends_with(&sent), "the content was changed");
        ensure!(
            world::until(SOON, || world
                .queue(&["list"])
                .is_ok_and(|list| !list.contains("grey@"))),
            "it is still in the queue"
        );
        Ok(())
    });
}
