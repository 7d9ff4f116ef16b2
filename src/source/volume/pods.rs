//! The pods that Lifeboat makes for a claim.

use crate::source::Context;
use crate::source::kubernetes::api::{Api, Ask};
use kube::api::ListParams;
use serde_json::Value;

/// What is made for a claim has always the same name: whoever comes next finds what was left.
pub fn name(prefix: &str, namespace: &str, claim: &str) -> String {
    let hash = blake3::hash(format!("{namespace}/{claim}").as_bytes()).to_hex();
    let own: String = claim.chars().take(40).collect();
    format!("{prefix}-{}-{}", own.trim_end_matches(['-', '.']), &hash[..8])
}

/// Where it is, or why it does not run.
pub fn standing(pod: &Value) -> String {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let unscheduled = conditions.find(|one| one["type"] == "PodScheduled" && one["status"] != "True");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let why = text(&waiting["message"]).or_else(|| text(&waiting["reason"]));
    let why = why.or_else(|| unscheduled.and_then(|condition| text(&condition["message"])));
    why.or_else(|| text(&pod["status"]["message"])).or_else(|| text(&pod["status"]["phase"])).unwrap_or_default()
}

/// What the cluster last said was wrong with an object, to be added to a sentence.
pub fn warning(context: &Context, api: &Api, namespace: &str, object: &str) -> Option<String> {
    let events = format!("/api/v1/namespaces/{namespace}/events");
    let list = ListParams::default().fields(&format!("involvedObject.name={object},type=Warning")).limit(50);
    let list = api.ask(context, &events, &Ask::List(&list)).ok()?.ok()?;
    // They come in the order in which they were said first.
    let event = list["items"].as_array()?.iter().max_by_key(|event| last_said(event))?;
    Some(format!("; {}", event["message"].as_str()?))
}

/// Which of these an event has depends on who wrote it.
fn last_said(event: &Value) -> Option<&str> {
    let times = [&event["series"]["lastObservedTime"], &event["lastTimestamp"], &event["eventTime"]];
    times.into_iter().find_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::last_said;
    use serde_json::json;

    #[test]
    fn an_event_was_last_said_when_its_author_says() {
        let repeated = json!({ "lastTimestamp": "2026-01-01T00:00:16Z", "eventTime": null });
        let series = json!({ "lastTimestamp": null, "eventTime": "2026-01-01T00:00:00.000001Z",
            "series": { "count": 2, "lastObservedTime": "2026-01-01T00:00:26.000001Z" } });
        let once = json!({ "lastTimestamp": null, "eventTime": "2026-01-01T00:00:07.000001Z" });
        let said = [&repeated, &series, &once].map(last_said);
        assert_eq!(
            said,
            ["2026-01-01T00:00:16Z", "2026-01-01T00:00:26.000001Z", "2026-01-01T00:00:07.000001Z"].map(Some)
        );
    }
}
