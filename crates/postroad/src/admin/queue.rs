//! `postroad queue summary|list|show|hold|release|retry|drop`.

use std::io::{BufRead, IsTerminal, Write};

use proto::client::AdminClient;
use proto::v1::{
    AdminAction, DestinationSummary, ItemFilter, ItemRef, ItemSummary, ShowResponse, ShownRecipient,
};
use proto::{Ulid, ulid, ulid_bytes};
use serde_json::{Value, json};

use super::table::{from_now, plain, size, span, table};
use super::{connect, now_ms, print_json};
use crate::failure::Failure;
use crate::settings::{self, Filter, Output, QueueCommand};

/// An action on more items than this is refused: it is done in parts, or with a narrower filter.
const ACT_ITEMS_MAX: usize = 1_000_000;

/// Asks or acts.
pub async fn run(command: QueueCommand) -> Result<(), Failure> {
    match command {
        QueueCommand::Groups(settings) => super::members::groups(settings).await,
        QueueCommand::Summary(settings) => summary(settings).await,
        QueueCommand::List(settings) => list(settings).await,
        QueueCommand::Show(settings) => show(settings).await,
        QueueCommand::Hold(settings) => act(AdminAction::Hold, "hold", settings).await,
        QueueCommand::Release(settings) => act(AdminAction::Release, "release", settings).await,
        QueueCommand::Retry(settings) => act(AdminAction::Retry, "retry", settings).await,
        QueueCommand::Salvage(settings) => super::salvage::run(&settings),
        QueueCommand::Drop(settings) => act(AdminAction::Drop, "drop", settings).await,
    }
}

async fn summary(settings: settings::Summary) -> Result<(), Failure> {
    let client = connect(&settings.connection)?;
    let found = client.admin().summary(0).await?;
    let shown: Vec<&DestinationSummary> = found
        .destinations
        .iter()
        .take(settings.limit as usize)
        .collect();
    if settings.output == Output::Json {
        let destinations: Vec<Value> = shown
            .iter()
            .map(|d| {
                json!({ "destination": d.destination, "waiting": d.waiting, "leased": d.leased, "held": d.held })
            })
            .collect();
        print_json(&json!({
            "messages": found.messages, "waiting": found.waiting, "leased": found.leased, "held": found.held,
            "cluster_time_ms": found.cluster_time_ms, "destinations": destinations,
        }));
        return Ok(());
    }
    println!(
        "{} messages; items: {} waiting, {} leased, {} held",
        found.messages, found.waiting, found.leased, found.held
    );
    if !shown.is_empty() {
        let rows: Vec<Vec<String>> = shown
            .iter()
            .map(|d| {
                vec![
                    plain(&d.destination),
                    d.waiting.to_string(),
                    d.leased.to_string(),
                    d.held.to_string(),
                ]
            })
            .collect();
        print!(
            "\n{}",
            table(&["DESTINATION", "WAITING", "LEASED", "HELD"], &rows)
        );
    }
    let rest = found.destinations.len() - shown.len();
    if rest > 0 {
        println!("and {rest} more destinations; show them with --limit");
    }
    Ok(())
}

async fn list(settings: settings::List) -> Result<(), Failure> {
    let client = connect(&settings.connection)?;
    let (items, more) = find(&client.admin(), &settings.filter, settings.limit).await?;
    if settings.output == Output::Json {
        let items: Vec<Value> = items.iter().map(item_json).collect();
        print_json(&json!({ "items": items, "more": more }));
        return Ok(());
    }
    let now = now_ms();
    let rows: Vec<Vec<String>> = items.iter().map(|item| item_row(item, now)).collect();
    print!(
        "{}",
        table(
            &[
                "MESSAGE", "ITEM", "STATE", "DUE", "AGE", "TRIES", "SIZE", "FROM", "TO", "REASON"
            ],
            &rows
        )
    );
    if more {
        println!("and more; show them with --limit");
    }
    Ok(())
}

fn item_row(item: &ItemSummary, now: u64) -> Vec<String> {
    let due = match item.state.as_str() {
        "Waiting" => from_now(item.due_ms, now),
        _ => "-".into(),
    };
    vec![
        message_of(item.item.as_ref()),
        number_of(item.item.as_ref()),
        item.state.clone(),
        due,
        span(now.saturating_sub(item.arrived_ms)),
        item.attempts.to_string(),
        size(item.size),
        sender(&item.return_path),
        to(item),
        plain(&item.reason),
    ]
}

