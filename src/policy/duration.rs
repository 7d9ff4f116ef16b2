//! Durations as people write them ("90s", "5m", "1h30m", "7d") and read them ("6 m 30 s").

use std::fmt;
use std::time::Duration;

const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// The text is not a duration; it is not repeated here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected whole numbers with the units d, h, m or s, the largest first, such as \"90s\", \"1h30m\" or \"7d\"")]
pub struct InvalidDuration;

/// # Errors
/// [`InvalidDuration`], also for an empty text, a unit used twice, and what does not fit.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let mut rest = text;
    let mut units = UNITS.iter();
    let mut seconds = 0_u64;
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let unit = after.get(..1).ok_or(InvalidDuration)?;
        let (_, size) = units.find(|(name, _)| *name == unit).ok_or(InvalidDuration)?;
        let number: u64 = number.parse().map_err(|_| InvalidDuration)?;
        seconds = number.checked_mul(*size).and_then(|n| seconds.checked_add(n)).ok_or(InvalidDuration)?;
        rest = &after[1..];
        if rest.is_empty() {
            // Longer than any calendar that times are reckoned in: an error here, not an overflow later.
            let fits = seconds <= 1_000 * 366 * 86_400;
            return if fits { Ok(Duration::from_secs(seconds)) } else { Err(InvalidDuration) };
        }
    }
}

/// Shows a duration to the second: "2 d", "6 m 30 s", "0 s".
#[derive(Clone, Copy, Debug)]
pub struct Shown(pub Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0, " ")
    }
}

/// Writes a duration as documents spell it: "2d", "6m30s", "0s".
#[must_use]
pub fn spell(duration: Duration) -> String {
    struct Spelled(Duration);
    impl fmt::Display for Spelled {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write(f, self.0, "")
        }
    }
    Spelled(duration).to_string()
}

/// `#[serde(with)]` for a duration as documents spell it.
pub mod text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use std::time::Duration;

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::spell(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        super::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }

    /// `#[serde(deserialize_with)]` for one that need not be given.
    pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        deserialize(deserializer).map(Some)
    }
}

fn write(f: &mut fmt::Formatter<'_>, duration: Duration, space: &str) -> fmt::Result {
    let mut rest = duration.as_secs();
    if rest == 0 {
        return write!(f, "0{space}s");
    }
    let mut first = true;
    for (unit, size) in UNITS {
        let count = rest / size;
        rest %= size;
        if count > 0 {
            write!(f, "{}{count}{space}{unit}", if first { "" } else { space })?;
            first = false;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("2h", 7_200), ("7d", 604_800), ("1h30m", 5_400), ("0s", 0)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        let wrong = [
            "",
            "5",
            "m",
            "5 m",
            "-5m",
            "+5m",
            "1.5h",
            "5min",
            "5M",
            "30m1h",
            "5m5m",
            "5m3",
            "٣m",
            "é",
            "99999999999999999999s",
            "9999999999999999d",
        ];
        for text in wrong {
            assert_eq!(parse(text), Err(InvalidDuration), "{text}");
        }
    }

    #[test]
    fn shows_what_people_read() {
        assert_eq!(Shown(Duration::from_secs(390)).to_string(), "6 m 30 s");
        assert_eq!(Shown(Duration::from_hours(48)).to_string(), "2 d");
        assert_eq!(Shown(Duration::ZERO).to_string(), "0 s");
    }

    proptest! {
        #[test]
        fn what_is_spelled_reads_back(seconds in 0_u64..1_000 * 366 * 86_400) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(parse(&spell(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,12}") {
            let _ = parse(&text);
        }
    }
}
