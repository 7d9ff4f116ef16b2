//! The requests that are needed of Prometheus' HTTP API.

use super::Spec;
use crate::source::http::{self, Failure, Login, Server};
use crate::source::{Context, SourceError};
use reqwest::header::CONTENT_LENGTH;
use reqwest::{Method, RequestBuilder};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What the server writes in place of a secret.
const MASK: &str = "<secret>";

const SNAPSHOT: &str = "take a snapshot of";
/// The server's own words.
const ADMIN_DISABLED: &str = "admin APIs disabled";
const ENABLE_ADMIN: &str = "start it with --web.enable-admin-api (prometheus-operator: enableAdminAPI)";

pub(super) struct Api(http::Api);

/// What the server runs with.
pub(super) struct Config {
    pub yaml: String,
    pub labels: BTreeMap<String, String>,
    /// How many secrets are not in it.
    pub masked: usize,
}

impl Api {
    pub fn new(spec: &Spec) -> Result<Self, SourceError> {
        let login = Login::read(spec.username.as_ref(), spec.password.as_ref(), spec.token.as_ref())?;
        Ok(Self(http::Api::new("Prometheus", Server::new(&spec.address, spec.tls.as_ref())?, login)))
    }

    pub fn address(&self) -> &str {
        &self.0.server.address
    }

    fn data(&self, context: &Context, request: RequestBuilder, attempt: &str) -> Result<Value, SourceError> {
        let mut answer = self.0.json(context, request)?.map_err(|failure| {
            let need = if failure.text.contains(ADMIN_DISABLED) { ENABLE_ADMIN } else { "" };
            self.0.failed(attempt, &failure, need)
        })?;
        match answer.get_mut("data").map(Value::take) {
            Some(data) if answer["status"] == "success" => Ok(data),
            _ => Err(self.0.odd(attempt)),
        }
    }

    fn get(&self, context: &Context, path: &str, attempt: &str) -> Result<Value, SourceError> {
        self.data(context, self.0.server.request(Method::GET, path), attempt)
    }

    pub fn version(&self, context: &Context) -> Result<String, SourceError> {
        let build = self.get(context, "/api/v1/status/buildinfo", "ask")?;
        Ok(build["version"].as_str().unwrap_or("of an unknown version").to_owned())
    }

    /// Said before anything is tried.
    pub fn must_give_snapshots(&self, context: &Context) -> Result<(), SourceError> {
        let flags = self.get(context, "/api/v1/status/flags", "ask")?;
        if flags["web.enable-admin-api"] == "false" {
            let failure = Failure { status: None, text: ADMIN_DISABLED.into() };
            return Err(self.0.failed(SNAPSHOT, &failure, ENABLE_ADMIN));
        }
        Ok(())
    }

    /// Makes a snapshot with what is in memory, and gives its name.
    pub fn snapshot(&self, context: &Context) -> Result<String, SourceError> {
        // It writes a block first, which takes as long as it takes.
        let request = self.0.server.upload("/api/v1/admin/tsdb/snapshot?skip_head=false", "".into());
        // Said of an empty body only on demand, and proxies want it.
        let request = request.header(CONTENT_LENGTH, 0);
        let data = self.data(context, request, SNAPSHOT)?;
        let plain = |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let name = data["name"].as_str().filter(plain);
        name.map(str::to_owned).ok_or_else(|| self.0.odd(SNAPSHOT))
    }

    pub fn config(&self, context: &Context) -> Result<Config, SourceError> {
        let data = self.get(context, "/api/v1/status/config", "read the configuration of")?;
        let yaml = data["yaml"].as_str().unwrap_or_default().to_owned();
        let parsed: Value = serde_saphyr::from_str(&yaml).unwrap_or_default();
        let labels = parsed["global"]["external_labels"].as_object();
        let labels = labels.into_iter().flatten().map(|(name, value)| (name.clone(), text_of(value))).collect();
        Ok(Config { masked: yaml.matches(MASK).count(), yaml, labels })
    }

    /// Rule files as the server has them in memory, by their paths in the snapshot.
    pub fn rules(&self, context: &Context) -> Result<BTreeMap<String, String>, SourceError> {
        let data = self.get(context, "/api/v1/rules?exclude_alerts=true", "read the rules of")?;
        Ok(rule_files(&data))
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// JSON, which is YAML: `promtool check rules` takes it. What changes with every evaluation is left out.
fn rule_files(data: &Value) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for group in data["groups"].as_array().into_iter().flatten() {
        let path = group["file"].as_str().unwrap_or("rules.yml");
        let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect();
        let rules: Vec<_> = group["rules"].as_array().into_iter().flatten().map(rule).collect();
        let mut known = Map::new();
        known.insert("name".into(), group["name"].clone());
        known.insert("interval".into(), seconds(&group["interval"]));
        if group["limit"].as_u64().is_some_and(|limit| limit > 0) {
            known.insert("limit".into(), group["limit"].clone());
        }
        known.insert("rules".into(), rules.into());
        files.entry(format!("config/rules/{}", parts.join("/"))).or_default().push(known.into());
    }
    files.into_iter().map(|(path, groups)| (path, format!("{:#}\n", json!({ "groups": groups })))).collect()
}

fn rule(told: &Value) -> Value {
    let alerting = told["type"] == "alerting";
    let mut rule = Map::new();
    rule.insert(if alerting { "alert" } else { "record" }.into(), told["name"].clone());
    rule.insert("expr".into(), told["query"].clone());
    for (field, name) in [("duration", "for"), ("keepFiringFor", "keep_firing_for")] {
        if alerting && told[field].as_f64().is_some_and(|number| number > 0.0) {
            rule.insert(name.into(), seconds(&told[field]));
        }
    }
    for field in ["labels", "annotations"] {
        if told[field].as_object().is_some_and(|map| !map.is_empty()) {
            rule.insert(field.into(), told[field].clone());
        }
    }
    rule.into()
}

/// Prometheus' own notation has no fractions.
fn seconds(number: &Value) -> Value {
    format!("{:.0}ms", number.as_f64().unwrap_or(60.0) * 1000.0).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_files_again() {
        let told = json!({"groups": [
            {"name": "a", "file": "/etc/../rules/x.yml", "interval": 15, "evaluationTime": 0.1, "limit": 0, "rules": [
                {"type": "alerting", "name": "Down", "query": "up == 0", "duration": 90, "labels": {"severity": "page"},
                 "annotations": {}, "state": "firing", "lastEvaluation": "2024-01-01T00:00:00Z"},
                {"type": "recording", "name": "job:up", "query": "sum(up)", "health": "ok"}]},
        ]});
        let files = rule_files(&told);
        let file: Value = serde_json::from_str(&files["config/rules/etc/rules/x.yml"]).unwrap();
        assert_eq!(
            file,
            json!({"groups": [{"name": "a", "interval": "15000ms", "rules": [
                {"alert": "Down", "expr": "up == 0", "for": "90000ms", "labels": {"severity": "page"}},
                {"record": "job:up", "expr": "sum(up)"}]}]})
        );
    }
}
