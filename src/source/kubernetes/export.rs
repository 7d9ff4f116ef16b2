//! A snapshot as `kubectl apply -f` takes it: one document per object, in the order of restoring.

use super::choose::Choice;
use super::index::{Index, object};
use super::order::Stage;
use super::{normal, yaml};
use crate::entry::Supply;
use crate::source::Native;
use std::io;

pub struct Manifests;

impl Native for Manifests {
    fn label(&self) -> &'static str {
        "Kubernetes manifests"
    }

    fn write(&self, supply: &dyn Supply, out: &mut dyn io::Write) -> io::Result<()> {
        let index = Index::read(supply, &Choice::default())?;
        for stage in Stage::ALL {
            supply.entries(&mut |entry, body| {
                let Some(item) = index.wanted(&entry.path).filter(|item| item.place.stage() == stage) else {
                    return Ok(());
                };
                let mut object = object(&entry.path, body)?;
                normal::strip(&item.place.word, &mut object);
                let text = yaml::write(&object).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
                write!(out, "---\n{text}")
            })?;
        }
        out.flush()
    }
}
