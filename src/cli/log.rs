//! Log lines on standard error: text for people, JSON lines with the run's id for machines.

use super::globals::{Globals, LogFormat};
use super::output::clock;
use serde_json::{Map, Value, json};
use std::fmt::Debug;
use std::io::IsTerminal as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry;

/// Installs the process's subscriber.
pub fn start(globals: &Globals, run: &str) {
    let json = globals.log_format == LogFormat::Json;
    let level = match (globals.quiet, globals.verbose + u8::from(json)) {
        (true, _) => Level::ERROR,
        (false, 0) => Level::WARN,
        (false, 1) => Level::INFO,
        (false, 2) => Level::DEBUG,
        _ => Level::TRACE,
    };
    // Libraries have their say only when much is asked for.
    let ours = move |meta: &tracing::Metadata<'_>| meta.target().starts_with("lifeboat") || level >= Level::TRACE;
    let filter = tracing_subscriber::filter::filter_fn(ours);
    let (as_json, as_text) = if json {
        (Some(JsonLines { run: run.to_owned() }), None)
    } else {
        let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
        (None, Some(text.with_ansi(std::io::stderr().is_terminal())))
    };
    let level = LevelFilter::from_level(level);
    let subscriber = registry().with(level).with(as_json.with_filter(filter.clone())).with(as_text.with_filter(filter));
    // Fails only if there is one already, in a test.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// One object per line. The run's id is in every one, whatever thread it comes from.
struct JsonLines {
    run: String,
}

impl<S: Subscriber> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let mut line = Map::new();
        line.insert("time".into(), json!(clock().to_string()));
        line.insert("level".into(), json!(event.metadata().level().as_str().to_lowercase()));
        line.insert("run".into(), json!(self.run));
        line.insert("target".into(), json!(event.metadata().target()));
        line.extend(fields.0);
        eprintln!("{}", Value::Object(line));
    }
}

struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().into(), json!(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.0.insert(field.name().into(), json!(super::fault::chain(value).join(": ")));
    }
}
