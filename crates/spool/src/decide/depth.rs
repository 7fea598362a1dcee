//! How much mail a shard holds, for `/metrics`. Its leader says it and nobody else, so a sum over all nodes counts nothing twice.

use queue::ShardState;

/// Of one leader; when it goes, its node says that it holds nothing.
pub(super) struct Depth {
    leads: metrics::Gauge,
    messages: metrics::Gauge,
    items: [metrics::Gauge; 3],
}

impl Depth {
    pub(super) fn new(group: u32) -> Depth {
        let group = group.to_string();
        let items = |state: &'static str| metrics::gauge!("postroad_queue_items_count", "group" => group.clone(), "state" => state);
        Depth {
            leads: metrics::gauge!("postroad_group_leader", "group" => group.clone()),
            messages: metrics::gauge!("postroad_queue_messages_count", "group" => group.clone()),
            items: [items("waiting"), items("leased"), items("held")],
        }
    }

    /// Also that it leads: where several replicas share a process, another may have ceased to since.
    pub(super) fn show(&self, shard: &ShardState) {
        self.leads.set(1.0);
        self.count(shard);
    }

    fn count(&self, shard: &ShardState) {
        self.messages.set(shard.messages as f64);
        let counts = [shard.waiting, shard.leased, shard.held];
        for (gauge, count) in self.items.iter().zip(counts) {
            gauge.set(count as f64);
        }
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        self.leads.set(0.0);
        self.count(&ShardState::default());
    }
}
