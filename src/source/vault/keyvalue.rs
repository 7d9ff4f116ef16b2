//! Key-value engines of both versions, by their HTTP API. Values are kept as the text that the server sent: no number
//! loses a digit.

use super::client::Client;
use crate::source::http::{self, Failure};
use crate::source::{Context, SourceError};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A secret's keys and values. Without `Debug`: values are not for logs.
pub(super) type Fields = BTreeMap<String, Box<RawValue>>;

/// Where one is mounted, and whether it keeps versions (KV 2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Engine {
    /// With a slash at its end.
    pub mount: String,
    pub versioned: bool,
}

/// What there is at a path. Versions are 0 where none are kept.
pub(super) enum Held {
    Nothing,
    /// The newest version has been deleted.
    Deleted(u64),
    Secret(Fields, u64),
}

impl Held {
    pub fn version(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Deleted(version) | Self::Secret(_, version) => *version,
        }
    }
}

/// How a secret of a versioned engine is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_metadata: Option<BTreeMap<String, String>>,
    pub max_versions: u64,
    pub cas_required: bool,
    pub delete_version_after: String,
}

impl Settings {
    pub fn is_usual(&self) -> bool {
        let forever = matches!(self.delete_version_after.as_str(), "" | "0s");
        self.custom_metadata.as_ref().is_none_or(BTreeMap::is_empty)
            && self.max_versions == 0
            && !self.cas_required
            && forever
    }
}

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<T>,
}

#[derive(Deserialize)]
struct Versioned {
    data: Option<Fields>,
    metadata: Version,
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

impl Engine {
    /// The engine that serves an API path.
    pub fn of(context: &Context, client: &Client, path: &str) -> Result<Self, SourceError> {
        let request = client.request(Method::GET, &format!("sys/internal/ui/mounts/{}", encoded(path)));
        let attempt = format!("find the engine of {path} in");
        let need = "is a key-value engine mounted there (no other is opened), and may the login read the path?";
        let answer = http::json(context, request)?.map_err(|failure| client.failed(&attempt, &failure, need))?;
        let answer = &answer["data"];
        let kind = answer["type"].as_str().unwrap_or_default();
        match answer["path"].as_str() {
            Some(mount) if matches!(kind, "kv" | "generic") => {
                Ok(Self { mount: mount.to_owned(), versioned: answer["options"]["version"] == "2" })
            }
            _ => Err(client.error(&attempt, format!("it is of type {kind}"), "only key-value secrets come one by one")),
        }
    }

    /// What names a secret in this engine; of a folder, with a slash at its end.
    pub fn within<'a>(&self, path: &'a str) -> Result<&'a str, String> {
        let below = path.strip_prefix(&self.mount).unwrap_or_default();
        if !self.versioned {
            return Ok(below);
        }
        let wanted = || format!("{} keeps versions: its secrets have paths such as {0}data/NAME", self.mount);
        below.strip_prefix("data/").ok_or_else(wanted)
    }

    /// The API path of a secret.
    pub fn path(&self, name: &str) -> String {
        format!("{}{}{name}", self.mount, if self.versioned { "data/" } else { "" })
    }

    fn metadata(&self, name: &str) -> String {
        format!("{}{}{name}", self.mount, if self.versioned { "metadata/" } else { "" })
    }

    /// The secrets below a folder, at most `limit` and one more.
    pub fn below(
        &self,
        context: &Context,
        client: &Client,
        folder: &str,
        limit: usize,
    ) -> Result<Vec<String>, SourceError> {
        let list = Method::from_bytes(b"LIST").unwrap_or(Method::GET);
        let (mut folders, mut names) = (vec![folder.to_owned()], Vec::new());
        while let Some(folder) = folders.pop() {
            let request = client.request(list.clone(), &encoded(&self.metadata(&folder)));
            let answer = match http::json(context, request)? {
                Ok(answer) => answer,
                Err(failure) if failure.status == Some(StatusCode::NOT_FOUND) => continue,
                Err(failure) => return Err(client.failed(&format!("list {} in", self.path(&folder)), &failure, "")),
            };
            for key in answer["data"]["keys"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let name = format!("{folder}{key}");
                if key.ends_with('/') { folders.push(name) } else { names.push(name) }
            }
            if names.len() > limit {
                break;
            }
        }
        names.sort();
        Ok(names)
    }

    pub fn read(&self, context: &Context, client: &Client, name: &str) -> Result<Held, SourceError> {
        let path = self.path(name);
        let attempt = format!("read {path} in");
        let fail = |failure: &Failure| {
            let need = format!("the login's policy needs: path \"{path}\" {{ capabilities = [\"read\"] }}");
            client.failed(&attempt, failure, if failure.is_denied() { need.as_str() } else { "" })
        };
        let answer = http::answer(context, client.request(Method::GET, &encoded(&path)))?;
        let answer = answer.map_err(|failure| fail(&failure))?;
        let status = answer.status();
        let bytes = http::whole(context, answer)?.map_err(|failure| fail(&failure))?;
        let strange = |_| client.error(&attempt, "unexpected answer", "is it a key-value engine?");
        match status {
            StatusCode::OK if self.versioned => {
                let answer: Answer<Versioned> = serde_json::from_slice(&bytes).map_err(strange)?;
                Ok(match answer.data {
                    Some(Versioned { data: Some(fields), metadata }) => Held::Secret(fields, metadata.version),
                    Some(Versioned { data: None, metadata }) => Held::Deleted(metadata.version),
                    None => Held::Nothing,
                })
            }
            StatusCode::OK => {
                let answer: Answer<Fields> = serde_json::from_slice(&bytes).map_err(strange)?;
                Ok(answer.data.map_or(Held::Nothing, |fields| Held::Secret(fields, 0)))
            }
            // What is deleted is told with its version; what never was, without.
            StatusCode::NOT_FOUND => {
                let answer = serde_json::from_slice::<Answer<Versioned>>(&bytes).ok().and_then(|answer| answer.data);
                Ok(answer.map_or(Held::Nothing, |found| Held::Deleted(found.metadata.version)))
            }
            _ => {
                let said = String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
                Err(fail(&Failure { status: Some(status), text: format!("{status}: {said}") }))
            }
        }
    }

    /// Of a secret that there is, in a versioned engine.
    pub fn kept(&self, context: &Context, client: &Client, name: &str) -> Result<Settings, SourceError> {
        let path = self.metadata(name);
        let answer = http::json(context, client.request(Method::GET, &encoded(&path)))?;
        let mut answer = answer.map_err(|failure| client.failed(&format!("read {path} in"), &failure, ""))?;
        serde_json::from_value(answer["data"].take())
            .map_err(|why| client.error(&format!("read {path} in"), format!("unexpected answer: {why}"), ""))
    }

    pub fn keep(
        &self,
        context: &Context,
        client: &Client,
        name: &str,
        settings: &Settings,
    ) -> Result<Result<(), Failure>, SourceError> {
        let request = client.request(Method::POST, &encoded(&self.metadata(name))).json(settings);
        Ok(http::json(context, request)?.map(drop))
    }

    /// Writes a secret. A versioned engine does so only if its newest version is still `seen`.
    pub fn write(
        &self,
        context: &Context,
        client: &Client,
        name: &str,
        fields: &Fields,
        seen: u64,
    ) -> Result<Result<(), Failure>, SourceError> {
        let request = client.request(Method::POST, &encoded(&self.path(name)));
        let request = if self.versioned {
            #[derive(Serialize)]
            struct Body<'a> {
                options: Value,
                data: &'a Fields,
            }
            request.json(&Body { options: json!({"cas": seen}), data: fields })
        } else {
            request.json(fields)
        };
        Ok(http::json(context, request)?.map(drop))
    }
}

