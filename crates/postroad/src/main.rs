//! The program `postroad`: any role, all of them in one process (`up`), and the administration commands.
//!
//! ```text
//! settings.rs    what the command line and POSTROAD_* say
//! first_start.rs the data directory of `up`: cluster id, ports, certificates
//! declared.rs    what is declared: in a directory, or in the queue as documents; retry.rs takes the retry times out of it
//! role.rs        edge, queue, delivery: each a task that can be asked whether it is ready, and told to leave
//! shutdown.rs    waits, and leaves in order
//! telemetry.rs   logs, metrics, panics; health.rs serves them over HTTP
//! admin/         status, queue, members, apply, get, config, send, check, pki
//! ```

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

mod admin;
mod declared;
mod describe;
mod failure;
mod first_start;
mod health;
mod retry;
mod role;
mod settings;
mod shutdown;
mod telemetry;
mod up;

use failure::Failure;
use settings::{Cli, Command, Queue};

// Many short-lived buffers on many threads: the system's allocator is slower and keeps more.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli();
    telemetry::start_logs(&cli.logs, cli.command.is_node());
    if cli.command.is_node() {
        // The allocator gives memory back and takes it again; with huge pages each taking clears 2 MiB. Measured: 4 %
        // less CPU a message and 70 MiB less memory without them. A kernel that cannot is no worse off than before.
        let _ = rustix::thread::disable_transparent_huge_pages(true);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("postroad")
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(cli.command));
            // What still waits after an orderly end waits for nothing that matters.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::Failed(format!("cannot start threads: {error}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("postroad: {failure}");
            failure.exit_code()
        }
    }
}

/// What the command line says. Under the name `kubectl-postroad` this is kubectl's plugin: the same commands, called
/// `kubectl postroad`.
fn cli() -> Cli {
    let called = std::env::args_os().next();
    let called = called.as_deref().map(std::path::Path::new);
    let name = called.and_then(|path| path.file_stem());
    let command = match name.and_then(|name| name.to_str()) {
        Some("kubectl-postroad") => Cli::command().bin_name("kubectl postroad"),
        _ => Cli::command(),
    };
    Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Up(settings) => up::run(settings).await,
        Command::Edge(settings) => role::run_edge(settings).await,
        Command::Delivery(settings) => role::run_delivery(settings).await,
        Command::Queue(queue) => {
            let Queue { node, command } = *queue;
            match command {
                None => role::run_queue(node).await,
                Some(command) => admin::queue::run(command).await,
            }
        }
        Command::Status(settings) => admin::status::run(settings).await,
        Command::Members(command) => admin::members::run(command).await,
        Command::Send(settings) => admin::send::run(settings).await,
        Command::Apply(settings) => admin::config::apply(settings).await,
        Command::Get(settings) => admin::get::run(settings).await,
        Command::Config(command) => admin::config::run(command).await,
        Command::Dns(settings) => admin::dns::run(settings).await,
        Command::Check(settings) => admin::check::run(settings),
        Command::Pki(command) => admin::pki::run(command),
    }
}
