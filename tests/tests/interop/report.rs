//! Reads a delivery report as RFC 3464 describes it, from a file of a Maildir.

use anyhow::{Context, Result, ensure};

/// A field's name and value.
type Field = (String, String);

/// A report: three parts, of which the second is that of RFC 3464.
pub struct Report {
    /// Of the message that carries it.
    pub return_path: String,
    /// Names and values of the delivery-status part, unfolded, in order.
    fields: Vec<Field>,
    /// How many recipients it tells of.
    pub recipients: usize,
    /// The third part.
    pub original: String,
}

impl Report {
    /// Reads it.
    ///
    /// # Errors
    /// What of it is against the RFCs.
    pub fn parse(message: &[u8]) -> Result<Report> {
        let text = String::from_utf8(message.to_vec()).context("a report is text")?;
        let (header, body) = text.split_once("\n\n").context("no header")?;
        let header = fields(header);
        let content_type = find(&header, "Content-Type").context("no Content-Type")?;
        let lower = content_type.to_ascii_lowercase();
        ensure!(
            lower.starts_with("multipart/report") && lower.contains("report-type=delivery-status"),
            "Content-Type: {content_type}"
        );
        ensure!(find(&header, "MIME-Version").is_some(), "no MIME-Version");
        for needed in ["From", "Date", "Subject", "Message-ID", "To"] {
            ensure!(find(&header, needed).is_some(), "no {needed}");
        }
        let boundary = boundary(&content_type).context("no boundary")?;
        let parts = parts(body, &boundary)?;
        ensure!(parts.len() == 3, "{} parts", parts.len());
        let kinds: Vec<String> = parts.iter().map(|(header, _)| kind(header)).collect();
        ensure!(kinds[0] == "text/plain", "the first part is {}", kinds[0]);
        ensure!(
            ["message/delivery-status", "message/global-delivery-status"]
                .contains(&kinds[1].as_str()),
            "the second part is {}",
            kinds[1]
        );
        ensure!(
            [
                "text/rfc822-headers",
                "message/rfc822",
                "message/global-headers"
            ]
            .contains(&kinds[2].as_str()),
            "the third part is {}",
            kinds[2]
        );
        let groups: Vec<&str> = parts[1]
            .1
            .split("\n\n")
            .filter(|group| !group.trim().is_empty())
            .collect();
        let all = groups.iter().flat_map(|group| fields(group)).collect();
        Ok(Report {
            return_path: find(&header, "Return-Path").context("no Return-Path")?,
            fields: all,
            recipients: groups.len() - 1,
            original: parts[2].1.clone(),
        })
    }

    /// A field of the delivery-status part must begin so; a space after a semicolon does not matter.
    pub fn must_say(&self, name: &str, value: &str) -> Result<()> {
        let plain = |text: &str| text.replace("; ", ";").to_ascii_lowercase();
        let said = find(&self.fields, name);
        ensure!(
            said.as_deref()
                .is_some_and(|said| plain(said).starts_with(&plain(value))),
            "{name} should be {value} and is {said:?}; all fields: {:?}",
            self.fields
        );
        Ok(())
    }
}

/// Names and unfolded values of a header block.
fn fields(block: &str) -> Vec<Field> {
    let mut fields: Vec<Field> = Vec::new();
    for line in block.lines().filter(|line| !line.is_empty()) {
        if let (true, Some((_, value))) = (line.starts_with([' ', '\t']), fields.last_mut()) {
            value.push(' ');
            value.push_str(line.trim());
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    fields
}

fn find(fields: &[Field], wanted: &str) -> Option<String> {
    fields
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
        .map(|(_, value)| value.clone())
}

fn boundary(content_type: &str) -> Option<String> {
    let (_, rest) = content_type.split_once("boundary=")?;
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().map(str::to_owned),
        None => rest.split([';', ' ']).next().map(str::to_owned),
    }
}

/// Headers and contents of the parts.
fn parts(body: &str, boundary: &str) -> Result<Vec<(Vec<Field>, String)>> {
    let (parts, _) = body
        .split_once(&format!("\n--{boundary}--"))
        .context("the last boundary is missing")?;
    let line = format!("\n--{boundary}\n");
    let whole = format!("\n{parts}\n");
    let parts = whole.split(&line).skip(1);
    parts
        .map(|part| {
            // A part without a header begins with the empty line.
            let (header, content) = part.split_once("\n\n").context("a part has no header")?;
            Ok((fields(header), content.to_owned()))
        })
        .collect()
}

fn kind(header: &[Field]) -> String {
    let kind = find(header, "Content-Type").unwrap_or_else(|| "text/plain".to_owned());
    let kind = kind.split(';').next().unwrap_or_default();
    kind.trim().to_ascii_lowercase()
}
