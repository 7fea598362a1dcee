//! Other people's address cases (isemail by Dominic Sayers, see `testdata/isemail.LICENSE`), taken as SMTP paths: what is
//! an error there, or an address only in a header, is refused; what RFC 5321 allows is taken.

use mail::Mailbox;

/// The text of an element of one case.
fn element<'a>(case: &'a str, name: &str) -> &'a str {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    case.split_once(&open)
        .and_then(|(_, rest)| rest.split_once(&close))
        .map_or("", |(text, _)| text)
}

/// Entities, and control characters that XML cannot hold and the suite writes as U+2400 and above.
fn text(xml: &str) -> String {
    let mut out = String::new();
    let mut rest = xml;
    while let Some((before, entity)) = rest.split_once('&') {
        let (name, after) = entity.split_once(';').unwrap();
        out.push_str(before);
        out.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            _ => {
                let hex = name
                    .strip_prefix("#x")
                    .unwrap_or_else(|| panic!("entity {name}"));
                char::from_u32(u32::from_str_radix(hex, 16).unwrap()).unwrap()
            }
        });
        rest = after;
    }
    out.push_str(rest);
    out.chars()
        .map(|c| match c {
            '\u{2400}'..='\u{241f}' => char::from_u32(c as u32 - 0x2400).unwrap(),
            c => c,
        })
        .collect()
}

#[test]
fn cases_of_isemail() {
    let suite = include_str!("../testdata/isemail-tests.xml");
    let (mut taken, mut refused, mut wrong) = (0, 0, Vec::new());
    for case in suite.split("<test id=").skip(1) {
        let (category, diagnosis) = (element(case, "category"), element(case, "diagnosis"));
        let expected = match category {
            // Longer than everybody must take, and taken: see `limits::MAILBOX_BYTES_MAX`.
            _ if diagnosis == "ISEMAIL_RFC5322_LOCAL_TOOLONG" => true,
            "ISEMAIL_VALID_CATEGORY" | "ISEMAIL_RFC5321" | "ISEMAIL_DNSWARN" => true,
            "ISEMAIL_ERR" | "ISEMAIL_RFC5322" => false,
            // Comments and folding are no matter of SMTP.
            _ => continue,
        };
        let address = text(element(case, "address"));
        let result = Mailbox::parse(&address, true);
        match expected {
            true => taken += 1,
            false => refused += 1,
        }
        if result.is_ok() != expected {
            wrong.push(format!("{diagnosis} {address:?}: {result:?}"));
        }
        if let Ok(mailbox) = result {
            let printed = mailbox.to_string();
            assert_eq!(
                Mailbox::parse(&printed, true),
                Ok(mailbox),
                "the canonical form is stable"
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(taken > 30 && refused > 80, "{taken} {refused}");
}
