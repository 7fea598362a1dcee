//! Whom to ask for what the control group's leader answers.

use tonic::transport::Channel;

use super::{ASK_GIVE_UP, Asked, CallError, QueueClient, RETRY_PAUSE};
use crate::v1::NotLeader;

impl QueueClient {
    /// Where the control group's leader is looked for: as known, and every second time at the next of all nodes.
    pub(super) fn control_address(&self, turn: usize) -> String {
        let view = self.view();
        let known = view.leader_of_group(0).filter(|_| turn.is_multiple_of(2));
        known.map(str::to_owned).unwrap_or_else(|| {
            let all = view.addresses(&self.inner.nodes.config.endpoints);
            all.get(turn % all.len().max(1))
                .cloned()
                .unwrap_or_default()
        })
    }

    /// Asks the control group's leader, whoever that is by then. Everything that is asked so may be asked twice, so an
    /// answer that was lost is no problem.
    pub(super) async fn ask_control<R, F>(
        &self,
        call: impl Fn(Channel) -> F,
        redirect: impl Fn(&R) -> Option<&NotLeader>,
    ) -> Result<R, CallError>
    where
        F: Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    {
        let until = tokio::time::Instant::now() + ASK_GIVE_UP;
        let mut hint: Option<String> = None;
        let mut last = String::new();
        let mut turn = 0_usize;
        while tokio::time::Instant::now() < until {
            let address = hint.take().unwrap_or_else(|| self.control_address(turn));
            turn += 1;
            match self.ask_node(&address, &call).await {
                Ok(answer) => match redirect(&answer) {
                    None => return Ok(answer),
                    Some(not_leader) => {
                        last = format!("{address} does not lead the control group");
                        let to = &not_leader.leader_address;
                        hint = (!to.is_empty()).then(|| to.clone());
                    }
                },
                Err(Asked::Never(error)) => return Err(error),
                Err(Asked::Again(why)) => last = why,
            }
            if turn > 1 {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        Err(CallError::GaveUp {
            seconds: ASK_GIVE_UP.as_secs(),
            last,
        })
    }
}
