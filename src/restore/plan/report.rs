//! What an execution did, for people afterwards: as Markdown, HTML and JSON. Pure.

use super::document::Doing;
use super::journal::{History, State};
use super::{between, milliseconds};
use crate::policy::duration::Shown;
use jiff::Timestamp;
use serde::Serialize;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub id: String,
    pub plan: String,
    pub level: String,
    pub repository: String,
    pub verdict: &'static str,
    pub began: Timestamp,
    pub ended: Timestamp,
    /// `None`: a clock was set back meanwhile.
    pub took_ms: Option<u64>,
    /// The tier's recovery time objective.
    pub rto_ms: Option<u64>,
    /// Milliseconds between the oldest and the newest recovery point.
    pub skew_ms: u64,
    pub steps: Vec<Line>,
    pub parts: Vec<Part>,
    pub to_do: Vec<String>,
    pub warnings: Vec<String>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    pub step: String,
    pub kind: &'static str,
    pub state: &'static str,
    /// Milliseconds after the execution began.
    pub began_ms: Option<u64>,
    pub took_ms: Option<u64>,
    pub attempts: u32,
    pub lines: Vec<String>,
    pub problems: Vec<String>,
}

/// A source that was brought back, as of when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    pub step: String,
    pub snapshot: String,
    pub moment: Timestamp,
    pub bytes: u64,
    pub loss_ms: u64,
    pub rpo_ms: Option<u64>,
}

/// "1.2 s", "6 m 30 s".
#[must_use]
pub fn shown(milliseconds: u64) -> String {
    if milliseconds < 10_000 {
        return format!("{:.1} s", milliseconds as f64 / 1000.0);
    }
    Shown(Duration::from_millis(milliseconds)).to_string()
}

impl Report {
    #[must_use]
    pub fn new(id: &str, history: &History) -> Self {
        let resolved = &history.resolved;
        let tasks = || resolved.tasks.iter().zip(&history.tasks);
        let steps = tasks().map(|(task, progress)| {
            let (state, mut problems) = match &progress.state {
                State::Waiting => ("not begun", Vec::new()),
                State::Running => ("not finished", Vec::new()),
                State::Done => ("done", Vec::new()),
                State::Failed(text) => ("failed", vec![text.clone()]),
            };
            problems.extend(progress.outcome.problems.iter().cloned());
            Line {
                step: task.name.clone(),
                kind: task.doing.field(),
                state,
                began_ms: progress.began.map(|began| milliseconds(between(history.began, began))),
                took_ms: progress.began.zip(progress.ended).map(|(began, ended)| milliseconds(between(began, ended))),
                attempts: progress.attempts,
                lines: progress.outcome.lines.clone(),
                problems,
            }
        });
        let parts = tasks().filter(|(_, progress)| progress.state == State::Done).filter_map(|(task, _)| {
            let choice = task.choice.as_ref()?;
            Some(Part {
                step: task.name.clone(),
                snapshot: format!("{}@{}", choice.source, choice.sequence),
                moment: choice.moment,
                bytes: choice.bytes,
                loss_ms: choice.loss_ms,
                rpo_ms: choice.rpo_ms,
            })
        });
        let mut to_do: Vec<String> = tasks()
            .flat_map(|(task, progress)| progress.outcome.to_do.iter().map(|line| format!("{}: {line}", task.name)))
            .collect();
        for fence in &history.closed {
            let name = &resolved.tasks[*fence].name;
            to_do.push(format!(
                "{name}: this fence is closed; `--resume {id}` goes on, `--abort {id}` gives up and opens it"
            ));
        }
        Self {
            id: id.into(),
            plan: resolved.plan.clone(),
            level: resolved.level.to_string(),
            repository: resolved.repository.clone(),
            verdict: history.standing(),
            began: history.began,
            ended: history.last,
            took_ms: (!history.set_back).then(|| milliseconds(between(history.began, history.last))),
            rto_ms: resolved.tier.map(|tier| u64::try_from(tier.rto().as_millis()).unwrap_or(u64::MAX)),
            skew_ms: resolved.skew_ms,
            steps: steps.collect(),
            parts: parts.collect(),
            to_do,
            warnings: resolved.warnings.clone(),
        }
    }

    /// Whether the recovery took longer, or lost more, than its tier allows. Of a time that is not known, nobody can say that it
    /// did not.
    #[must_use]
    pub fn missed(&self) -> bool {
        self.rto_ms.is_some_and(|rto| self.took_ms.is_none_or(|took| took > rto))
            || self.parts.iter().any(|part| part.rpo_ms.is_some_and(|rpo| part.loss_ms > rpo))
    }

    fn title(&self) -> String {
        format!("Restore of {} {}: {}", self.level, self.plan, self.verdict)
    }

    fn facts(&self) -> Vec<[String; 2]> {
        let judged = |is: Option<u64>, limit: Option<u64>| match (is, limit) {
            (None, limit) => {
                let limit = limit.map(|limit| format!(", nor whether it is within {}", shown(limit)));
                format!("not known, since a clock was set back{}", limit.unwrap_or_default())
            }
            (Some(is), Some(limit)) if is > limit => format!("{}, more than {}: missed", shown(is), shown(limit)),
            (Some(is), Some(limit)) => format!("{} of {}", shown(is), shown(limit)),
            (Some(is), None) => shown(is),
        };
        let mut facts = vec![
            ["Id".into(), self.id.clone()],
            ["Repository".into(), self.repository.clone()],
            ["Began".into(), self.began.to_string()],
            ["Ended".into(), self.ended.to_string()],
            ["Recovery time".into(), judged(self.took_ms, self.rto_ms)],
        ];
        if self.parts.len() > 1 {
            facts.push(["Skew between parts".into(), shown(self.skew_ms)]);
        }
        facts
    }

