//! Numbered records that `tests/lab/platform/writer` keeps writing into every system of the platform. By them one tells what a
//! recovery lost.

use crate::cluster::{Cluster, wait};
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;

pub struct Records<'a>(pub &'a Cluster);

impl Records<'_> {
    fn writer(&self, arguments: &[&str]) -> String {
        self.0.lab("platform/writer", arguments)
    }

    /// Begins, and waits for the first record of each system.
    pub fn start(&self) {
        self.writer(&["start"]);
    }

    pub fn stop(&self) {
        self.writer(&["stop"]);
    }

    fn look(&self, system: &str) -> Value {
        let report: Value = serde_json::from_str(&self.writer(&["report", "--json", system])).unwrap();
        report[system].clone()
    }

    /// Waits for records that are not written yet.
    pub fn go_on(&self, system: &str) {
        let newest = || self.look(system)["newest"].as_u64();
        let enough = newest().unwrap() + 3;
        wait(Duration::from_mins(1), "more records", || newest().filter(|number| *number >= enough));
    }

    /// From what the system holds alone: no record is missing before its newest one. What is lost was acknowledged after
    /// `moment`; how many that are.
    #[track_caller]
    pub fn judge(&self, system: &str, moment: Timestamp) -> usize {
        let look = self.look(system);
        assert!(look["gaps"].as_array().is_some_and(Vec::is_empty), "{system}: {look:#}");
        assert!(look["count"].as_u64() > Some(0) && look["count"] == look["newest"], "{system}: {look:#}");
        let lost = look["lost"].as_array().unwrap();
        let early = lost.iter().find(|record| record["acknowledged"].as_i64().unwrap() <= moment.as_millisecond());
        assert!(early.is_none(), "{system} had this at {moment}: {early:?}");
        eprintln!("lab: {system} has {} records, {} were lost", look["count"], lost.len());
        lost.len()
    }
}
