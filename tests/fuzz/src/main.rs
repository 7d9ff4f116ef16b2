//! One target under libFuzzer: `tests/fuzz/run TARGET` says how.
#![no_main]

#[path = "../targets.rs"]
mod targets;

use lifeboat::repo::fuzzing::Target;
use std::sync::OnceLock;

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let wanted = std::env::var("TARGET").expect("TARGET names the decoder");
        let found = targets::targets().into_iter().find(|target| target.0 == wanted);
        TARGET.get_or_init(|| found.expect("TARGET is one of tests/fuzz/targets.rs").1);
    },
    |bytes: &[u8]| {
        TARGET.get().expect("set by init")(bytes);
    }
);
