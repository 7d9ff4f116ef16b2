//! How an entry is written in `contents.json`.

use lifeboat::entry::Entry;
use serde_json::{Value, json};

/// Bytes that need not be text.
fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// `content` of a file.
pub fn line(entry: &Entry, content: Option<&[u8]>) -> Value {
    let xattrs = entry.xattrs.iter().flatten().map(|x| (text(&x.name), Value::from(text(&x.value))));
    json!({
        "path": text(&entry.path),
        "kind": format!("{:?}", entry.kind),
        "mode": format!("{:o}", entry.mode),
        "owner": [entry.uid, entry.gid],
        "mtime_ns": entry.mtime_ns,
        "size": entry.size,
        "link": entry.link.as_deref().map(text),
        "rdev": entry.rdev,
        "xattrs": xattrs.collect::<serde_json::Map<_, _>>(),
        "sparse": entry.sparse,
        "blake3": content.map(|bytes| blake3::hash(bytes).to_string()),
    })
}
