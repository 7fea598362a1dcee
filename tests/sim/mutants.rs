//! Plants each bug in turn, runs seeds until one shows it, and prints the table of tests/README.md:
//! `cargo run -p tests --features planted-bugs --bin mutants`. `SEEDS=n`: how many seeds a bug may survive. `BUG=name`: only that one.

use std::process::ExitCode;
use std::time::Instant;

use tests::sim::{all_bugs, hunt, number_from};

/// Seeds that a planted bug may survive.
const SEEDS: u64 = 2000;
/// Characters of a failure in the table.
const TEXT_MAX: usize = 110;

fn main() -> ExitCode {
    let seeds = number_from("SEEDS").unwrap_or(SEEDS);
    let begun = Instant::now();
    let mut missed = 0;
    println!("| bug | profile | first seed | how it shows |\n|---|---|---|---|");
    let wanted = std::env::var("BUG").ok();
    for bug in all_bugs() {
        if wanted.as_ref().is_some_and(|wanted| wanted != bug.name) {
            continue;
        }
        let (name, what, profile) = (bug.name, bug.what, bug.profile.name());
        match hunt(&bug, seeds) {
            Some((seed, error)) => {
                let line = error.lines().next().unwrap_or_default();
                let text: String = line.chars().take(TEXT_MAX).collect();
                println!("| {name}: {what} | {profile} | {seed} | {text} |");
            }
            None => {
                println!("| {name}: {what} | {profile} | **none of {seeds}** | |");
                missed += 1;
            }
        }
    }
    println!("\n{missed} missed, {} s", begun.elapsed().as_secs());
    match missed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
