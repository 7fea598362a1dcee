//! `postroad queue salvage`: mail out of a data directory that no queue node starts on any more.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use spool::salvage::{SalvageError, Salvaged, salvage};

use crate::failure::Failure;
use crate::settings::Salvage;

/// Where copies of the metadata are opened; removed at the end.
const WORK: &str = ".work";

/// What was found.
#[derive(Default)]
struct Found {
    written: u64,
    /// Messages whose octets cannot be read, with their envelopes.
    lost: Vec<Value>,
}

/// Writes out what is readable, and names what is not. Code 1 when anything is not.
pub fn run(settings: &Salvage) -> Result<(), Failure> {
    let out = &settings.out;
    if !settings.data.join("log").is_dir() {
        return Err(Failure::usage(format!(
            "{} is no data directory of a queue node: it has no log; `postroad up` keeps its queue nodes in DIR/queue-N",
            settings.data.display()
        )));
    }
    fs::create_dir_all(out).map_err(|e| at(out, e))?;
    if fs::read_dir(out).map_err(|e| at(out, e))?.next().is_some() {
        return Err(Failure::usage(format!(
            "{} is not empty: give a new directory",
            out.display()
        )));
    }
    let work = out.join(WORK);
    fs::create_dir(&work).map_err(|e| at(&work, e))?;
    let mut found = Found::default();
    let salvaged = salvage(&settings.data, &work, |message| found.take(out, message));
    let problems = salvaged.map_err(Failure::failed)?;
    fs::remove_dir_all(&work).map_err(|e| at(&work, e))?;
    let summary = json!({
        "data": settings.data.display().to_string(), "written": found.written, "lost": found.lost, "problems": problems,
    });
    let report = out.join("salvage.json");
    write(&report, format!("{summary:#}\n").as_bytes()).map_err(Failure::failed)?;
    println!(
        "{} messages written to {}; {} whose octets cannot be read; {} further problems: see {}",
        found.written,
        out.display(),
        found.lost.len(),
        problems.len(),
        report.display()
    );
    for problem in problems.iter().take(10) {
        println!("  {problem}");
    }
    for lost in found.lost.iter().take(10) {
        println!(
            "  lost: {} from {}: {}",
            lost["message"], lost["return_path"], lost["lost"]
        );
    }
    match found.lost.is_empty() && problems.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(
            "not everything could be read; the other replicas, if there are any, have it"
                .to_owned(),
        )),
    }
}

impl Found {
    fn take(&mut self, out: &Path, message: Salvaged) -> Result<(), SalvageError> {
        let mut envelope = envelope(&message);
        match &message.body {
            Ok(body) => {
                write(&out.join(format!("{}.eml", message.id)), body)?;
                self.written += 1;
            }
            Err(why) => {
                envelope["lost"] = json!(why);
                self.lost.push(envelope.clone());
            }
        }
        let text = format!("{envelope:#}\n");
        write(&out.join(format!("{}.json", message.id)), text.as_bytes())
    }
}

fn envelope(found: &Salvaged) -> Value {
    let message = &found.message;
    let items: Vec<Value> = found
        .items
        .iter()
        .map(|(id, item, recipients)| {
            let recipients: Vec<Value> = recipients
                .iter()
                .map(|recipient| {
                    let result = recipient.result.as_ref();
                    json!({
                        "address": &*recipient.address,
                        "verdict": result.map(|r| format!("{:?}", r.verdict)),
                        "reply": result.map(|r| format!("{} {} {}", r.code, r.enhanced, r.text)),
                    })
                })
                .collect();
            json!({
                "item": id.number, "destination": item.destination.to_string(), "state": format!("{:?}", item.state),
                "attempts": item.attempts, "reason": &*item.reason, "recipients": recipients,
            })
        })
        .collect();
    json!({
        "message": found.id.to_string(), "tenant": &*message.tenant, "class": &*message.class,
        "return_path": &*message.return_path, "arrived_ms": message.arrived.0, "expires_ms": message.expires.0,
        "size": message.size, "digest": format!("{:?}", message.digest), "eight_bit": message.eight_bit,
        "smtputf8": message.smtputf8, "is_report": message.is_report, "items": items,
    })
}

fn write(path: &Path, octets: &[u8]) -> Result<(), SalvageError> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(octets)?;
        file.sync_all()
    });
    written.map_err(|source| SalvageError::Io {
        path: path.to_owned(),
        source,
    })
}

fn at(path: &Path, error: std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}
