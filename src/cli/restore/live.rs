//! What is to be seen while a plan is carried out: a line for each step at work on a terminal, lines in a log elsewhere,
//! JSON lines with `--json`.

use crate::cli::output::{name, print_json, tell};
use crate::policy::Tier;
use crate::policy::duration::Shown;
use crate::restore::plan::between;
use crate::restore::plan::journal::{Event, History, Record};
use crate::restore::plan::report::describe;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

pub struct Live {
    form: Form,
}

enum Form {
    Quiet,
    Json,
    Lines,
    /// A terminal on which nothing has been shown yet.
    Blank,
    Bars {
        all: MultiProgress,
        head: ProgressBar,
        steps: BTreeMap<usize, ProgressBar>,
        asking: bool,
    },
}

impl Live {
    pub fn new(json: bool, quiet: bool) -> Self {
        let form = if json {
            Form::Json
        } else if quiet {
            Form::Quiet
        } else if io::stderr().is_terminal() {
            Form::Blank
        } else {
            Form::Lines
        };
        Self { form }
    }

    pub fn watch(&mut self, history: &History, record: &Record) {
        let after = between(history.began, record.at);
        if matches!(self.form, Form::Blank) {
            self.form = bars(history, after);
        }
        match &mut self.form {
            Form::Quiet | Form::Blank => {}
            // Whoever reads has gone: the restore goes on.
            Form::Json => _ = print_json(&event(history, record)),
            Form::Lines => {
                if let Some(text) = sentence(history, record) {
                    tell(&format!("{:>9} {text}\n", Shown(after).to_string()));
                }
            }
            Form::Bars { all, head, steps, asking } => {
                let task = match record.event {
                    Event::Began { task, .. } => {
                        let bar = all.add(ProgressBar::new_spinner());
                        if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix}: {msg} {elapsed}") {
                            bar.set_style(style);
                        }
                        bar.set_prefix(history.resolved.tasks[task].name.clone());
                        bar.set_message(describe(&history.resolved.tasks[task].doing));
                        bar.enable_steady_tick(Duration::from_millis(200));
                        if let Some(before) = steps.insert(task, bar) {
                            before.finish_and_clear();
                        }
                        return;
                    }
                    Event::Done { task, .. } | Event::Failed { task, .. } => Some(task),
                    _ => None,
                };
                if let Some(bar) = task.and_then(|task| steps.remove(&task)) {
                    bar.finish_and_clear();
                }
                let done = history.tasks.iter().filter(|task| task.ended.is_some());
                head.set_position(done.count() as u64);
                if let Some(text) = sentence(history, record) {
                    let line = format!("{:>9} {text}", Shown(after).to_string());
                    if *asking {
                        tell(&format!("{line}\n"));
                    } else {
                        let _ = all.println(line);
                    }
                }
            }
        }
    }

    /// Shows a question, and nothing that moves until it is answered. Nobody waits for the answer here: other steps go on.
    pub fn ask(&mut self, question: &str) {
        if let Form::Bars { all, asking, .. } = &mut self.form {
            *asking = true;
            let _ = all.clear();
            all.set_draw_target(ProgressDrawTarget::hidden());
        }
        tell(question);
    }

    pub fn answered(&mut self) {
        if let Form::Bars { all, asking, .. } = &mut self.form {
            *asking = false;
            all.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    pub fn end(&mut self) {
        if let Form::Bars { head, steps, .. } = &mut self.form {
            head.finish_and_clear();
            steps.values().for_each(ProgressBar::finish_and_clear);
        }
    }
}

/// A head that says how far the whole is, and below it a line for each step at work.
fn bars(history: &History, after: Duration) -> Form {
    let all = MultiProgress::new();
    let head = all.add(ProgressBar::new(history.tasks.len() as u64).with_elapsed(after));
    let (tier, predicted) = (history.resolved.tier, Duration::from_millis(history.resolved.predicted_ms));
    let shown = move |state: &ProgressState, out: &mut dyn Write| {
        // Nobody can be told that a terminal cannot be written to.
        let _ = out.write_str(&clock(tier, predicted, state.elapsed()));
    };
    if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:20} {pos}/{len} steps · {clock}") {
        head.set_style(style.with_key("clock", shown));
    }
    head.set_prefix(format!("{} {}", history.resolved.level, history.resolved.plan));
    head.enable_steady_tick(Duration::from_millis(500));
    Form::Bars { all, head, steps: BTreeMap::new(), asking: false }
}

