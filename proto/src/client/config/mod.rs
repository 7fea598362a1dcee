//! What is declared: writing documents, asking who has them, and following them.
//!
//! A change of any size is written with [`ConfigClient::put`], in as many Puts as it takes; each of them is all or nothing.

mod put;
mod watch;

use bytes::Bytes;
use tonic::transport::Channel;

use super::{CallError, QueueClient};
use crate::tls::MESSAGE_BYTES_MAX;
use crate::v1::config_client::ConfigClient as Stub;
use crate::v1::{ConfigListed, ConfigNode, ConfigStatusRequest, ConfigWriter};

pub use put::{PUT_DOCUMENTS_MAX, PUT_OCTETS_MAX, PutChange, PutError};
pub use watch::{ConfigNews, ConfigStream};

/// Documents that are asked for at once.
const PAGE_DOCUMENTS: u32 = 1_000;

/// The service Config, at the control group's leader.
#[derive(Clone)]
pub struct ConfigClient {
    client: QueueClient,
}

/// All that is declared, without bodies, and who has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigView {
    /// Of the whole.
    pub revision: u64,
    /// Who declared something.
    pub writers: Vec<ConfigWriter>,
    /// By key.
    pub documents: Vec<ConfigListed>,
    /// Nodes that watch now.
    pub nodes: Vec<ConfigNode>,
}

impl ConfigView {
    /// The revision of a writer's last Put; 0: it has written nothing.
    pub fn writer_revision(&self, writer: &str) -> u64 {
        let found = self.writers.iter().find(|one| one.name == writer);
        found.map_or(0, |one| one.revision)
    }
}

fn stub(channel: Channel) -> Stub<Channel> {
    Stub::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

impl ConfigClient {
    pub(super) fn new(client: QueueClient) -> ConfigClient {
        ConfigClient { client }
    }

    /// Who declared something and who has it, without the list of documents.
    pub async fn writers_and_nodes(&self) -> Result<ConfigView, CallError> {
        Ok(self.page(String::new(), 0).await?.0)
    }

    /// Everything. Documents may change between two pages of a thousand; then the revision is that of the last page.
    pub async fn status(&self) -> Result<ConfigView, CallError> {
        let (mut view, mut more) = self.page(String::new(), PAGE_DOCUMENTS).await?;
        while more {
            let after = view.documents.last().map(|one| one.key.clone());
            let (page, further) = self.page(after.unwrap_or_default(), PAGE_DOCUMENTS).await?;
            more = further && !page.documents.is_empty();
            view.documents.extend(page.documents);
            (view.revision, view.writers, view.nodes) = (page.revision, page.writers, page.nodes);
        }
        Ok(view)
    }

    async fn page(&self, after: String, limit: u32) -> Result<(ConfigView, bool), CallError> {
        let ask = |channel| {
            let after = after.clone();
            async move {
                stub(channel)
                    .config_status(ConfigStatusRequest { after, limit })
                    .await
            }
        };
        let page = self
            .client
            .ask_control(ask, |answer| answer.not_leader.as_ref())
            .await?;
        let view = ConfigView {
            revision: page.revision,
            writers: page.writers,
            documents: page.documents,
            nodes: page.nodes,
        };
        Ok((view, page.more))
    }

    /// Follows the documents that are for this client's role, under the client's name, from the beginning. Nothing is asked
    /// before [`ConfigStream::next`].
    pub fn watch(&self) -> ConfigStream {
        ConfigStream::new(self.client.clone())
    }

    /// SHA-256 of the CA bundle that this client trusts, for acknowledgements.
    pub fn ca_hash(&self) -> Bytes {
        let ca = self.client.inner.nodes.config.tls.ca_pem();
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &ca);
        Bytes::copy_from_slice(hash.as_ref())
    }
}
