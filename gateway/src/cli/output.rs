//! What the commands that call a gateway print: results on stdout, progress on stderr.

use std::io::Write as _;

use serde_json::Value;

use super::remote::{plain, plain_json};

/// Prints a line of a result. `false`: nobody reads it any more.
pub(super) fn line(text: &str) -> bool {
    writeln!(std::io::stdout(), "{text}").is_ok()
}

/// Prints a result as JSON.
pub(super) fn json(value: &Value) {
    line(&plain_json(&format!("{value:#}")));
}

/// Tells how it goes. Whether somebody hears it does not matter.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Tells how it goes in the place of what was told before.
pub(super) fn note_again(text: &str) {
    let _ = write!(std::io::stderr(), "\r{text}\u{1b}[K");
}

/// Prints rows under a heading, each column as wide as it must be.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let heading: Vec<String> = heading.iter().map(|&cell| cell.to_owned()).collect();
    let width = |column: usize| {
        let cells = std::iter::once(&heading).chain(&rows).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    for row in std::iter::once(&heading).chain(&rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        if !line(cells.join("  ").trim_end()) {
            return;
        }
    }
}

/// A value as a cell: texts bare, nothing for null.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{}.{} KB", bytes / 1_000, bytes % 1_000 / 100),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

/// A point in time, in milliseconds since the Unix epoch, as RFC 3339 in UTC; nothing for null.
pub(super) fn time(at_ms: &Value) -> String {
    let Some(at_ms) = at_ms.as_u64() else { return String::new() };
    let (seconds, millis) = (at_ms / 1_000, at_ms % 1_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The date of a day since 1970-01-01, by eras of 400 years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time_are_read_as_people_write_them() {
        assert_eq!(time(&0.into()), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(&951_782_399_999_u64.into()), "2000-02-28T23:59:59.999Z");
        assert_eq!(time(&951_782_400_000_u64.into()), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(&1_795_376_337_042_u64.into()), "2026-11-22T19:38:57.042Z");
        assert_eq!(time(&Value::Null), "");
    }

    #[test]
    fn bytes_have_a_unit() {
        assert_eq!([size(999), size(1_500), size(12_345_678)], ["999 B", "1.5 KB", "12.3 MB"]);
    }
}
