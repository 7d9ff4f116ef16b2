//! Objects as YAML with sorted keys. What is written is read back at once: no spelling of a value may change it.

use serde_json::Value;
use std::collections::BTreeMap;

/// # Errors
/// The object cannot be written so that it reads back the same. The text does not repeat it.
pub fn write(object: &Value) -> Result<String, String> {
    // Folded lines read worse in a diff, and break differently when one word changes.
    let plain = serde_saphyr::ser_options! { folded_wrap_chars: 1 << 30 };
    let quoted = serde_saphyr::ser_options! { quote_all: true };
    let sorted = Sorted(object);
    for options in [plain, quoted] {
        if let Ok(text) = serde_saphyr::to_string_with_options(&sorted, options)
            && read(&text).is_ok_and(|back| back == *object)
        {
            return Ok(text);
        }
    }
    // JSON is YAML.
    let text = format!("{object}\n");
    if read(&text).is_ok_and(|back| back == *object) { Ok(text) } else { Err("it has no YAML form".to_owned()) }
}

/// # Errors
/// The place of the mistake; the text is not repeated.
pub fn read(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        budget: None,
        merge_keys: serde_saphyr::MergeKeyPolicy::AsOrdinary,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| match error.location() {
        Some(at) => format!("line {} is not as it should be", at.line()),
        None => "it is not YAML".to_owned(),
    })
}

/// Keeps keys in order whatever map the JSON parser uses.
struct Sorted<'a>(&'a Value);

impl serde::Serialize for Sorted<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(map) => {
                let map: BTreeMap<_, _> = map.iter().map(|(key, value)| (key, Sorted(value))).collect();
                serializer.collect_map(map)
            }
            Value::Array(list) => serializer.collect_seq(list.iter().map(Sorted)),
            scalar => scalar.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn texts_that_look_like_something_else_stay_texts() {
        let words = [
            "",
            " ",
            "~",
            "null",
            "yes",
            "No",
            "on",
            "y",
            "n",
            "true",
            "1",
            "1.0",
            "1e3",
            "0x1F",
            "0o14",
            "0777",
            "1_000",
            "12:30:00",
            "2001-01-01",
            "<<",
            "=",
            "-",
            "- a",
            "a: b",
            "a #b",
            "#",
            "*a",
            "&a",
            "!a",
            "|",
            ">",
            "%",
            "@",
            "`",
            "'",
            "\"",
            "a\nb\n",
            "a\n\n",
            "\n",
            " a\nb",
            "a\tb",
            "\ta\nb",
            "a \nb",
            "\u{85}",
            "\u{2028}",
            "\u{feff}x",
            "\r\n",
            "a\r\nb",
            "\u{0}",
            "\u{7f}",
            ".inf",
            ".nan",
            "---",
            "...",
            "--- a\nb",
            "{}",
            "[]",
            "key:",
            "? a",
            "a\n---\nb",
        ];
        for word in words {
            let long = word.repeat(60);
            let value = json!({"text": word, word: 1, "list": [word, [word]], "long": long});
            let text = write(&value).unwrap();
            assert_eq!(read(&text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn keys_are_sorted_and_lines_kept() {
        let value =
            json!({"b": "one\ntwo\n", "a": {"z": [], "y": {}, "x": [{"k": "v", "a": 1}]}, "c": "word ".repeat(30)});
        let text = write(&value).unwrap();
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part} in {text}"));
        assert!(at("a:\n") < at("b: |\n") && at("b: |\n") < at("c: "), "{text}");
    }

    fn anything() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC*".prop_map(Value::from),
            "[ -~\n\t]{0,40}".prop_map(Value::from),
            any::<f64>().prop_filter("JSON", |f| f.is_finite()).prop_map(Value::from),
        ];
        scalar.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec(("[ -~\n]{0,12}", inner), 0..6)
                    .prop_map(|pairs| pairs.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn everything_reads_back(value in anything()) {
            let object = json!({"v": value});
            prop_assert_eq!(read(&write(&object).unwrap()).unwrap(), object);
        }
    }
}
