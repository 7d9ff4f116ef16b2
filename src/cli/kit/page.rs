//! `lifeboat kit print`: the page that lies in the safe. Where everything is, who holds the shares, what to type first.
//!
//! It holds no secret. It is made from the documents and from what the repository says of itself, for people who may have
//! never seen Lifeboat, on the day when everything else is gone.

use crate::cli::context::{Context, Opened, Use};
use crate::cli::fault::{Exit, Failure, Fault};
use crate::cli::output::{clock, print, print_json, sync_name, time};
use crate::config::Config;
use crate::policy::duration::Shown;
use crate::repo::{Role, Snapshot};
use serde_json::json;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Html,
}

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: Format,
    /// The file to write; must not exist
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Who holds a share, and how to reach them; repeatable, in the order of the shares
    #[arg(long, value_name = "NAME")]
    holder: Vec<String>,
}

/// What the page says, whatever it looks like.
struct Section {
    heading: &'static str,
    blocks: Vec<Block>,
}

enum Block {
    Text(String),
    /// The first row is the heading.
    Table(Vec<Vec<String>>),
    /// What is to be typed, and what for.
    Commands(Vec<(String, String)>),
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let opened = context.open(Use::Read).await?;
    let config = context.config()?;
    let title = format!("Recovery of {}", opened.settings.name);
    let mut sections = vec![repository(config, &opened), holders(&args.holder, &opened), commands(config, &opened)];
    sections.push(sources(context, config, &opened).await?);
    let made = format!("Made {} with Lifeboat {}. It holds no secret.", time(clock()), env!("CARGO_PKG_VERSION"));
    let page = match args.format {
        Format::Text => text(&title, &made, &sections),
        Format::Html => html(&title, &made, &sections),
    };
    let path = &args.output;
    let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
        Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => {
            let hint = "choose another file, or remove it if it is an older page";
            return Err(Fault::usage(format!("{} exists already", path.display()), hint).into());
        }
        other => other.map_err(Fault::file("create", path))?,
    };
    let written = file.write_all(page.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| sync_name(path));
    written.map_err(Fault::file("write", path))?;
    if context.globals.json {
        print_json(&json!({ "repository": opened.repository.root().id.to_string(), "page": path }))?;
    } else {
        print(&format!(
            "Saved the page: {}\nPrint it, and keep it with the shares and in another place.\n",
            path.display()
        ))?;
    }
    Ok(Exit::Ok)
}

fn row(name: &str, value: impl Into<String>) -> Vec<String> {
    vec![name.into(), value.into()]
}

