//! Dates in headers (RFC 5322 section 3.3). The instant comes in as an argument; zone is always UTC.

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use jiff::tz::TimeZone;

/// `Tue, 14 Nov 2023 22:13:20 +0000` for milliseconds since the Unix epoch. What lies beyond the year 9999 is printed as the
/// epoch, for no clock says it.
pub fn date(unix_millis: u64) -> String {
    let timestamp = i64::try_from(unix_millis)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let zoned = timestamp
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned(TimeZone::UTC);
    DateTimePrinter::new()
        .zoned_to_string(&zoned)
        .unwrap_or_else(|_| "Thu, 1 Jan 1970 00:00:00 +0000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_those_of_rfc_5322() {
        assert_eq!(date(1_700_000_000_999), "Tue, 14 Nov 2023 22:13:20 +0000");
        assert_eq!(date(0), "Thu, 1 Jan 1970 00:00:00 +0000");
        assert_eq!(date(u64::MAX), date(0));
    }
}
