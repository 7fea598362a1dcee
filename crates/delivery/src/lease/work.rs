//! What a leader gives: hand-outs, a lease session with what it kept, and the question whether an attempt still runs.

use proto::v1;
use v1::lease_request::What as Request;

use super::{Effect, Leases};
use crate::attempt::any_delivered;
use crate::hand::{Hand, Take};
use crate::item::ItemId;

impl Leases {
    pub(super) fn handout(
        &mut self,
        serial: u64,
        id: u32,
        handout: v1::Handout,
        hand: &mut Hand,
        out: &mut Vec<Effect>,
    ) {
        let bytes = crate::hand::weight(&handout);
        let shard = &self.shards[id as usize];
        let Some(item) = ItemId::from_wire(handout.item.as_ref()) else {
            return;
        };
        if shard.link != Some(serial) {
            // Its sender does not lead the shard any more, and may not know yet: stopped for a while, it hands out what
            // its successor has given and settled long ago. What of it still holds, the successor hands out again.
            self.returned(serial, 1, bytes);
            return;
        }
        if shard.session != Some(handout.session) {
            // Granted under a lease session that died here meanwhile.
            self.returned(serial, 1, bytes);
            out.push(Effect::Release {
                shard: id,
                item,
                token: handout.token,
                session: handout.session,
            });
            return;
        }
        match hand.take(item, id, serial, &handout) {
            Take::New => out.push(Effect::Work(id, Box::new(handout))),
            Take::Known => self.returned(serial, 1, bytes),
            Take::Refused => {
                self.returned(serial, 1, bytes);
                out.push(Effect::Release {
                    shard: id,
                    item,
                    token: handout.token,
                    session: handout.session,
                });
            }
        }
    }

    pub(super) fn opened(
        &mut self,
        serial: u64,
        id: u32,
        opened: &v1::SessionOpened,
        hand: &mut Hand,
        out: &mut Vec<Effect>,
    ) {
        let shard = &mut self.shards[id as usize];
        let (Some((sequence, asked)), true) = (shard.opening, shard.link == Some(serial)) else {
            return;
        };
        if sequence != opened.sequence {
            return;
        }
        shard.opening = None;
        shard.session = Some(opened.session);
        shard.last_keepalive = Some(asked);
        hand.open(id, opened.session, asked);
        self.repeat_busy(serial);
        tracing::info!(
            shard = id,
            session = opened.session,
            kept = opened.kept.len(),
            "lease session opened"
        );
        let mut recalled = self.recalled.remove(&id).unwrap_or_default();
        for kept in &opened.kept {
            let Some(item) = ItemId::from_wire(kept.item.as_ref()) else {
                continue;
            };
            hand.adopt(item, kept.token, opened.session);
            if let Some(at) = recalled.iter().position(|(known, _)| *known == item) {
                let (_, if_lost) = recalled.swap_remove(at);
                hand.settle(item, any_delivered(&if_lost.results));
                out.push(Effect::Recalled(v1::SettleRequest {
                    token: kept.token,
                    session: opened.session,
                    ..if_lost
                }));
            }
        }
        for (item, if_lost) in recalled {
            // A success counts whoever has the item now; what it says of the others the queue refuses as late.
            if any_delivered(&if_lost.results) {
                hand.settle(item, true);
                out.push(Effect::Recalled(if_lost));
            } else {
                out.push(Effect::Forgotten(item));
            }
        }
    }

    pub(super) fn still_working(
        &mut self,
        id: u32,
        asked: &v1::StillWorking,
        hand: &Hand,
        out: &mut Vec<Effect>,
    ) {
        let shard = &self.shards[id as usize];
        let (Some(session), Some(address)) = (shard.session, shard.leader.clone()) else {
            return;
        };
        let Some(item) = ItemId::from_wire(asked.item.as_ref()) else {
            return;
        };
        match hand.get(item).filter(|held| held.token == asked.token) {
            Some(held) => {
                let past_dot = held.stage >= crate::hand::Stage::PastDot;
                let items = vec![v1::HeldItem {
                    item: Some(item.to_wire()),
                    token: asked.token,
                    past_dot,
                }];
                out.push(Effect::Send(
                    address,
                    Request::Extend(v1::ExtendItems {
                        shard: id,
                        session,
                        items,
                    }),
                ));
            }
            None => out.push(Effect::Release {
                shard: id,
                item,
                token: asked.token,
                session,
            }),
        }
    }
}