/// The first recipient, and how many there are beside it.
fn to(item: &ItemSummary) -> String {
    match &item.recipients[..] {
        [] => plain(&item.destination),
        [only] => plain(only),
        [first, others @ ..] => format!("{} and {} more", plain(first), others.len()),
    }
}

fn item_json(item: &ItemSummary) -> Value {
    json!({
        "message": message_of(item.item.as_ref()), "item": item.item.as_ref().map_or(0, |i| i.number),
        "destination": item.destination, "state": item.state, "tenant": item.tenant, "class": item.class,
        "return_path": item.return_path, "size": item.size, "arrived_ms": item.arrived_ms, "due_ms": item.due_ms,
        "expires_ms": item.expires_ms, "attempts": item.attempts, "reason": item.reason,
        "recipients": item.recipients,
    })
}

fn message_of(item: Option<&ItemRef>) -> String {
    item.and_then(|item| ulid(&item.message))
        .map_or_else(|| "?".into(), |id| id.to_string())
}

fn number_of(item: Option<&ItemRef>) -> String {
    item.map_or_else(|| "?".into(), |item| item.number.to_string())
}

fn sender(return_path: &str) -> String {
    match return_path {
        "" => "<>".into(),
        some => plain(some),
    }
}

async fn show(settings: settings::Show) -> Result<(), Failure> {
    let client = connect(&settings.connection)?;
    let found = client.admin().show(settings.message).await?;
    if !found.found && found.finished.is_empty() {
        return Err(Failure::Failed(format!(
            "the queue does not know {}; a message is forgotten half an hour after it is finished",
            settings.message
        )));
    }
    match settings.output {
        Output::Json => print_json(&shown_json(settings.message, &found)),
        Output::Table => print_shown(settings.message, &found),
    }
    Ok(())
}

fn print_shown(message: Ulid, found: &ShowResponse) {
    println!("message {message}");
    if !found.finished.is_empty() {
        println!("finished: {}", plain(&found.finished));
    }
    let now = now_ms();
    if let Some(first) = found.items.first() {
        println!("from     {}", sender(&first.return_path));
        println!("size     {}", size(first.size));
        println!("tenant   {}, class {}", first.tenant, first.class);
        println!("arrived  {}", from_now(first.arrived_ms, now));
        println!("expires  {}", from_now(first.expires_ms, now));
    }
    if let Some(origin) = &found.origin {
        let (address, helo) = (plain(&origin.client_address), plain(&origin.helo));
        println!(
            "client   {address}, helo {helo}, by {}",
            plain(&origin.edge)
        );
    }
    for item in &found.items {
        println!(
            "\nitem {} to {}: {}, {} tries{}{}",
            number_of(item.item.as_ref()),
            plain(&item.destination),
            item.state,
            item.attempts,
            match item.state.as_str() {
                "Waiting" => format!(", due {}", from_now(item.due_ms, now)),
                _ => String::new(),
            },
            match item.reason.as_str() {
                "" => String::new(),
                reason => format!("; {}", plain(reason)),
            }
        );
        let number = item.item.as_ref().map(|item| item.number);
        for recipient in &found.recipients {
            if recipient.item.as_ref().map(|item| item.number) == number {
                println!("  {}", recipient_line(recipient));
            }
        }
    }
}

fn recipient_line(recipient: &ShownRecipient) -> String {
    let address = plain(&recipient.address);
    match &recipient.result {
        None => format!("{address}: not tried yet"),
        Some(result) => {
            let verdict = result.verdict().as_str_name().to_lowercase();
            // Code 0: the next hop said nothing, and the text is ours.
            let code = match result.code {
                0 => String::new(),
                code => format!("{code} "),
            };
            // A next hop's own enhanced code stands in its text.
            let enhanced = match result.text.starts_with(&result.enhanced) {
                true => String::new(),
                false => format!("{} ", result.enhanced),
            };
            format!(
                "{address}: {} by {}: {code}{}{}",
                verdict.replace("verdict_", ""),
                plain(&result.remote_host),
                plain(&enhanced),
                plain(&result.text)
            )
        }
    }
}

fn shown_json(message: Ulid, found: &ShowResponse) -> Value {
    let recipients: Vec<Value> = found
        .recipients
        .iter()
        .map(|recipient| {
            let result = recipient.result.as_ref().map(|result| {
                json!({ "verdict": result.verdict().as_str_name(), "code": result.code, "enhanced": result.enhanced,
                        "text": result.text, "remote_host": result.remote_host,
                        "remote_address": result.remote_address, "ambiguous": result.ambiguous })
            });
            json!({ "item": recipient.item.as_ref().map_or(0, |i| i.number), "address": recipient.address,
                    "result": result })
        })
        .collect();
    let origin = found.origin.as_ref().map(|origin| {
        json!({ "client_address": origin.client_address, "helo": origin.helo, "edge": origin.edge })
    });
    json!({
        "message": message.to_string(), "finished": found.finished, "origin": origin,
        "items": found.items.iter().map(item_json).collect::<Vec<_>>(), "recipients": recipients,
    })
}

