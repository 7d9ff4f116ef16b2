//! Capture of a program's output.

use crate::support::collect::{Collect, context, runtime};
use lifeboat::exec::{self, ExecError};
use lifeboat::secret::SecretRef;
use lifeboat::source::{Context, SourceError, Spec, command};
use std::time::{Duration, Instant};

fn spec(script: &str) -> command::Spec {
    command::Spec {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: [].into(),
        output: "dump.sql".to_owned(),
        timeout: None,
    }
}

fn capture(context: &Context, spec: command::Spec) -> Result<Vec<u8>, String> {
    let mut sink = Collect::default();
    match Spec::Command(spec).open().unwrap().capture(context, &mut sink) {
        Ok(_) => {
            let (entry, bytes) = sink.entries.remove(0);
            assert_eq!(entry.path, b"dump.sql");
            Ok(bytes)
        }
        Err(SourceError::Stopped(_)) => Err(sink.failure.unwrap()),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_output_is_captured() {
    let runtime = runtime();
    let content = capture(&context(&runtime), spec("head -c 3000000 /dev/zero; echo on stderr >&2; echo end")).unwrap();
    assert_eq!(content.len(), 3_000_004);
    assert!(content.ends_with(b"\0end\n"));
}

#[test]
fn secrets_reach_the_environment() {
    let runtime = runtime();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from a file\n").unwrap();
    let mut spec = spec("printf %s \"$TOKEN\"");
    spec.env.insert("TOKEN".to_owned(), SecretRef::File(file.path().to_owned()));
    assert_eq!(capture(&context(&runtime), spec.clone()).unwrap(), b"from a file");
    spec.env.insert("TOKEN".to_owned(), SecretRef::Env("LIFEBOAT_TEST_NOT_SET".to_owned()));
    let failure = Spec::Command(spec).open().unwrap().capture(&context(&runtime), &mut Collect::default());
    assert!(matches!(failure, Err(SourceError::Secret(_))));
}

#[test]
fn secrets_of_others_do_not_and_its_own_are_not_told() {
    let runtime = runtime();
    let there = || capture(&context(&runtime), spec("printf %s \"${CARGO_PKG_NAME:-none}\"")).unwrap();
    assert_eq!(there(), b"lifeboat");
    let other: SecretRef = serde_json::from_str(r#"{"env": "CARGO_PKG_NAME"}"#).unwrap();
    assert_eq!(there(), b"none");
    assert_eq!(other.read().unwrap().as_str(), "lifeboat");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter2-and-more\n").unwrap();
    let mut spec = spec("set -x; : \"$TOKEN\"; head -c 5000 /dev/zero | tr '\\0' 'x' >&2; echo \"$TOKEN\" >&2; exit 1");
    spec.env.insert("TOKEN".to_owned(), SecretRef::File(file.path().to_owned()));
    let text = capture(&context(&runtime), spec.clone()).unwrap_err();
    assert!(!text.contains("hunter2") && !text.contains("-more"), "{text}");
    spec.argv[2] = "echo \"it is $TOKEN\" >&2; exit 1".into();
    let text = capture(&context(&runtime), spec).unwrap_err();
    assert!(text.contains("it is (the value of TOKEN)"), "{text}");
}

#[test]
fn failures_say_what_happened() {
    let runtime = runtime();
    let context = context(&runtime);
    let failure = |spec| capture(&context, spec).unwrap_err();
    let text = failure(spec("echo some; echo the reason >&2; exit 7"));
    assert!(text.contains("sh failed with exit status 7: the reason"), "{text}");
    let text = failure(spec("echo some; kill -9 $$"));
    assert!(text.contains("ended by signal 9"), "{text}");
    let text = failure(spec("true"));
    assert!(text.contains("wrote nothing"), "{text}");
    let missing = command::Spec { argv: vec!["/no/such/program".to_owned()], ..spec("") };
    let text = failure(missing);
    assert!(text.contains("start /no/such/program"), "{text}");
    let text = failure(spec("echo some; i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1"));
    assert!(text.contains("line 2999") && !text.contains("line 1\n") && text.len() < 5000, "{text}");
}

#[test]
fn the_whole_group_is_killed_at_the_timeout() {
    let runtime = runtime();
    let slow = command::Spec { timeout: Some("300ms".to_owned()), ..spec("sleep 1000 & echo $! >&2; wait") };
    let text = capture(&context(&runtime), slow).unwrap_err();
    assert!(text.contains("did not end within its time"), "{text}");
    assert_gone(text.rsplit(' ').next().unwrap());
}

/// A killed process is gone, or a zombie that nobody has waited for yet.
fn assert_gone(pid: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return;
        }
        assert!(Instant::now() < deadline, "process {pid} lives: {stat}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn run(script: &str) -> exec::Command {
    exec::Command {
        inherits: exec::Inherits::Little,
        program: "sh".to_owned(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        env: Vec::new(),
        deadline: Instant::now() + Duration::from_mins(1),
        stop: Box::new(|| false),
    }
}

#[test]
fn dropping_and_stopping_kill() {
    let mut running = run("echo $$; exec sleep 1000").start().unwrap();
    let mut buffer = [0; 64];
    let length = running.read(&mut buffer).unwrap();
    let pid = std::str::from_utf8(&buffer[..length]).unwrap().trim().to_owned();
    drop(running);
    assert_gone(&pid);
    let stopped = exec::Command { stop: Box::new(|| true), ..run("sleep 1000") }.run(10);
    assert!(matches!(stopped, Err(ExecError::Stopped { .. })));
}

#[test]
fn collected_output_is_bounded() {
    assert_eq!(run("echo hello").run(6).unwrap(), b"hello\n");
    assert!(matches!(run("yes").run(100_000), Err(ExecError::TooMuch { .. })));
}

#[test]
fn mistakes_in_the_document_are_found_before_anything_runs() {
    let wrong = [
        command::Spec { argv: Vec::new(), ..spec("") },
        command::Spec { output: "a/b".to_owned(), ..spec("") },
        command::Spec { output: String::new(), ..spec("") },
        command::Spec { timeout: Some("soon".to_owned()), ..spec("") },
        command::Spec { timeout: Some("-1s".to_owned()), ..spec("") },
    ];
    for spec in wrong {
        assert!(matches!(Spec::Command(spec.clone()).open(), Err(SourceError::Spec { .. })), "{spec:?}");
    }
}
