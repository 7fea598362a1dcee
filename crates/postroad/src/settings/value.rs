//! Values of settings that have a form of their own.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// A number of octets, as `64MiB`, `20G` or `1048576`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Octets(pub u64);

impl FromStr for Octets {
    type Err = String;

    fn from_str(text: &str) -> Result<Octets, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit: u64 = match &text[digits.len()..] {
            "" | "B" => 1,
            "k" | "K" | "KiB" | "Ki" => 1 << 10,
            "M" | "MiB" | "Mi" => 1 << 20,
            "G" | "GiB" | "Gi" => 1 << 30,
            "T" | "TiB" | "Ti" => 1 << 40,
            _ => return Err(format!("`{text}`: write a size like 512MiB or 20GiB")),
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit))
            .map(Octets)
            .ok_or_else(|| format!("`{text}`: write a size like 512MiB or 20GiB"))
    }
}

/// An address to listen on, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener(pub Option<SocketAddr>);

impl FromStr for Listener {
    type Err = String;

    fn from_str(text: &str) -> Result<Listener, String> {
        if text == "off" {
            return Ok(Listener(None));
        }
        let address = text
            .parse()
            .map_err(|_| format!("`{text}`: write ADDRESS:PORT, as 127.0.0.1:8025, or off"))?;
        Ok(Listener(Some(address)))
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("off"),
        }
    }
}

/// One of the first nodes: `ID=HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialNode {
    /// Its node id.
    pub id: u64,
    /// Where other replicas reach it.
    pub address: String,
}

impl FromStr for InitialNode {
    type Err = String;

    fn from_str(text: &str) -> Result<InitialNode, String> {
        let wrong = || format!("`{text}`: write ID=HOST:PORT, as 1=mail-1.example:7101");
        let (id, address) = text.split_once('=').ok_or_else(wrong)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        match (id.parse::<u32>(), port.parse::<u16>()) {
            (Ok(id @ 1..), Ok(1..)) if !host.is_empty() => Ok(InitialNode {
                id: id.into(),
                address: address.into(),
            }),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!("64MiB".parse(), Ok(Octets(64 << 20)));
        assert_eq!("20G".parse(), Ok(Octets(20 << 30)));
        assert_eq!("7".parse(), Ok(Octets(7)));
        for wrong in ["", "MiB", "1.5G", "12x", "99999999999T"] {
            assert!(wrong.parse::<Octets>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_initial_node_is_id_and_address() {
        let node: InitialNode = "2=[::1]:7101".parse().unwrap();
        assert_eq!((node.id, node.address.as_str()), (2, "[::1]:7101"));
        for wrong in [
            "",
            "1",
            "0=a:1",
            "1=a",
            "1=:5",
            "1=a:0",
            "x=a:1",
            "1=a:99999",
        ] {
            assert!(wrong.parse::<InitialNode>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn off_is_no_listener() {
        assert_eq!("off".parse(), Ok(Listener(None)));
        assert!("8025".parse::<Listener>().is_err());
    }
}
