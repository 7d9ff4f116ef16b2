//! The pinned tools of tests/tools.
#![expect(clippy::disallowed_methods, reason = "the tests start the build themselves")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// The path of a tool, built on first use.
pub fn tool(name: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    built.entry(name.to_owned()).or_insert_with(|| build(name)).clone()
}

fn build(name: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/build");
    let run = |argument: &str| {
        let output = Command::new(&script).arg(argument).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{} {argument}", script.display());
        String::from_utf8(output.stdout).unwrap()
    };
    run(name);
    Path::new(run("--path").trim()).join(name)
}
