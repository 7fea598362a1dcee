//! What the servers of real zones say: zone cuts, aliases to other zones, long records, servers that are none.

use std::net::{IpAddr, Ipv4Addr};

use dns::{Authorities, TxtAnswer};

#[allow(
    dead_code,
    reason = "the operator's tests change records while it runs"
)]
#[path = "support/knot.rs"]
mod knot;

const SERVERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)),
];

/// Names of servers, and of the texts that they have.
fn shown(said: &[(String, TxtAnswer)]) -> Vec<String> {
    said.iter()
        .map(|(server, answer)| match answer {
            TxtAnswer::Found { texts, ttl } => {
                let texts: Vec<&str> = texts
                    .iter()
                    .map(|text| &text[..text.len().min(8)])
                    .collect();
                format!("{server} {} {ttl}", texts.join("|"))
            }
            TxtAnswer::Missing => format!("{server} missing"),
            TxtAnswer::TempFail(_) => format!("{server} silent"),
        })
        .collect()
}

#[tokio::test]
async fn each_server_of_the_nearest_zone_is_asked_and_aliases_are_followed_to_theirs() {
    let Some(port) = knot::port(&SERVERS) else {
        return;
    };
    let long = "x".repeat(250);
    let own = format!(
        "@ NS ns1.example.test.\n@ NS ns2.example.test.\nns1 A 127.0.0.1\nns2 A 127.0.0.2\n\
         here 300 TXT \"one\"\nlong 90 TXT {}\nalias CNAME there.other.test.\ninner CNAME here\n\
         sub NS ns1.example.test.\nbroken NS nowhere.example.test.\n",
        format!("\"{long}\" ").repeat(20)
    );
    let other = "@ NS ns.other.test.\nns A 127.0.0.2\nthere 120 TXT \"two\"\n";
    let sub = "@ NS ns1.example.test.\nbelow 30 TXT \"three\"\n";
    // Both know all zones, so that either is a resolver; the record of one of them has not reached the other.
    let first = [
        ("example.test", own.as_str()),
        ("other.test", other),
        ("sub.example.test", sub),
    ];
    let late = own.replace("here 300 TXT \"one\"\n", "");
    let second = [("example.test", late.as_str()), ("other.test", other)];
    let _first = knot::Knot::start(SERVERS[0], port, &first);
    let _second = knot::Knot::start(SERVERS[1], port, &second);
    let authorities = Authorities::with_name_servers(&[(SERVERS[0], port).into()])
        .expect("one resolver")
        .at_port(port);
    for (name, expected) in [
        (
            "here.example.test",
            &["ns1.example.test one 300", "ns2.example.test missing"][..],
        ),
        (
            "nobody.example.test",
            &["ns1.example.test missing", "ns2.example.test missing"],
        ),
        ("alias.example.test", &["ns.other.test two 120"]),
        ("inner.example.test", &["ns1.example.test one 300"][..]),
        ("below.sub.example.test", &["ns1.example.test three 30"]),
        // A referral to a server that nobody has is no answer, and never "there is none".
        (
            "x.broken.example.test",
            &["ns1.example.test silent", "ns2.example.test silent"],
        ),
    ] {
        let said = shown(&authorities.txt(name).await);
        assert_eq!(&said[..expected.len()], expected, "{name}: {said:?}");
    }
    // 5,000 octets come over TCP.
    for (_, said) in authorities.txt("long.example.test").await {
        let TxtAnswer::Found { texts, .. } = said else {
            panic!("{said:?}");
        };
        assert_eq!(texts, [long.repeat(20)]);
    }
}
