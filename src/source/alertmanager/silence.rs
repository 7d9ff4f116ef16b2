//! Silences, as the API tells them (`gettableSilence` of Alertmanager's OpenAPI description, version 2).

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

/// As `amtool silence import --force` takes it.
pub const FILE: &str = "silences.json";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Matcher {
    name: String,
    value: String,
    is_regex: bool,
    /// Servers before 0.22 know nothing else.
    #[serde(default = "yes")]
    is_equal: bool,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Silence {
    pub id: String,
    /// In a stable order.
    matchers: Vec<Matcher>,
    starts_at: Timestamp,
    pub ends_at: Timestamp,
    created_by: String,
    comment: String,
    status: Status,
    /// As it was told.
    #[serde(skip)]
    told: Value,
}

#[derive(Clone, Debug, Deserialize)]
struct Status {
    state: String,
}

/// In the order of their ids; `None`: these are no silences.
pub(super) fn parse(listed: Value) -> Option<Vec<Silence>> {
    let Value::Array(listed) = listed else { return None };
    let silence = |told: Value| {
        let mut silence = Silence::deserialize(&told).ok()?;
        silence.matchers.sort();
        silence.told = told;
        Some(silence)
    };
    let mut silences: Vec<_> = listed.into_iter().map(silence).collect::<Option<_>>()?;
    silences.sort_by(|a, b| a.id.cmp(&b.id));
    Some(silences)
}

pub(super) fn file(silences: &[Silence]) -> Vec<u8> {
    let told: Vec<_> = silences.iter().map(|silence| &silence.told).collect();
    format!("{:#}\n", json!(told)).into_bytes()
}

impl Silence {
    /// It has not ended.
    pub fn lasts(&self) -> bool {
        self.status.state != "expired"
    }

    /// The other one silences the same to the same end, from the same moment or, where that is over, from now on: its id
    /// is another if it was brought back.
    pub fn is_as(&self, other: &Self, now: Timestamp) -> bool {
        let begins = |silence: &Self| silence.starts_at.max(now);
        self.matchers == other.matchers
            && self.ends_at == other.ends_at
            && begins(self) == begins(other)
            && self.comment == other.comment
            && self.created_by == other.created_by
    }

    /// For people.
    pub fn describe(&self) -> String {
        let matchers = self.matchers.iter().map(|matcher| {
            let Matcher { name, value, is_regex, is_equal } = matcher;
            let sign = match (is_equal, is_regex) {
                (true, false) => "=",
                (true, true) => "=~",
                (false, false) => "!=",
                (false, true) => "!~",
            };
            format!("{name}{sign}{value:?}")
        });
        let matchers: Vec<_> = matchers.collect();
        format!("{{{}}} until {} by {} ({})", matchers.join(", "), self.ends_at, self.created_by, self.id)
    }

    /// To be posted: anew, or in place of the silence of an id.
    pub fn body(&self, id: Option<&str>) -> Value {
        let mut body = json!({});
        for field in ["matchers", "startsAt", "endsAt", "createdBy", "comment"] {
            body[field] = self.told[field].clone();
        }
        if let Some(id) = id {
            body["id"] = id.into();
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence(id: &str, starts: &str, value: &str) -> Value {
        json!({
            "id": id, "status": {"state": "active"}, "updatedAt": starts, "startsAt": starts,
            "endsAt": "2030-01-01T00:00:00Z", "createdBy": "me", "comment": "why",
            "matchers": [{"name": "b", "value": value, "isRegex": false}, {"name": "a", "value": "x", "isRegex": true}],
        })
    }

    #[test]
    fn a_silence_is_known_again_under_another_id() {
        let of = |told: &Value| parse(json!([told])).unwrap().remove(0);
        let was = of(&silence("1", "2024-01-01T00:00:00Z", "y"));
        let mut again = silence("2", "2025-01-01T00:00:00Z", "y");
        again["matchers"].as_array_mut().unwrap().reverse();
        let (again, other) = (of(&again), of(&silence("2", "2024-01-01T00:00:00Z", "z")));
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(was.is_as(&again, at("2025-01-01T00:00:01Z")));
        assert!(!was.is_as(&again, at("2024-06-01T00:00:00Z")));
        assert!(!was.is_as(&other, at("2025-01-01T00:00:01Z")));
        assert_eq!(was.describe(), r#"{a=~"x", b="y"} until 2030-01-01T00:00:00Z by me (1)"#);
        assert!(parse(json!({"status": "success"})).is_none());
        assert!(parse(json!([{"id": "1"}])).is_none());
    }
}