pub(super) fn same(a: &Fields, b: &Fields) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((a, x), (b, y))| a == b && x.get() == y.get())
}

/// Which keys a secret would get, which would change and which it would lose. No values.
pub(super) fn compared(now: &Fields, then: &Fields) -> String {
    let lacking = |from: &Fields, key: &str| !from.contains_key(key);
    let added = then.keys().filter(|key| lacking(now, key));
    let changed = then.iter().filter(|(key, value)| now.get(*key).is_some_and(|now| now.get() != value.get()));
    let removed = now.keys().filter(|key| lacking(then, key));
    let told = [
        listed("adds", &added.collect::<Vec<_>>()),
        listed("changes", &changed.map(|(key, _)| key).collect::<Vec<_>>()),
        listed("removes", &removed.collect::<Vec<_>>()),
    ];
    told.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn listed(what: &str, keys: &[&String]) -> Option<String> {
    let named: Vec<_> = keys.iter().take(NAMED).map(|key| key.as_str()).collect();
    let more = keys.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!named.is_empty()).then(|| format!("{what} {}{more}", named.join(", ")))
}

/// So many keys of a secret are named.
const NAMED: usize = 20;

/// A path as it stands in a URL.
fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => text.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => text.push(byte.into()),
            _ => text += &format!("%{byte:02X}"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn differences_are_told_without_values() {
        let now = fields(r#"{"user": "ann", "word": "hunter2", "port": 1}"#);
        let then = fields(r#"{"user": "ann", "word": "hunter3", "host": "h"}"#);
        assert_eq!(compared(&now, &then), "adds host; changes word; removes port");
        assert!(!same(&now, &then) && same(&now, &now));
        assert_eq!(compared(&now, &now), "");
        let (exact, rounded) = ("1234567890123456789012345", "1234567890123456789012346");
        assert!(!same(&fields(&format!("{{\"n\": {exact}}}")), &fields(&format!("{{\"n\": {rounded}}}"))));
    }

    #[test]
    fn paths_are_encoded() {
        assert_eq!(encoded("secret/data/a b?/ü"), "secret/data/a%20b%3F/%C3%BC");
    }

    #[test]
    fn paths_say_data_where_versions_are_kept() {
        let versioned = Engine { mount: "secret/".into(), versioned: true };
        assert_eq!(versioned.within("secret/data/a/b"), Ok("a/b"));
        assert!(versioned.within("secret/a").unwrap_err().contains("secret/data/NAME"));
        let plain = Engine { mount: "old/".into(), versioned: false };
        assert_eq!(plain.within("old/data"), Ok("data"));
        assert_eq!(plain.path("data"), "old/data");
    }
}
