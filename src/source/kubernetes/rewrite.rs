//! Changing objects on their way back: other storage classes, other registries, patches. No I/O.

use super::choose::wildcards;
use super::order::{CRDS, Place};
use crate::source::target::{Options, Patch};
use crate::source::{Say, SourceError};
use globset::GlobMatcher;
use serde_json::Value;
use std::collections::BTreeMap;

/// Lists of containers, in whatever kind a pod's template stands.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// Named a claim's class before there was a field for it.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Their content is not Kubernetes' to understand.
const OPAQUE: [&str; 3] = ["configmaps", "secrets", CRDS];
/// Where an image comes from that names no registry.
const REGISTRY: &str = "docker.io";

#[derive(Debug)]
pub struct Rules {
    classes: BTreeMap<String, String>,
    images: BTreeMap<String, String>,
    patches: Vec<(GlobMatcher, Patch)>,
}

pub fn check(options: &Options, say: &mut Say<'_>) {
    let maps = [
        ("storageClasses", &options.storage_classes),
        ("images", &options.images),
        ("namespaces", &options.namespaces),
    ];
    for (field, map) in maps {
        if map.iter().any(|(from, to)| from.is_empty() || to.is_empty()) {
            say(field, "expected two names, of what was and what it becomes");
        }
    }
    for (index, patch) in options.patches.iter().enumerate() {
        if patch.kind.is_empty() || patch.kind.contains('/') {
            say(&format!("patches[{index}].kind"), "expected a resource and its group, such as deployments.apps");
        }
        if let Err(why) = glob(patch) {
            say(&format!("patches[{index}].name"), &why);
        }
    }
}

/// Of `NAMESPACE/NAME`.
fn glob(patch: &Patch) -> Result<GlobMatcher, String> {
    match patch.name.matches('/').count() {
        0 if !patch.name.is_empty() => wildcards(&format!("*/{}", patch.name)),
        1 => wildcards(&patch.name),
        _ => Err("expected NAME or NAMESPACE/NAME, with wildcards".into()),
    }
}

fn fits(glob: &GlobMatcher, patch: &Patch, place: &Place) -> bool {
    let namespace = place.namespace.as_deref().unwrap_or(super::CLUSTER);
    patch.kind == place.word && glob.is_match(format!("{namespace}/{}", place.name))
}

impl Rules {
    pub fn new(options: &Options) -> Result<Self, SourceError> {
        let patches = options.patches.iter().map(|patch| match glob(patch) {
            Ok(glob) => Ok((glob, patch.clone())),
            Err(why) => Err(SourceError::System {
                attempt: format!("understand the patch of {:?}", patch.name),
                text: why,
                need: "correct the option of the restore".into(),
            }),
        });
        let (classes, images) = (options.storage_classes.clone(), options.images.clone());
        Ok(Self { classes, images, patches: patches.collect::<Result<_, _>>()? })
    }

    /// Patches that fit nothing, which are seldom meant.
    pub fn unused<'a>(&'a self, places: &'a [&Place]) -> impl Iterator<Item = String> + 'a {
        let idle = self.patches.iter().filter(|(glob, patch)| !places.iter().any(|place| fits(glob, patch, place)));
        idle.map(|(_, patch)| format!("{} {:?}", patch.kind, patch.name))
    }

    /// Changes an object, which lay at `place` in the snapshot.
    ///
    /// # Errors
    /// A patch cannot be made, or would make it another object.
    pub fn apply(&self, place: &Place, object: &mut Value) -> Result<(), String> {
        let renames = !self.classes.is_empty() || !self.images.is_empty();
        if renames && !OPAQUE.contains(&&*place.word) {
            self.walk(object);
        }
        for (_, patch) in self.patches.iter().filter(|(glob, patch)| fits(glob, patch, place)) {
            let identity = |object: &Value| {
                ["/kind", "/metadata/name", "/metadata/namespace"].map(|pointer| object.pointer(pointer).cloned())
            };
            let mut patched = object.clone();
            json_patch::patch(&mut patched, &patch.patch)
                .map_err(|error| format!("the patch of {} {:?} cannot be made: {error}", patch.kind, patch.name))?;
            if identity(&patched) != identity(object) {
                return Err(format!("the patch of {} {:?} makes it another object", patch.kind, patch.name));
            }
            *object = patched;
        }
        Ok(())
    }

