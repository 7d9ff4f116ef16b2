use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// Something wrong in a document: where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mistake {
    pub file: PathBuf,
    /// Counted from 1; `None` when the file as a whole is meant.
    pub line: Option<u64>,
    /// Path of the field in its document (`spec.retention.daily`); empty for the document as a whole.
    pub field: String,
    pub message: String,
}

impl Mistake {
    pub(super) fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.into(), line: None, field: String::new(), message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mistake {}

/// "allowed: daily, hourly; did you mean \"daily\"?": what may be written, and the nearest to what was.
pub(super) fn allowed<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().collect();
    if words.is_empty() {
        return "there are none".into();
    }
    let near = nearest(word, &words).map(|near| format!("; did you mean {near:?}?"));
    format!("allowed: {}{}", words.join(", "), near.unwrap_or_default())
}

/// The likeliest of `words`, if one is like enough.
pub fn nearest<'a>(word: &str, words: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    let near = words.iter().map(|w| (strsim::jaro_winkler(&word, &w.to_lowercase()), *w));
    near.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.8).map(|(_, w)| w)
}
