//! Which objects of a snapshot are brought back.

use super::CLUSTER;
use super::order::Place;
use crate::source::target::Options;
use crate::source::{Say, SourceError};
use globset::{GlobBuilder, GlobMatcher};
use kube::core::{Expression, Selector, SelectorExt as _};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// By default everything.
#[derive(Debug, Default)]
pub struct Choice {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
    selector: Option<Selector>,
    /// Storage classes in whose place others are used.
    classes: BTreeSet<String>,
}

#[derive(Debug)]
struct Pattern {
    text: String,
    glob: GlobMatcher,
}

impl Pattern {
    fn new(text: &str) -> Result<Self, String> {
        let whole = match text.matches('/').count() {
            0 => format!("*/{text}/*"),
            2 => text.strip_suffix(".yaml").unwrap_or(text).to_owned(),
            _ => return Err("expected RESOURCE, such as deployments.apps, or NAMESPACE/RESOURCE/NAME".into()),
        };
        if text.is_empty() {
            return Err("it is empty".into());
        }
        Ok(Self { text: text.to_owned(), glob: wildcards(&whole)? })
    }

    fn fits(&self, place: &Place) -> bool {
        let namespace = place.namespace.as_deref().unwrap_or(CLUSTER);
        self.glob.is_match(format!("{namespace}/{}/{}", place.word, place.name))
    }
}

/// A pattern of which no wildcard crosses a slash.
pub fn wildcards(text: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    glob.map(|glob| glob.compile_matcher()).map_err(|error| error.kind().to_string())
}

pub fn check(options: &Options, say: &mut Say<'_>) {
    for (field, patterns) in [("include", &options.include), ("exclude", &options.exclude)] {
        for (index, pattern) in patterns.iter().enumerate() {
            if let Err(why) = Pattern::new(pattern) {
                say(&format!("{field}[{index}]"), &why);
            }
        }
    }
    if let Some(Err(why)) = options.selector.as_deref().map(selector) {
        say("selector", &why);
    }
}

impl Choice {
    pub fn new(options: &Options) -> Result<Self, SourceError> {
        let bad = |what: &str, why: String| SourceError::System {
            attempt: format!("understand {what:?}"),
            text: why,
            need: "correct the option of the restore".into(),
        };
        let all = |patterns: &[String]| {
            let built = patterns.iter().map(|text| Pattern::new(text).map_err(|why| bad(text, why)));
            built.collect::<Result<Vec<_>, _>>()
        };
        let selector = options.selector.as_deref().map(|text| selector(text).map_err(|why| bad(text, why)));
        Ok(Self {
            include: all(&options.include)?,
            exclude: all(&options.exclude)?,
            selector: selector.transpose()?,
            classes: options.storage_classes.keys().cloned().collect(),
        })
    }

    pub fn takes(&self, place: &Place, object: &Value) -> bool {
        let named = self.include.is_empty() || self.include.iter().any(|pattern| pattern.fits(place));
        let labelled = || self.selector.as_ref().is_none_or(|selector| selector.matches(&labels(object)));
        named && !self.excludes(place) && labelled()
    }

    pub fn excludes(&self, place: &Place) -> bool {
        let replaced = place.word == "storageclasses.storage.k8s.io" && self.classes.contains(&place.name);
        replaced || self.exclude.iter().any(|pattern| pattern.fits(place))
    }

    /// Patterns that fit nothing, which are seldom meant.
    pub fn unused<'a>(&'a self, places: &'a [&Place]) -> impl Iterator<Item = &'a str> {
        let patterns = self.include.iter().chain(&self.exclude);
        patterns.filter(|pattern| !places.iter().any(|place| pattern.fits(place))).map(|pattern| &*pattern.text)
    }
}

fn labels(object: &Value) -> BTreeMap<String, String> {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    labels.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
fn selector(text: &str) -> Result<Selector, String> {
    let mut expressions = Vec::new();
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("expected a label selector such as \"app=shop\"".into());
    }
    while !rest.is_empty() {
        // A comma inside of parentheses divides values.
        let open = rest.find('(').filter(|open| rest.find(',').is_none_or(|comma| *open < comma));
        let end = match open {
            Some(open) => open + rest[open..].find(')').ok_or("a parenthesis is not closed")? + 1,
            None => rest.find(',').unwrap_or(rest.len()),
        };
        let (one, more) = rest.split_at(end);
        expressions.push(expression(one.trim())?);
        rest = more.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(after) if !after.trim().is_empty() => after.trim_start(),
            None if rest.is_empty() => rest,
            _ => return Err(format!("expected another condition behind {one:?}")),
        };
    }
    Ok(expressions.into_iter().collect())
}

fn expression(text: &str) -> Result<Expression, String> {
    let key = |text: &str| {
        let text = text.trim();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if text.is_empty() || !text.chars().all(fits) {
            return Err(format!("{text:?} is not the name of a label"));
        }
        Ok(text.to_owned())
    };
    if let Some((front, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        return match front.trim().rsplit_once(char::is_whitespace) {
            Some((name, "in")) => Ok(Expression::In(key(name)?, values)),
            Some((name, "notin")) => Ok(Expression::NotIn(key(name)?, values)),
            _ => Err(format!("expected in or notin before the parenthesis of {text:?}")),
        };
    }
    if let Some((name, value)) = text.split_once("!=") {
        return Ok(Expression::NotEqual(key(name)?, value.trim().to_owned()));
    }
    if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Expression::Equal(key(name)?, value.trim().to_owned()));
    }
    match text.strip_prefix('!') {
        Some(name) => Ok(Expression::DoesNotExist(key(name)?)),
        None => Ok(Expression::Exists(key(text)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_as_kubectl_takes_them() {
        let object = json!({"metadata": {"labels": {"app": "shop", "tier": "front", "example.com/part": "web"}}});
        let labels = labels(&object);
        for (text, fits) in [
            ("app=shop", true),
            ("app==shop,tier!=back", true),
            ("app = shop, tier in (back, front)", true),
            ("tier notin (front)", false),
            ("example.com/part", true),
            ("!example.com/part", false),
            ("!old,tier in (front),app", true),
            ("old!=yes", true),
            ("app=other", false),
        ] {
            assert_eq!(selector(text).unwrap().matches(&labels), fits, "{text}");
        }
        for bad in ["", "app=shop,", "tier in (front", "tier of (front)", "a b", "=x", ",a", "a=b)c,d in (e)f"] {
            let parsed = selector(bad);
            assert!(parsed.is_err() || bad.starts_with("a=b)"), "{bad}: {parsed:?}");
        }
    }

    #[test]
    fn patterns_name_kinds_or_objects() {
        let place = |path: &str| Place::parse(path.as_bytes()).unwrap();
        let fits = |pattern: &str, path: &str| Pattern::new(pattern).unwrap().fits(&place(path));
        assert!(fits("deployments.apps", "shop/deployments.apps/web.yaml"));
        assert!(!fits("deployments", "shop/deployments.apps/web.yaml"));
        assert!(fits("*.argoproj.io", "argocd/applications.argoproj.io/web.yaml"));
        assert!(fits("shop/*/web*", "shop/services/web-1.yaml"));
        assert!(!fits("shop/*/web*", "shop2/services/web-1.yaml"));
        assert!(fits("shop/services/web.yaml", "shop/services/web.yaml"));
        assert!(fits("_cluster/*/*", "_cluster/namespaces/shop.yaml"));
        assert!(Pattern::new("shop/services").is_err());
        assert!(Pattern::new("").is_err());
        assert!(Pattern::new("a/[/b").is_err());
    }
}