fn heading(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn repository(config: &Config, opened: &Opened) -> Section {
    let (settings, root) = (&opened.settings, opened.repository.root());
    let mut rows = vec![
        heading(&["What", "Value"]),
        row("Repository", root.id.to_string()),
        row("URL", settings.url.to_string()),
        row("Created", time(root.created())),
    ];
    if let Some(s3) = &settings.s3 {
        rows.push(row("Endpoint", s3.endpoint.clone().unwrap_or_else(|| "Amazon S3".into())));
        rows.push(row("Region", s3.region.clone().unwrap_or_else(|| "from the environment".into())));
        rows.push(row("Bucket in the path", if s3.path_style { "yes (--s3-path-style)" } else { "no" }));
        if let Some(lock) = s3.object_lock {
            rows.push(row("Object Lock", format!("{} days", lock.minimum_days)));
        }
    }
    let recipients = root.recipients().iter().map(|recipient| {
        let role = match recipient.role {
            Role::Recovery => "recovery: opens everything",
            Role::Drill => "drill: opens snapshots",
            Role::Escrow => "escrow: opens snapshots",
        };
        vec![recipient.name.clone(), role.into(), recipient.key.clone()]
    });
    let mut blocks = vec![
        Block::Text("The id is that of the root key: compare it with what `lifeboat snapshots` of a bucket that someone else could \
                     write says.".into()),
        Block::Table(rows),
        Block::Table(std::iter::once(heading(&["Recipient", "Role", "Key"])).chain(recipients).collect()),
    ];
    let others = config.repositories.values().filter(|other| other.name != settings.name);
    let others: Vec<_> = others.map(|other| vec![other.name.clone(), super::place(other)]).collect();
    if !others.is_empty() {
        blocks.push(Block::Text(
            "Other repositories of the platform. A replica is used in the same way as the first.".into(),
        ));
        blocks.push(Block::Table(std::iter::once(heading(&["Name", "Options"])).chain(others).collect()));
    }
    Section { heading: "The repository", blocks }
}

fn holders(names: &[String], opened: &Opened) -> Section {
    let place = super::place(&opened.settings);
    let mut blocks = Vec::new();
    if names.is_empty() {
        blocks.push(Block::Text(
            "The recovery identity is in the recovery kit, or in shares that several people hold. Who they are was not said when \
             this page was made; write it here:"
                .into(),
        ));
        let line = "_".repeat(30);
        blocks.push(Block::Text(format!("{line}   {line}")));
    } else {
        let rows = (1..).zip(names).map(|(number, name): (u32, _)| vec![number.to_string(), name.clone()]);
        blocks.push(Block::Text(
            "These people hold the shares of the recovery identity. Each share says how many are needed.".into(),
        ));
        blocks.push(Block::Table(std::iter::once(heading(&["Share", "Held by"])).chain(rows).collect()));
    }
    blocks.push(Block::Commands(vec![
        (
            "With shares: type each into a file of its own, then".into(),
            "lifeboat kit combine --share share-a.txt --share share-b.txt -o identity.txt".into(),
        ),
        (
            "With a recovery kit: save it as identity.txt. Prove that it opens everything".into(),
            format!("lifeboat {place} --identity identity.txt kit check"),
        ),
    ]));
    Section { heading: "Who can open it", blocks }
}

fn commands(config: &Config, opened: &Opened) -> Section {
    let place = super::place(&opened.settings);
    let base = format!("lifeboat {place} --identity identity.txt");
    let with_documents = "lifeboat --config DOCUMENTS --identity identity.txt";
    let mut commands = vec![
        ("What there is".into(), format!("{base} snapshots")),
        ("One snapshot, into a new directory".into(), format!("{base} restore snapshot SOURCE@latest --to DIRECTORY")),
        ("One snapshot, in its system's own format".into(), format!("{base} export SOURCE@latest -o FILE")),
        (
            "One snapshot, into a running system: first what would happen, then without --dry-run".into(),
            format!("{with_documents} restore snapshot SOURCE@latest --into SOURCE --dry-run"),
        ),
    ];
    let mut plans: Vec<_> = config.plans.values().collect();
    plans.sort_by_key(|plan| plan.level);
    for plan in plans {
        let what = format!("{} {}: first what would happen, then without --dry-run", plan.level, plan.name);
        commands.push((what, format!("{with_documents} restore {} {} --dry-run", plan.level, plan.name)));
    }
    if config.plans.is_empty() {
        let what =
            "Several things that belong together, by a RestorePlan document (none is among the documents at hand)";
        commands.push((what.into(), format!("{with_documents} restore app PLAN --dry-run")));
    }
    let mut blocks = vec![Block::Text(
        "Needed: the lifeboat program, this page, the identity, and the bucket or directory. No cluster and no catalogue.".into(),
    )];
    if opened.settings.s3.is_some() {
        blocks.push(Block::Text(
            "For s3:// set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to credentials that may read the bucket.".into(),
        ));
    }
    blocks.push(Block::Commands(commands));
    blocks.push(Block::Text(
        "An earlier state: SOURCE@2026-03-01T12:00:00Z, or --at 2026-03-01T12:00:00Z for a plan.".into(),
    ));
    Section { heading: "The first commands", blocks }
}

async fn sources(context: &Context, config: &Config, opened: &Opened) -> Result<Section, Failure> {
    let access = context.access(opened)?;
    let mut all: std::collections::BTreeSet<_> = opened.repository.sources().await?.into_iter().collect();
    all.extend(config.sources.keys().cloned());
    let mut rows = vec![heading(&["Source", "Kind", "Tier", "Newest snapshot"])];
    for source in all {
        let lineage = opened.lineage(&source, &access);
        let newest = lineage.newest().await?.snapshot;
        let shown = |s: &Snapshot| format!("{source}@{}, {}", s.sequence(), time(s.recovery_point()));
        let kind = config.sources.get(&source).map(|document| document.capture.field().to_owned());
        let kind = kind.or_else(|| newest.as_ref()?.catalogue.as_ref().map(|c| c.kind.clone()));
        rows.push(vec![
            source.to_string(),
            kind.unwrap_or_else(|| "(not in the documents)".into()),
            config.tier(&source).map_or_else(String::new, |tier| tier.to_string()),
            newest.as_ref().map_or_else(|| "none yet".into(), shown),
        ]);
    }
    let grace = Shown(opened.settings.grace_period);
    Ok(Section {
        heading: "What is protected",
        blocks: vec![
            Block::Table(rows),
            Block::Text(format!(
                "The newest snapshots are those of the day of this page. What was pruned is gone after {grace}."
            )),
        ],
    })
}

fn text(title: &str, made: &str, sections: &[Section]) -> String {
    let mut page = format!("{title}\n{}\n{made}\n", "=".repeat(title.chars().count()));
    for section in sections {
        page += &format!("\n{}\n{}\n", section.heading, "-".repeat(section.heading.len()));
        for block in &section.blocks {
            page += &match block {
                Block::Text(text) => format!("{text}\n"),
                Block::Table(rows) => crate::cli::output::table(rows),
                Block::Commands(commands) => {
                    commands.iter().map(|(what, command)| format!("{what}:\n    {command}\n")).collect()
                }
            };
            page += "\n";
        }
    }
    page
}

const STYLE: &str = "body{font:11pt/1.4 serif;max-width:48em;margin:2em auto;padding:0 1em;color:#000;background:#fff}\
h1{font-size:1.5em}h2{font-size:1.15em;margin:1.4em 0 .4em;border-bottom:1px solid #000}\
table{border-collapse:collapse;margin:.6em 0;width:100%}th,td{border:1px solid #777;padding:.2em .5em;text-align:left;\
vertical-align:top;overflow-wrap:anywhere}th{background:#eee}code{font:9.5pt/1.3 monospace;display:block;\
white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid #777;padding-left:.6em;margin:.2em 0 .7em}\
@page{margin:15mm}@media print{body{margin:0;max-width:none}h2,tr,dt{break-after:avoid}tr,code{break-inside:avoid}}";

fn html(title: &str, made: &str, sections: &[Section]) -> String {
    let title = escape(title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         </head>\n<body>\n<h1>{title}</h1>\n<p>{}</p>\n",
        escape(made)
    );
    for section in sections {
        page += &format!("<h2>{}</h2>\n", escape(section.heading));
        for block in &section.blocks {
            page += &match block {
                Block::Text(text) => format!("<p>{}</p>\n", escape(text)),
                Block::Table(rows) => html_table(rows),
                Block::Commands(commands) => {
                    let one = |(what, command): &(String, String)| {
                        format!("<dt>{}:</dt><dd><code>{}</code></dd>\n", escape(what), escape(command))
                    };
                    format!("<dl>\n{}</dl>\n", commands.iter().map(one).collect::<String>())
                }
            };
        }
    }
    page + "</body>\n</html>\n"
}

fn html_table(rows: &[Vec<String>]) -> String {
    let row = |(number, cells): (usize, &Vec<String>)| {
        let tag = if number == 0 { "th" } else { "td" };
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    format!("<table>\n{}</table>\n", rows.iter().enumerate().map(row).collect::<String>())
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_documents_say_is_text_and_no_markup() {
        let cell = |text: &str| vec![text.to_owned()];
        let sections = [Section {
            heading: "A",
            blocks: vec![
                Block::Text("<script>\u{7}".into()),
                Block::Table(vec![cell("x"), cell("'\"&")]),
                Block::Commands(vec![("<b>".into(), "a > b".into())]),
            ],
        }];
        let page = html("<t>", "</body>", &sections);
        assert!(page.contains("&lt;script&gt; ") && page.contains("&#39;&quot;&amp;") && page.contains("a &gt; b"));
        assert!(!page.contains("<script") && !page.contains("<b>") && !page.contains("<t>"), "{page}");
        assert_eq!(page.matches("</body>").count(), 1);
        // Nothing is loaded from elsewhere.
        assert!(!page.contains("http") && !page.contains("url("));
    }
}
