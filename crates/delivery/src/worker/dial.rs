//! From a hop to a connection over which a transaction can start.

use std::sync::Arc;
use std::time::Instant;

use mail::code::report::TLS_FAILED;
use proto::v1;
use smtp::client::{Config, Question, Timeouts, Tls};

use super::Worker;
use crate::attempt::At;
use crate::connection::{Connection, Event, Unopened, millis, now};
use crate::route::Hop;

impl Worker {
    /// Connects and speaks until the first transaction could start. A host with which opportunistic TLS fails is spoken to in
    /// clear over a new connection: mail that TLS cannot protect from an attacker anyway must not wait for it.
    pub(super) async fn dial(&self, hop: &Hop) -> Result<Connection, Box<v1::RecipientResult>> {
        let starttls = self.node.tls.starttls(hop, now());
        match self.dial_once(hop, starttls).await {
            Err(Undialed::Tls(_, text)) if starttls == Tls::Opportunistic => {
                tracing::warn!(host = hop.host, address = %hop.address, reason = text, "the host offers TLS and cannot do it: it is spoken to in clear for a while");
                metrics::counter!("postroad_delivery_clear_fallbacks_total").increment(1);
                self.node.tls.speak_clear(hop, now());
                self.dial_once(hop, Tls::Off).await
            }
            outcome => outcome,
        }
        .map_err(|(Undialed::Tls(result, _) | Undialed::Other(result))| result)
    }

    async fn dial_once(&self, hop: &Hop, starttls: Tls) -> Result<Connection, Undialed> {
        let start = now();
        let config = Arc::new(self.client_config(starttls));
        let patience = self.settings.connect_timeout;
        let tls = &self.node.tls;
        let reached = || At::hop(hop, 0, millis(now() - start));
        let no_tls = |text: String| {
            tracing::debug!(hop = %hop.address, text, "no TLS");
            let result = reached().deferred(&TLS_FAILED.to_string(), &text);
            Undialed::Tls(Box::new(result), text)
        };
        let opened = Connection::open(hop.clone(), config, patience, tls).await;
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(Unopened::Tls(text)) => return Err(no_tls(text)),
            Err(Unopened::Unreached(text)) => return Err(unreached(hop, start, &text)),
        };
        metrics::counter!("postroad_connections_total").increment(1);
        loop {
            match connection.next(std::future::pending()).await {
                Event::Ask(Question::Next) => return Ok(connection),
                Event::StartTls => connection = connection.secure(tls).await.map_err(no_tls)?,
                Event::Broken(failure) => {
                    tracing::debug!(hop = %hop.address, text = failure.text, stage = ?failure.stage, "no SMTP session");
                    connection.flush().await;
                    let result = Box::new(connection.at(start).refused(&failure));
                    return Err(match connection.broke_by_tls(&failure) {
                        true => Undialed::Tls(result, failure.text),
                        false => Undialed::Other(result),
                    });
                }
                Event::Closed => {
                    let at = connection.at(start);
                    let result = at.deferred("4.4.2", "the session ended at its start");
                    return Err(Undialed::Other(Box::new(result)));
                }
                _ => {}
            }
        }
    }

    fn client_config(&self, tls: Tls) -> Config {
        let reply = self.settings.reply_timeout;
        let timeouts = Timeouts {
            greeting: reply,
            hello: reply,
            mail: reply,
            rcpt: reply,
            data: reply,
            block: reply,
            final_dot: self.settings.final_reply_timeout,
            ..Timeouts::default()
        };
        Config {
            timeouts,
            tls,
            ..Config::new(self.node.host.clone())
        }
    }
}

/// No SMTP session with a host, and the result to report; with TLS as the cause, also a text about it.
enum Undialed {
    Tls(Box<v1::RecipientResult>, String),
    Other(Box<v1::RecipientResult>),
}

fn unreached(hop: &Hop, start: Instant, text: &str) -> Undialed {
    let took = millis(now() - start);
    metrics::counter!("postroad_connections_failed_total").increment(1);
    tracing::debug!(hop = %hop.address, text, "no connection");
    // RFC 3463 X.4.1: no answer from host.
    let result = At::hop(hop, took, took).deferred("4.4.1", text);
    Undialed::Other(Box::new(v1::RecipientResult {
        never_reached: true,
        ..result
    }))
}

/// Of two hosts' failures the one to report: a host that spoke, then one that was reached; a host that defers outweighs one
/// that fails, for it may still take the mail.
pub(super) fn worse(
    before: Option<v1::RecipientResult>,
    now: v1::RecipientResult,
) -> v1::RecipientResult {
    let rank = |result: &v1::RecipientResult| {
        (
            result.verdict() == v1::Verdict::Deferred,
            result.code != 0,
            !result.never_reached,
        )
    };
    let Some(before) = before else { return now };
    let reached = !before.never_reached || !now.never_reached;
    let mut kept = if rank(&now) >= rank(&before) {
        now
    } else {
        before
    };
    kept.never_reached = !reached;
    kept
}