    fn walk(&self, value: &mut Value) {
        match value {
            Value::Array(list) => list.iter_mut().for_each(|item| self.walk(item)),
            Value::Object(map) => {
                for (key, value) in map {
                    match &**key {
                        "storageClassName" => self.class(Some(value)),
                        "annotations" => self.class(value.get_mut(CLASS)),
                        // A volume that is an image.
                        "image" => self.image(value.get_mut("reference")),
                        list if CONTAINERS.contains(&list) => {
                            let containers = value.as_array_mut().into_iter().flatten();
                            containers.for_each(|container| self.image(container.get_mut("image")));
                        }
                        _ => {}
                    }
                    self.walk(value);
                }
            }
            _ => {}
        }
    }

    fn class(&self, name: Option<&mut Value>) {
        if let Some(name) = name
            && let Some(to) = name.as_str().and_then(|name| self.classes.get(name))
        {
            *name = to.as_str().into();
        }
    }

    fn image(&self, name: Option<&mut Value>) {
        if let Some(name) = name
            && let Some(to) = name.as_str().and_then(|name| self.moved(name).or_else(|| self.moved(&in_full(name)?)))
        {
            *name = to.into();
        }
    }

    fn moved(&self, image: &str) -> Option<String> {
        let (rest, to) = self
            .images
            .iter()
            .filter_map(|(from, to)| {
                let rest = image.strip_prefix(from.as_str())?;
                // A port is not the end of a name.
                let ends = rest.is_empty()
                    || from.ends_with('/')
                    || rest.starts_with(['/', '@'])
                    || rest.starts_with(':') && !rest.contains('/');
                ends.then_some((rest, to))
            })
            .min_by_key(|(rest, _)| rest.len())?;
        Some(format!("{to}{rest}"))
    }
}

/// The image with the registry that it does not name. `None`: it names one.
fn in_full(image: &str) -> Option<String> {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => None,
        Some(_) => Some(format!("{REGISTRY}/{image}")),
        None => Some(format!("{REGISTRY}/library/{image}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_move_at_the_end_of_a_name() {
        let images = [
            ("registry.example.com", "mirror.example.org"),
            ("registry.example.com/team", "mirror.example.org/ours"),
            ("registry", "other"),
            ("docker.io", "mirror.example.org/hub"),
            ("ghcr.io/", "mirror.example.org/ghcr/"),
        ];
        let images = images.map(|(from, to)| (from.to_owned(), to.to_owned())).into();
        let rules = Rules { classes: BTreeMap::new(), images, patches: Vec::new() };
        for (from, to) in [
            ("registry.example.com/web:1", "mirror.example.org/web:1"),
            ("registry.example.com/team/web:1", "mirror.example.org/ours/web:1"),
            ("registry.example.com/teams/web:1", "mirror.example.org/teams/web:1"),
            ("registry.example.community/web:1", "registry.example.community/web:1"),
            ("registry.example.com:5000/web", "registry.example.com:5000/web"),
            ("registry:1", "other:1"),
            ("nginx:1", "mirror.example.org/hub/library/nginx:1"),
            ("bitnami/redis@sha256:00", "mirror.example.org/hub/bitnami/redis@sha256:00"),
            ("localhost/web", "localhost/web"),
            ("ghcr.io/a/b:1", "mirror.example.org/ghcr/a/b:1"),
        ] {
            let mut image = Value::from(from);
            rules.image(Some(&mut image));
            assert_eq!(image, to, "{from}");
        }
    }
}
