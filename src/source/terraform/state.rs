//! What must be known of a state file (version 4, Terraform 0.12 and later, and OpenTofu's encrypted form).

use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Larger ones are not states.
pub(super) const MAX_STATE: usize = 256 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// A UUID that a state keeps for life.
    pub lineage: String,
    /// Grows with every change.
    pub serial: u64,
    /// Managed and data resources; 0 where they are encrypted.
    pub resources: u64,
    /// By OpenTofu, which keeps lineage and serial inside too: they cannot be changed from outside.
    pub encrypted: bool,
}

#[derive(Deserialize)]
struct Fields {
    version: Option<u64>,
    lineage: String,
    serial: u64,
    #[serde(default)]
    resources: Vec<serde::de::IgnoredAny>,
    encrypted_data: Option<serde::de::IgnoredAny>,
}

impl State {
    /// # Errors
    /// Why it is no state.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() {
            return Err("it is empty".into());
        }
        // The text itself may hold secrets: of serde's message only the place is told.
        let fields: Fields = serde_json::from_slice(bytes)
            .map_err(|why| format!("it is not a state: line {}, column {}", why.line(), why.column()))?;
        match fields.version {
            Some(4) => {}
            None if fields.encrypted_data.is_some() => {}
            Some(other) => return Err(format!("it has version {other}, and 4 is supported")),
            None => return Err("it has no version".into()),
        }
        if fields.lineage.is_empty() {
            return Err("it has no lineage".into());
        }
        let encrypted = fields.encrypted_data.is_some();
        Ok(Self { lineage: fields.lineage, serial: fields.serial, resources: fields.resources.len() as u64, encrypted })
    }
}

/// The same state under another serial. All else keeps its bytes.
///
/// # Errors
/// It is no JSON object.
pub(super) fn with_serial(bytes: &[u8], serial: u64) -> Result<Vec<u8>, serde_json::Error> {
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(bytes)?;
    fields.insert("serial".into(), RawValue::from_string(serial.to_string())?);
    let mut text = serde_json::to_vec(&fields)?;
    text.push(b'\n');
    Ok(text)
}

/// Whether two states say the same, whatever their serials.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    let zero = |bytes: &[u8]| {
        let mut value = serde_json::from_slice::<serde_json::Value>(bytes).ok()?;
        *value.get_mut("serial")? = 0.into();
        Some(value)
    };
    zero(a).is_some_and(|a| zero(b) == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &[u8] = br#"{"version": 4, "lineage": "l", "serial": 7, "n": 1234567890123456789012345678901234567890,
        "resources": [{"a": 1.10}]}"#;

    #[test]
    fn only_the_serial_changes() {
        let next = with_serial(STATE, 9).unwrap();
        let text = String::from_utf8(next.clone()).unwrap();
        assert!(text.contains("1234567890123456789012345678901234567890") && text.contains("1.10"), "{text}");
        assert_eq!(State::parse(&next), Ok(State { lineage: "l".into(), serial: 9, resources: 1, encrypted: false }));
        assert!(same(STATE, &next));
        assert!(!same(STATE, &text.replace("1.10", "1.2").into_bytes()));
    }

    #[test]
    fn what_is_no_state_is_refused_without_its_text() {
        for (text, why) in [
            ("", "it is empty"),
            ("{\"secret\": tell}", "it is not a state: line 1, column 13"),
            ("{\"version\": 3, \"lineage\": \"l\", \"serial\": 1}", "it has version 3, and 4 is supported"),
            ("{\"lineage\": \"l\", \"serial\": 1}", "it has no version"),
            ("{\"version\": 4, \"lineage\": \"\", \"serial\": 1}", "it has no lineage"),
        ] {
            assert_eq!(State::parse(text.as_bytes()), Err(why.to_owned()), "{text}");
        }
        let encrypted =
            br#"{"lineage": "l", "serial": 3, "meta": {}, "encrypted_data": "xyz", "encryption_version": "v0"}"#;
        assert_eq!(
            State::parse(encrypted),
            Ok(State { lineage: "l".into(), serial: 3, resources: 0, encrypted: true })
        );
    }
}
