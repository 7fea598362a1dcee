//! What all SMTP sessions of an edge node share.

use std::sync::Arc;

use mail::{Host, Mailbox};
use resource::{Catalog, EdgeSettings};
use smtp::server::StartTls;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::append::Appender;
use crate::config::{Config, StartTlsUse};
use crate::permit::Permits;

pub(crate) struct Node {
    pub config: Config,
    /// There are certificates, or there may be.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub appender: Appender,
    pub catalog: watch::Receiver<Option<Arc<Catalog>>>,
    pub permits: Arc<Permits>,
    /// No new sessions; those that exist end at their next command.
    pub draining: CancellationToken,
    /// The drain time is over: sessions end where they stand.
    pub cut_off: CancellationToken,
}

impl Node {
    /// What is declared now; `None`: no configuration has come yet.
    pub fn catalog(&self) -> Option<Arc<Catalog>> {
        self.catalog.borrow().clone()
    }

    /// Bounds of this node: of the EdgePool that was declared, else its own.
    pub fn settings(&self) -> EdgeSettings {
        let declared = self
            .catalog
            .borrow()
            .as_ref()
            .and_then(|catalog| catalog.edge().cloned());
        declared.unwrap_or_else(|| self.config.settings.clone())
    }

    /// Who gets the mail for `recipient`, when that is the postmaster of this server: `RCPT TO:<Postmaster>`, or its
    /// address at our own name (RFC 5321 section 4.5.1).
    pub fn postmaster(&self, recipient: &Mailbox) -> Option<Mailbox> {
        let ours = Host::Domain(self.config.hostname.clone());
        if !recipient.local().eq_ignore_ascii_case("postmaster") || *recipient.host() != ours {
            return None;
        }
        let declared = self.settings().postmaster?;
        match Mailbox::parse(&declared, false) {
            Ok(mailbox) => Some(mailbox),
            Err(error) => {
                tracing::error!(%declared, %error, "the postmaster's address is none; mail to it is refused");
                None
            }
        }
    }

    fn starttls(&self) -> StartTls {
        let certificates = self.config.certificates.as_ref();
        let usable = || certificates.is_some_and(|certificates| certificates.any());
        match self.config.starttls {
            // Nothing is taken in clear, whether or not there is a certificate.
            StartTlsUse::Required => StartTls::Required,
            StartTlsUse::WithCertificates if usable() => StartTls::Offered,
            StartTlsUse::WithCertificates | StartTlsUse::Never => StartTls::Off,
        }
    }

    /// The settings of a session that begins now.
    pub fn smtp_config(&self) -> Arc<smtp::server::Config> {
        let settings = self.settings();
        let mut config = smtp::server::Config::new(Host::Domain(self.config.hostname.clone()));
        config.message_bytes_max = settings.message_size;
        config.recipients_max = settings.recipients;
        config.starttls = self.starttls();
        config.refuse_early_talkers = !settings.greeting_pause.is_zero();
        Arc::new(config)
    }
}
