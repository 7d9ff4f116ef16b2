//! Files that a static pod's command line names.

use super::yaml;
use serde_json::Value;

/// The files of these flags, where the node has them: a path in the container is followed through its mounts.
///
/// # Errors
/// Why the manifest cannot be read. The text does not repeat it.
pub fn files(manifest: &str, wanted: &[&'static str]) -> Result<Vec<(&'static str, String)>, String> {
    let pod = yaml::read(manifest)?;
    let mut found = Vec::new();
    for container in list(&pod["spec"]["containers"]) {
        let words = list(&container["command"]).chain(list(&container["args"]));
        for word in words.filter_map(Value::as_str) {
            let Some((flag, path)) = word.trim_start_matches('-').split_once('=') else { continue };
            if let Some(flag) = wanted.iter().find(|wanted| **wanted == flag) {
                found.push((*flag, on_the_node(&pod, container, path)));
            }
        }
    }
    Ok(found)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn on_the_node(pod: &Value, container: &Value, path: &str) -> String {
    let mounts = list(&container["volumeMounts"]).filter_map(|mount| {
        let at = mount["mountPath"].as_str()?.trim_end_matches('/');
        let rest = path.strip_prefix(at).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
        let volume = list(&pod["spec"]["volumes"]).find(|volume| volume["name"] == mount["name"])?;
        let host = volume["hostPath"]["path"].as_str()?.trim_end_matches('/');
        Some((at.len(), format!("{host}{rest}")))
    });
    // The nearest mount counts.
    mounts.max_by_key(|(length, _)| *length).map_or_else(|| path.to_owned(), |(_, path)| path)
}