    fn parts_table(&self) -> Vec<Vec<String>> {
        let mut rows = vec![["Step", "Snapshot", "As of", "Lost", "Allowed"].map(str::to_owned).to_vec()];
        rows.extend(self.parts.iter().map(|part| {
            let missed = if part.rpo_ms.is_some_and(|rpo| part.loss_ms > rpo) { " (missed)" } else { "" };
            vec![
                part.step.clone(),
                part.snapshot.clone(),
                part.moment.to_string(),
                format!("{}{missed}", shown(part.loss_ms)),
                part.rpo_ms.map(shown).unwrap_or_default(),
            ]
        }));
        rows
    }

    fn steps_table(&self) -> Vec<Vec<String>> {
        let mut rows = vec![["Step", "Kind", "After", "Took", "State", "What"].map(str::to_owned).to_vec()];
        rows.extend(self.steps.iter().map(|line| {
            let mut state = line.state.to_owned();
            if line.attempts > 1 {
                state += &format!(", {} attempts", line.attempts);
            }
            let what: Vec<_> = line.lines.iter().chain(&line.problems).map(String::as_str).collect();
            vec![
                line.step.clone(),
                line.kind.to_owned(),
                line.began_ms.map(shown).unwrap_or_default(),
                line.took_ms.map(shown).unwrap_or_default(),
                state,
                what.join("; "),
            ]
        }));
        rows
    }

    fn lists(&self) -> [(&'static str, Vec<String>); 3] {
        let problems = self
            .steps
            .iter()
            .flat_map(|line| line.problems.iter().map(move |problem| format!("{}: {problem}", line.step)));
        [("To do", self.to_do.clone()), ("Problems", problems.collect()), ("Warnings", self.warnings.clone())]
    }

    #[must_use]
    pub fn markdown(&self) -> String {
        // Programs and servers wrote some of it: no pictures from elsewhere, no HTML.
        let cell = |text: &String| {
            let plain = text.replace(char::is_control, " ").replace('<', "&lt;");
            ['|', '[', '`'].iter().fold(plain, |text, sign| text.replace(*sign, &format!("\\{sign}")))
        };
        let mut text = format!("# {}\n\n", self.title());
        for [name, value] in self.facts() {
            text += &format!("- {name}: {}\n", cell(&value));
        }
        for (title, rows) in [("Recovery points", self.parts_table()), ("Timeline", self.steps_table())] {
            if rows.len() == 1 {
                continue;
            }
            text += &format!("\n## {title}\n\n");
            for (number, row) in rows.iter().enumerate() {
                let cells: Vec<_> = row.iter().map(cell).collect();
                text += &format!("| {} |\n", cells.join(" | "));
                if number == 0 {
                    text += &format!("|{}\n", "---|".repeat(row.len()));
                }
            }
        }
        for (title, lines) in self.lists() {
            if !lines.is_empty() {
                text += &format!("\n## {title}\n\n");
                text += &lines.iter().map(|line| format!("- {}\n", cell(line))).collect::<String>();
            }
        }
        text
    }

    #[must_use]
    pub fn html(&self) -> String {
        let title = escaped(&self.title());
        let mut body = format!("<h1>{title}</h1>\n<dl>\n");
        for [name, value] in self.facts() {
            body += &format!("<dt>{}</dt><dd>{}</dd>\n", escaped(&name), escaped(&value));
        }
        body += "</dl>\n";
        for (title, rows) in [("Recovery points", self.parts_table()), ("Timeline", self.steps_table())] {
            if rows.len() == 1 {
                continue;
            }
            body += &format!("<h2>{title}</h2>\n<table>\n");
            for (number, row) in rows.iter().enumerate() {
                let tag = if number == 0 { "th" } else { "td" };
                let cells: String = row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
                body += &format!("<tr>{cells}</tr>\n");
            }
            body += "</table>\n";
        }
        for (title, lines) in self.lists() {
            if !lines.is_empty() {
                let items: String = lines.iter().map(|line| format!("<li>{}</li>\n", escaped(line))).collect();
                body += &format!("<h2>{title}</h2>\n<ul>\n{items}</ul>\n");
            }
        }
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>body{{font:15px \
             sans-serif;margin:2em;max-width:70em}}table{{border-collapse:collapse}}td,th{{border:1px solid \
             #999;padding:.3em .6em;text-align:left;vertical-align:top}}dt{{font-weight:bold}}</style></head>\n<body>\n{body}\
             </body></html>\n"
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// One line on what a step will do.
#[must_use]
pub fn describe(doing: &Doing) -> String {
    match doing {
        Doing::Restore(restore) => format!("restore {} into {}", restore.source, restore.place()),
        Doing::Plan(plan) => format!("carry out the plan {plan}"),
        Doing::Probe(probe) => format!("wait until {}", probe.describe()),
        Doing::Fence(fence) => match (&fence.cluster, &fence.close) {
            (Some(cluster), _) => format!("hold back in {cluster}"),
            (None, Some(run)) => format!("close by {}", run.command.join(" ")),
            (None, None) => "close a fence".into(),
        },
        Doing::Unfence(fence) => format!("let go again what {fence} held back"),
        Doing::Run(run) => format!("run {}", run.command.join(" ")),
        Doing::Job(job) => {
            let name = job.manifest["metadata"]["name"].as_str().or(job.manifest["metadata"]["generateName"].as_str());
            format!("run the Job {} in {}", name.unwrap_or("without a name"), job.cluster)
        }
        Doing::Ask(text) => format!("ask a person: {text}"),
    }
}
