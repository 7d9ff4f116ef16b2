//! Standard output, and numbers as people read them.

use super::fault::Failure;
use crate::entry::Problem;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// The moment it is now.
#[expect(clippy::disallowed_methods, reason = "the edge asks the clock")]
pub fn clock() -> Timestamp {
    Timestamp::now()
}

/// 16 random hexadecimal digits: the id of a run.
pub fn random_id() -> String {
    let mut bytes = [0; 8];
    // Without random numbers the id says nothing, and whatever needs keys will fail by itself.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A reader that has seen enough (`| head`) is no failure.
pub fn forgive_closed_pipe(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints text that ends with a line feed of its own, or none.
pub fn print(text: &str) -> Result<(), Failure> {
    write(&printable(text))
}

fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    forgive_closed_pipe(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Prints one JSON document.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string(value)?;
    text.push('\n');
    write(&text)
}

/// What a terminal would obey instead of showing it: a server, or whoever made a snapshot, may have put it there.
fn is_command(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Says something on standard error. Whoever reads may have gone.
pub fn tell(text: &str) {
    let _ = io::stderr().write_all(printable(text).as_bytes());
}

/// Text of several lines with nothing in it but what can be seen.
fn printable(text: &str) -> Cow<'_, str> {
    let hidden = |letter: char| is_command(letter) && !matches!(letter, '\n' | '\t');
    if !text.contains(hidden) {
        return text.into();
    }
    let shown = |letter: char| if hidden(letter) { letter.escape_default().to_string() } else { letter.to_string() };
    text.chars().map(shown).collect::<String>().into()
}

/// "1.2 GB": at most four signs and a unit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 9.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// Makes a file's name durable.
pub fn sync_name(file: &Path) -> io::Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// "1 pack", "2 packs".
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// "2026-03-01 12:00:00Z".
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Names are bytes; what is not printable text is shown escaped.
pub fn name(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.contains(is_command) { text.escape_debug().to_string() } else { text.into_owned() }
}

/// What did not come back, for programs.
pub fn problems_json(problems: &[Problem]) -> serde_json::Value {
    problems.iter().map(|p| json!({"path": String::from_utf8_lossy(&p.path), "text": p.text})).collect()
}

/// What did not come back, a line each, and no more than a person reads.
pub fn problems_text(problems: &[Problem]) -> String {
    let mut text: String = problems.iter().take(50).map(|p| format!("  {}: {}\n", name(&p.path), p.text)).collect();
    if problems.len() > 50 {
        text += &format!("  … and {} more (all with --json)\n", problems.len() - 50);
    }
    text
}

/// Columns as wide as their widest cell; the first row is the heading. A column whose heading begins with `>` is
/// aligned to the right.
pub fn table(rows: &[Vec<String>]) -> String {
    let Some(heading) = rows.first() else { return String::new() };
    let right: Vec<bool> = heading.iter().map(|h| h.starts_with('>')).collect();
    let shown = |cell: &str| cell.strip_prefix('>').unwrap_or(cell).to_owned();
    let mut rows: Vec<Vec<String>> = rows.to_vec();
    rows[0].iter_mut().for_each(|cell| *cell = shown(cell));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..right.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).zip(&right);
        let cells: Vec<_> = cells
            .map(|((cell, width), right)| if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (9_960, "10 kB"),
            (999_499, "999 kB"),
            (999_600, "1.0 MB"),
            (1_234_567_890, "1.2 GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [["NAME", ">SIZE"], ["a", "1"], ["bcdefg", "10000"]];
        let text = table(&rows.map(|row| row.map(str::to_owned).to_vec()));
        assert_eq!(text, "NAME     SIZE\na           1\nbcdefg  10000\n");
    }

    #[test]
    fn control_signs_do_not_reach_the_terminal() {
        assert_eq!(name(b"a\x1b[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(printable("a\x1b]52;c;eA==\x07\tb\r\n"), "a\\u{1b}]52;c;eA==\\u{7}\tb\\r\n");
        assert_eq!(printable("gepj.\u{202e}exe ü\n"), "gepj.\\u{202e}exe ü\n");
        assert_eq!(name("grün".as_bytes()), "grün");
    }
}
