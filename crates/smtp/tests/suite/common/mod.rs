//! Scripts: readable dialogues with a session. A line that gives input is followed by what the session does with it; the
//! files are rewritten with `SCRIPTS=rewrite`. Each is played twice: in whole packets and octet by octet.

use std::path::Path;
use std::time::{Duration, Instant};

/// One session under test.
pub trait World {
    /// Applies one line of input; None: the line is no input but an expectation.
    fn input(&mut self, keyword: &str, rest: &str, now: Instant) -> Option<()>;
    /// What arrives.
    fn feed(&mut self, bytes: &[u8], now: Instant);
    /// The letter before what the peer says.
    fn peer(&self) -> char;
    /// Adds what the session does, a line each.
    fn drain(&mut self, events: &mut Vec<String>);
    /// Its deadline.
    fn deadline(&mut self) -> Option<Instant>;
    fn tick(&mut self, now: Instant);
}

/// Plays all scripts of a folder.
pub fn play_all(folder: &str, world: impl Fn(Instant) -> Box<dyn World>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/scripts")
        .join(folder);
    let rewrite = std::env::var("SCRIPTS").is_ok_and(|v| v == "rewrite");
    let mut count = 0;
    let mut failed = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let script = std::fs::read_to_string(&path).unwrap();
        let whole = play(&script, false, &world);
        let octets = play(&script, true, &world);
        assert_eq!(
            whole,
            octets,
            "{}: octet by octet it goes otherwise",
            path.display()
        );
        if rewrite {
            std::fs::write(&path, &whole).unwrap();
        } else if whole != script {
            failed.push(format!(
                "{}:\n{}",
                path.display(),
                difference(&script, &whole)
            ));
        }
        count += 1;
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(count >= 20, "only {count} scripts in {}", folder.display());
}

fn difference(expected: &str, got: &str) -> String {
    let at = expected
        .lines()
        .zip(got.lines())
        .take_while(|(a, b)| a == b)
        .count();
    let line = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_owned();
    format!(
        "  line {}\n  expected: {}\n  got:      {}",
        at + 1,
        line(expected),
        line(got)
    )
}

/// The script as it goes.
fn play(script: &str, octets: bool, world: &impl Fn(Instant) -> Box<dyn World>) -> String {
    let mut now = Instant::now();
    let start = now;
    let mut world = world(now);
    let mut out = String::new();
    let mut packet = Vec::new();
    for line in script.lines() {
        if line.starts_with('#') || line.is_empty() {
            out += &format!("{line}\n");
            continue;
        }
        let (keyword, rest) = line.split_at(line.find([' ', ':']).map_or(line.len(), |at| at + 1));
        let rest = rest.trim_start_matches(' ');
        let peer = world.peer();
        match keyword.trim_end() {
            k if k == format!("{peer}:") => {
                packet.extend([unescape(rest), b"\r\n".to_vec()].concat())
            }
            k if k == format!("{peer}|") => packet.extend(unescape(rest)),
            k if k == format!("{peer}+") => {
                packet.extend([unescape(rest), b"\r\n".to_vec()].concat());
                out += &format!("{line}\n");
                continue;
            }
            "tick:" => {
                now += Duration::from_secs(rest.trim_end_matches('s').parse().unwrap());
                world.tick(now);
            }
            "deadline?" => {
                let wait = world.deadline().map_or(0, |at| (at - now).as_secs());
                out += &format!("{line}\nwait {wait}s\n");
                continue;
            }
            keyword => {
                if world.input(keyword, rest, now).is_none() {
                    continue;
                }
            }
        }
        out += &format!("{line}\n");
        let mut events = Vec::new();
        if now == start {
            world.drain(&mut events);
        }
        let packet = std::mem::take(&mut packet);
        for bytes in packet.chunks(if octets { 1 } else { packet.len().max(1) }) {
            world.feed(bytes, now);
            world.drain(&mut events);
        }
        world.drain(&mut events);
        for event in merge(events) {
            let long = event.len() > 300;
            out += &if long {
                format!("({} octets like this) {}\n", event.len(), &event[..40])
            } else {
                event + "\n"
            };
        }
    }
    out
}

/// Pieces of content are one; how much of it was given before it had to be forgotten depends on the packets.
fn merge(events: Vec<String>) -> Vec<String> {
    let mut merged: Vec<String> = Vec::new();
    for event in events {
        match (merged.last_mut(), event.strip_prefix("body ")) {
            (Some(last), Some(more)) if last.starts_with("body ") => last.push_str(more),
            (Some(last), None) if event == "forget" && last.starts_with("body ") => *last = event,
            _ => merged.push(event),
        }
    }
    merged
}

/// `\r`, `\n`, and `{x*100}` for a hundred x.
fn unescape(text: &str) -> Vec<u8> {
    let mut text = text.replace("\\r", "\r").replace("\\n", "\n");
    while let Some((before, rest)) = text.clone().split_once('{') {
        let (inner, after) = rest.split_once('}').unwrap();
        let (what, times) = inner.rsplit_once('*').unwrap();
        text = format!("{before}{}{after}", what.repeat(times.parse().unwrap()));
    }
    text.into_bytes()
}

pub fn unescaped(text: &str) -> Vec<u8> {
    unescape(text)
}

pub fn escape(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .replace('\r', "\\r")
        .replace('\n', "\\n")
}

/// What a session writes, a line each.
pub fn written(who: char, bytes: &[u8], events: &mut Vec<String>) {
    let text = String::from_utf8_lossy(bytes);
    for line in text.split_inclusive("\r\n") {
        match line.strip_suffix("\r\n") {
            Some(line) => events.push(format!("{who}: {line}")),
            None => events.push(format!("{who}| {}", escape(line.as_bytes()))),
        }
    }
}
