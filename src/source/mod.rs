//! What is protected: one module per kind of system, chosen by one visible `match` ([`Spec::open`]).

pub mod command;
pub mod etcd;
pub mod files;

use serde::Deserialize;

/// The part of a `Source` document that says what is captured and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Spec {
    Files(files::Spec),
    Command(command::Spec),
    Etcd(etcd::Spec),
}
