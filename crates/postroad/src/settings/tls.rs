//! What the command line says of TLS with SMTP clients.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// TLS with SMTP clients.
#[derive(Debug, Args)]
pub struct MailTls {
    /// Where to accept mail under TLS from the first octet on (port 465, RFC 8314)
    #[arg(
        long,
        env = "POSTROAD_LISTEN_TLS",
        value_delimiter = ',',
        value_name = "ADDRESS:PORT"
    )]
    pub listen_tls: Vec<SocketAddr>,
    /// Directory of certificates: tls.crt and tls.key, or a directory with both for each; chosen by the name that a
    /// client asks for, read again when they change. With it STARTTLS is offered
    #[arg(long, env = "POSTROAD_TLS", value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// Directory in --tls whose certificate clients get that ask for no known name [default: --tls itself, else the first by name]
    #[arg(
        long,
        env = "POSTROAD_TLS_DEFAULT",
        value_name = "NAME",
        requires = "tls"
    )]
    pub tls_default: Option<String>,
    /// Start without TLS when no certificate of --tls can be used, and offer it as soon as one can
    #[arg(long, env = "POSTROAD_TLS_MAY_WAIT", requires = "tls")]
    pub tls_may_wait: bool,
    /// Take no mail on --listen before STARTTLS. For private networks only
    #[arg(long, env = "POSTROAD_REQUIRE_STARTTLS", requires = "tls")]
    pub require_starttls: bool,
    /// Offer no STARTTLS on --listen: certificates are for --listen-tls only
    #[arg(
        long,
        env = "POSTROAD_NO_STARTTLS",
        requires = "tls",
        conflicts_with = "require_starttls"
    )]
    pub no_starttls: bool,
}
