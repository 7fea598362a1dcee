//! Text for people: columns that line up, times and sizes that can be read.

/// Rows under a heading, columns as wide as they must be, two spaces between.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|text| text.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let heading = heading.iter().map(|text| (*text).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A time span in its two largest units: `3d 4h`, `12m 5s`, `8s`.
pub fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// A time seen from now: `in 5m 0s`, `3s ago`.
pub fn from_now(at_ms: u64, now_ms: u64) -> String {
    match at_ms > now_ms {
        true => format!("in {}", span(at_ms - now_ms)),
        false => format!("{} ago", span(now_ms - at_ms)),
    }
}

/// A number of octets in the unit that suits it.
pub fn size(octets: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = octets as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{octets} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

/// Takes out what would move a terminal's cursor or break a line: replies and addresses come from strangers.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".into(), "1".into()],
            vec!["long name".into(), "22".into()],
        ];
        assert_eq!(
            table(&["NAME", "N"], &rows),
            "NAME       N\na          1\nlong name  22\n"
        );
    }

    #[test]
    fn times_and_sizes_can_be_read() {
        assert_eq!(span(8_999), "8s");
        assert_eq!(span(725_000), "12m 5s");
        assert_eq!(span(273_600_000), "3d 4h");
        assert_eq!(from_now(5_000, 2_000), "in 3s");
        assert_eq!(from_now(2_000, 5_000), "3s ago");
        assert_eq!(
            (size(1023), size(1536)),
            ("1023 B".into(), "1.5 KiB".into())
        );
        assert_eq!(plain("a\x1b[2Jb"), "a?[2Jb");
    }
}
