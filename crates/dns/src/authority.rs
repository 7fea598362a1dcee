//! What the servers of a zone say themselves, each of them: a record that one of two servers has not got yet is not there for
//! half of the world.
//!
//! A server that gives no answer, or none that it stands for, says nothing of the record: [`TxtAnswer::TempFail`].

use std::net::SocketAddr;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::task::JoinSet;

use crate::exchange;
use crate::network::{Missing, Network};
use crate::{AddressAnswer, Error};

/// Servers of one zone that are asked; the root has 13, and no zone needs more.
const SERVERS_MAX: usize = 13;
/// Addresses of one server that are tried until one answers.
const ADDRESSES_MAX: usize = 4;
/// Aliases (CNAME) that are followed one after another.
const ALIASES_MAX: u8 = 8;
/// Where name servers are.
const DNS_PORT: u16 = 53;

/// What was said of the TXT records of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxtAnswer {
    /// They are there.
    Found {
        /// The text of each, its strings joined as RFC 6376 section 3.6.2.2 wants it.
        texts: Vec<String>,
        /// Time to live, seconds.
        ttl: u32,
    },
    /// There is none, or not even the name.
    Missing,
    /// No answer that counts was to be had; the text says why. Says nothing of the records.
    TempFail(String),
}

/// Asks the servers of zones. Nothing is remembered: who asks wants to know how it is now.
#[derive(Debug)]
pub struct Authorities {
    network: Network,
    port: u16,
}

impl Authorities {
    /// Finds servers by the name servers of `/etc/resolv.conf`.
    ///
    /// # Errors
    /// [`Error::System`] when the file cannot be used.
    pub fn system() -> Result<Authorities, Error> {
        Ok(Authorities {
            network: Network::system_without_cache()?,
            port: DNS_PORT,
        })
    }

    /// Finds servers by these resolvers.
    ///
    /// # Errors
    /// [`Error::Build`] when there is none, or the library refuses them.
    pub fn with_name_servers(servers: &[SocketAddr]) -> Result<Authorities, Error> {
        Ok(Authorities {
            network: Network::without_cache(servers)?,
            port: DNS_PORT,
        })
    }

    /// The servers of zones are at another port: in tests.
    pub fn at_port(mut self, port: u16) -> Authorities {
        self.port = port;
        self
    }

    /// The TXT records of a name (A-labels, without final dot) as the resolvers have them, which may be as old as their time
    /// to live.
    pub async fn txt_by_resolver(&self, name: &str) -> TxtAnswer {
        self.network.txt(name).await
    }

    /// The TXT records of a name at every server of its zone, each with its server's name. Never empty: when it cannot be
    /// found out which servers there are, that is the one answer.
    pub async fn txt(&self, name: &str) -> Vec<(String, TxtAnswer)> {
        match Name::from_ascii(name) {
            Ok(mut name) => {
                name.set_fqdn(true);
                self.follow(&name, ALIASES_MAX).await
            }
            Err(_) => vec![(name.to_owned(), TxtAnswer::Missing)],
        }
    }

    async fn follow(&self, name: &Name, aliases: u8) -> Vec<(String, TxtAnswer)> {
        let servers = match self.servers(name).await {
            Ok(servers) => servers,
            Err(why) => return vec![(name.to_string(), TxtAnswer::TempFail(why))],
        };
        let mut answers = Vec::new();
        let mut targets: Vec<Name> = Vec::new();
        for (server, said) in self.ask_all(servers, name).await {
            match said {
                Said::Answer(answer) => answers.push((server, answer)),
                Said::Alias(target) if !targets.contains(&target) => targets.push(target),
                Said::Alias(_) => {}
            }
        }
        for target in targets {
            if aliases == 0 {
                let why = format!("more than {ALIASES_MAX} aliases follow one another");
                answers.push((target.to_string(), TxtAnswer::TempFail(why)));
                continue;
            }
            answers.extend(Box::pin(self.follow(&target, aliases - 1)).await);
        }
        answers
    }

    /// Names of the servers of the zone that a name is in: the nearest name upwards that has any.
    async fn servers(&self, name: &Name) -> Result<Vec<Name>, String> {
        let mut apex = name.clone();
        while !apex.is_root() {
            match self.network.records(&apex, RecordType::NS).await {
                Ok(lookup) => {
                    let own = lookup.answers().iter().filter(|record| record.name == apex);
                    let servers: Vec<Name> = own
                        .filter_map(|record| match &record.data {
                            RData::NS(server) => Some(server.0.clone()),
                            _ => None,
                        })
                        .take(SERVERS_MAX)
                        .collect();
                    // None of its own: an alias, whose servers are those of the zone above.
                    if !servers.is_empty() {
                        return Ok(servers);
                    }
                }
                Err(Missing::Records | Missing::Name) => {}
                Err(Missing::Answer(why)) => return Err(format!("servers of {apex}: {why}")),
            }
            apex = apex.base_name();
        }
        Err(format!("no servers of {name} are known"))
    }