/// Items that match, at most `limit`, and whether there are more; with several message ids, those of each.
async fn find(
    admin: &AdminClient,
    filter: &Filter,
    limit: usize,
) -> Result<(Vec<ItemSummary>, bool), Failure> {
    let one = |message: Option<&Ulid>| ItemFilter {
        message: message.map(|id| ulid_bytes(*id)).unwrap_or_default(),
        sender: filter.sender.clone().unwrap_or_default(),
        recipient: filter.recipient.clone().unwrap_or_default(),
        destination: filter.destination.clone().unwrap_or_default(),
        tenant: filter.tenant.clone().unwrap_or_default(),
        state: filter
            .state
            .map(|state| state.name().into())
            .unwrap_or_default(),
    };
    // One more is asked for than is wanted: only one that was seen says that there are more. What is full already knows
    // nothing of the shards and messages after it.
    let wanted = limit.saturating_add(1);
    let mut items = Vec::new();
    if filter.messages.is_empty() {
        (items, _) = admin.list(&one(None), wanted).await?;
    }
    for message in &filter.messages {
        let (found, _) = admin
            .list(&one(Some(message)), wanted - items.len())
            .await?;
        items.extend(found);
        if items.len() == wanted {
            break;
        }
    }
    let more = items.len() > limit;
    items.truncate(limit);
    Ok((items, more))
}

async fn act(action: AdminAction, verb: &str, settings: settings::Action) -> Result<(), Failure> {
    let filter = &settings.filter;
    let narrows = !filter.messages.is_empty()
        || filter.sender.is_some()
        || filter.recipient.is_some()
        || filter.destination.is_some()
        || filter.tenant.is_some()
        || filter.state.is_some();
    if narrows == settings.all {
        return Err(Failure::usage(format!(
            "say which items to {verb}: message ids or a filter, or --all for every item of the queue"
        )));
    }
    let client = connect(&settings.connection)?;
    let admin = client.admin();
    let (items, more) = find(&admin, filter, ACT_ITEMS_MAX).await?;
    if more {
        return Err(Failure::Failed(format!(
            "more than {ACT_ITEMS_MAX} items match; use a narrower filter"
        )));
    }
    let destructive = action == AdminAction::Drop || items.len() > 1;
    if !items.is_empty() && destructive && !settings.yes {
        confirm(verb, &items)?;
    }
    let actor = std::env::var("USER").unwrap_or_else(|_| "admin".into());
    let refs: Vec<ItemRef> = items.into_iter().filter_map(|item| item.item).collect();
    let answer = admin.act(action, refs, &actor, &settings.reason).await?;
    let (done, marked, missing) = (answer.done, answer.marked, answer.missing);
    match settings.output {
        Output::Json => print_json(&json!({ "done": done, "marked": marked, "missing": missing })),
        Output::Table => {
            println!("{verb}: {done} item(s)");
            if marked > 0 {
                println!(
                    "{marked} are being delivered now; it takes effect if they are not delivered"
                );
            }
            if missing > 0 {
                println!("{missing} were gone already, or not in a state for it");
            }
        }
    }
    Ok(())
}

/// Shows what would be touched and asks a person. Without a terminal nobody can answer.
fn confirm(verb: &str, items: &[ItemSummary]) -> Result<(), Failure> {
    let mut destinations: Vec<&str> = items.iter().map(|i| i.destination.as_str()).collect();
    destinations.sort_unstable();
    destinations.dedup();
    let octets: u64 = items.iter().map(|item| item.size).sum();
    let what = format!(
        "{verb} {} item(s) to {} destination(s) ({}), {}",
        items.len(),
        destinations.len(),
        plain(
            &destinations
                .iter()
                .take(3)
                .copied()
                .collect::<Vec<_>>()
                .join(", ")
        ),
        size(octets)
    );
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "would {what}; nobody can be asked here, so say --yes"
        )));
    }
    eprint!("{what}? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let _ = std::io::stdin().lock().read_line(&mut answer);
    match matches!(answer.trim(), "y" | "Y" | "yes") {
        true => Ok(()),
        false => Err(Failure::Failed("nothing was done".into())),
    }
}