/// "3 m of 30 m, about 5 m to go".
fn clock(tier: Option<Tier>, predicted: Duration, after: Duration) -> String {
    let mut text = Shown(after).to_string();
    if let Some(tier) = tier {
        text += &format!(" of {}", Shown(tier.rto()));
    }
    if let Some(left) = predicted.checked_sub(after).filter(|left| !left.is_zero()) {
        text += &format!(", about {} to go", Shown(left));
    }
    text
}

fn sentence(history: &History, record: &Record) -> Option<String> {
    let named = |task: usize| history.resolved.tasks[task].name.as_str();
    let text = match &record.event {
        Event::Resolved(_)
        | Event::Noted { .. }
        | Event::Ended(_)
        | Event::Alive
        | Event::Resumed
        | Event::Left
        | Event::Displaced { .. } => return None,
        Event::ConfirmedOn { targets, .. } | Event::Confirmed(targets) => {
            let targets: Vec<_> = targets.iter().map(String::as_str).collect();
            format!("confirmed: {}", targets.join(", "))
        }
        Event::Began { task, attempt: 1 } => {
            format!("{}: {}", named(*task), describe(&history.resolved.tasks[*task].doing))
        }
        Event::Began { task, attempt } => format!("{}: attempt {attempt}", named(*task)),
        Event::Done { task, outcome } => {
            let mut text = format!("{}: done", named(*task));
            outcome.lines.iter().for_each(|line| text += &format!("; {line}"));
            if !outcome.problems.is_empty() {
                text += &format!(" ({} problems)", outcome.problems.len());
            }
            text
        }
        Event::Failed { task, text } => format!("{}: FAILED: {text}", named(*task)),
        Event::Opening { task } => format!("{}: letting go", named(*task)),
        Event::Cleared { task, lines } => format!("{}: given up; {}", named(*task), lines.join("; ")),
        Event::Opened { task, lines } => format!("{}: let go; {}", named(*task), lines.join("; ")),
    };
    Some(name(text.as_bytes()))
}

fn event(history: &History, record: &Record) -> Value {
    let mut line = json!({ "number": record.number, "time": record.at });
    let mut put = |event: &str, task: Option<usize>| {
        line["event"] = json!(event);
        if let Some(task) = task {
            line["step"] = json!(history.resolved.tasks[task].name);
        }
    };
    match &record.event {
        Event::Resolved(_) => put("resolved", None),
        Event::ConfirmedOn { targets, .. } | Event::Confirmed(targets) => {
            put("confirmed", None);
            line["targets"] = json!(targets);
        }
        Event::Began { task, attempt } => {
            put("began", Some(*task));
            line["attempt"] = json!(attempt);
        }
        Event::Noted { task, .. } => put("noted", Some(*task)),
        Event::Done { task, outcome } => {
            put("done", Some(*task));
            line["outcome"] = json!(outcome);
        }
        Event::Failed { task, text } => {
            put("failed", Some(*task));
            line["error"] = json!(text);
        }
        Event::Opening { task } => put("opening", Some(*task)),
        Event::Cleared { task, lines } => {
            put("cleared", Some(*task));
            line["lines"] = json!(lines);
        }
        Event::Opened { task, lines } => {
            put("opened", Some(*task));
            line["lines"] = json!(lines);
        }
        Event::Ended(verdict) => {
            put("ended", None);
            line["verdict"] = json!(verdict);
        }
        Event::Alive => put("alive", None),
        Event::Resumed => put("resumed", None),
        Event::Left => put("left", None),
        Event::Displaced { by } => {
            put("displaced", None);
            line["by"] = json!(by);
        }
    }
    line
}