    /// Asks all servers at once.
    async fn ask_all(&self, servers: Vec<Name>, name: &Name) -> Vec<(String, Said)> {
        let mut asked = JoinSet::new();
        let mut said: Vec<(String, Said)> = Vec::new();
        for server in servers {
            let host = server.to_ascii().trim_end_matches('.').to_owned();
            let none = |why: String| Said::Answer(TxtAnswer::TempFail(why));
            let addresses = match self.network.addresses(&host).await {
                AddressAnswer::Found(addresses) => addresses,
                AddressAnswer::NoAddress | AddressAnswer::NoDomain => {
                    said.push((host, none("it has no address".into())));
                    continue;
                }
                AddressAnswer::TempFail(why) => {
                    said.push((host, none(why)));
                    continue;
                }
            };
            let (name, port) = (name.clone(), self.port);
            asked.spawn(async move {
                let mut why = String::new();
                for address in addresses.into_iter().take(ADDRESSES_MAX) {
                    let server = SocketAddr::new(address, port);
                    match exchange::ask(server, &name, RecordType::TXT).await {
                        Ok(message) => match read(&message, &name) {
                            Said::Answer(TxtAnswer::TempFail(text)) => why = text,
                            said => return (host, said),
                        },
                        Err(text) => why = format!("{address}: {text}"),
                    }
                }
                (host, none(why))
            });
        }
        while let Some(one) = asked.join_next().await {
            // A task that panicked is a bug; the server then said nothing.
            said.extend(one.ok());
        }
        said.sort_by(|a, b| a.0.cmp(&b.0));
        said
    }
}

/// What one server said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Answer(TxtAnswer),
    /// The name is another one's alias, of which this server says nothing.
    Alias(Name),
}

/// What an answer means: only what the server stands for counts.
fn read(message: &Message, name: &Name) -> Said {
    let none = |why: String| Said::Answer(TxtAnswer::TempFail(why));
    match message.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        other => return none(format!("it answered {other}")),
    }
    if !message.metadata.authoritative {
        return none("it is named as a server of the zone, and is none".into());
    }
    let mut owner = name.clone();
    for _ in 0..ALIASES_MAX {
        let of_owner = message.answers.iter().filter(|record| record.name == owner);
        let mut texts = Vec::new();
        let mut alias = None;
        let mut ttl = u32::MAX;
        for record in of_owner {
            match &record.data {
                RData::TXT(txt) => {
                    texts.push(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned());
                    ttl = ttl.min(record.ttl);
                }
                RData::CNAME(target) => alias = Some(target.0.clone()),
                _ => {}
            }
        }
        match alias {
            _ if !texts.is_empty() => return Said::Answer(TxtAnswer::Found { texts, ttl }),
            Some(target) => owner = target,
            None if owner == *name => return Said::Answer(TxtAnswer::Missing),
            None => return Said::Alias(owner),
        }
    }
    none(format!("{name} is an alias in a circle"))
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::{MessageType, OpCode};
    use hickory_resolver::proto::rr::Record;
    use hickory_resolver::proto::rr::rdata::{CNAME, TXT};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn answer(code: ResponseCode, authoritative: bool, records: Vec<Record>) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.authoritative = authoritative;
        message.add_answers(records);
        message
    }

    fn txt(owner: &str, ttl: u32, parts: &[&str]) -> Record {
        let parts = parts.iter().map(|part| (*part).to_owned()).collect();
        Record::from_rdata(name(owner), ttl, RData::TXT(TXT::new(parts)))
    }

    fn alias(owner: &str, target: &str) -> Record {
        Record::from_rdata(name(owner), 60, RData::CNAME(CNAME(name(target))))
    }

    #[test]
    fn only_what_a_server_stands_for_says_that_a_record_is_missing() {
        let asked = name("s.test.");
        for (code, authoritative) in [
            (ResponseCode::ServFail, true),
            (ResponseCode::Refused, true),
            (ResponseCode::NoError, false),
            (ResponseCode::NXDomain, false),
        ] {
            let said = read(&answer(code, authoritative, Vec::new()), &asked);
            assert!(
                matches!(said, Said::Answer(TxtAnswer::TempFail(_))),
                "{code}, {authoritative}: {said:?}"
            );
        }
        for code in [ResponseCode::NoError, ResponseCode::NXDomain] {
            let said = read(&answer(code, true, Vec::new()), &asked);
            assert_eq!(said, Said::Answer(TxtAnswer::Missing));
        }
    }

    #[test]
    fn strings_are_joined_and_aliases_followed_within_an_answer_and_out_of_it() {
        let asked = name("s.test.");
        let records = vec![
            alias("s.test.", "t.test."),
            txt("t.test.", 300, &["v=DK", "IM1"]),
            txt("t.test.", 60, &["other"]),
            txt("u.test.", 1, &["a stranger's"]),
        ];
        assert_eq!(
            read(&answer(ResponseCode::NoError, true, records), &asked),
            Said::Answer(TxtAnswer::Found {
                texts: vec!["v=DKIM1".into(), "other".into()],
                ttl: 60
            })
        );
        let records = vec![alias("s.test.", "t.example.")];
        assert_eq!(
            read(&answer(ResponseCode::NoError, true, records), &asked),
            Said::Alias(name("t.example."))
        );
        let circle = vec![alias("s.test.", "t.test."), alias("t.test.", "s.test.")];
        let said = read(&answer(ResponseCode::NoError, true, circle), &asked);
        assert!(
            matches!(said, Said::Answer(TxtAnswer::TempFail(_))),
            "{said:?}"
        );
    }
}
