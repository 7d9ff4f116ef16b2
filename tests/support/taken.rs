//! A captured snapshot of a cluster's objects, in memory, and bringing it back.

use crate::support::collect::{Collect, context, runtime, supply};
use lifeboat::entry::{Facts, Supply, Visit};
use lifeboat::source::kubernetes::Spec;
use lifeboat::source::target::{Applied, Options, Plan};
use lifeboat::source::{self, SourceError};
use std::io;

pub struct Taken {
    pub facts: Facts,
    pub sink: Collect,
}

impl Taken {
    pub fn capture(spec: &Spec) -> Result<Self, SourceError> {
        let runtime = runtime();
        let mut sink = Collect::default();
        let facts = source::Spec::Kubernetes(spec.clone()).open()?.capture(&context(&runtime), &mut sink)?;
        assert_eq!(facts.objects, Some(sink.entries.len() as u64));
        Ok(Self { facts, sink })
    }

    pub fn paths(&self) -> Vec<&str> {
        self.sink.entries.iter().map(|(entry, _)| std::str::from_utf8(&entry.path).unwrap()).collect()
    }

    pub fn has(&self, path: &str) -> bool {
        self.paths().contains(&path)
    }

    pub fn text(&self, path: &str) -> &str {
        let found = self.sink.entries.iter().find(|(entry, _)| entry.path == path.as_bytes());
        let (_, content) = found.unwrap_or_else(|| panic!("{path} is not among {:#?}", self.paths()));
        std::str::from_utf8(content).unwrap()
    }

    pub fn export(&self) -> String {
        let mut out = Vec::new();
        source::native("kubernetes").unwrap().write(self, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Into the cluster that `spec` reaches.
    pub fn plan(&self, spec: &Spec, options: &Options) -> Plan {
        let runtime = runtime();
        let mut target = source::Spec::Kubernetes(spec.clone()).target(options.clone()).unwrap().unwrap();
        target.plan(&context(&runtime), self).unwrap()
    }

    pub fn apply(&self, spec: &Spec, options: &Options, plan: &Plan) -> Applied {
        let runtime = runtime();
        let mut target = source::Spec::Kubernetes(spec.clone()).target(options.clone()).unwrap().unwrap();
        target.apply(&context(&runtime), self, plan).unwrap()
    }
}

impl Supply for Taken {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn entries(&self, visit: &mut Visit<'_>) -> io::Result<()> {
        supply(&self.sink.entries, visit)
    }
}
