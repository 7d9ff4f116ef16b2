//! Bringing objects back into a cluster.

use super::Spec;
use crate::source::target::Options;

pub struct Cluster {
    spec: Spec,
    options: Options,
}

impl Cluster {
    pub fn new(spec: Spec, options: Options) -> Self {
        Self { spec, options }
    }
}
