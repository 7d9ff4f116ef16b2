//! Lists that come page by page.
//!
//! A page's size follows the size of its objects, so that a page of large Secrets needs no more memory than one of small
//! ones; the page after the current one is under way.

use super::api::{Api, Ask, Failure};
use super::kinds::Kind;
use crate::source::{Context, SourceError};
use futures_util::{Stream, StreamExt as _, stream};
use kube::api::ListParams;
use serde_json::Value;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Objects of a first page, of which nothing is known yet.
const FIRST: u32 = 16;
const MOST: u32 = 500;
/// Bytes that a page should have.
const PAGE: usize = 2 << 20;
/// Lists whose first pages are under way.
const AHEAD: usize = 4;

/// What is listed.
#[derive(Clone, Debug)]
pub struct List {
    pub kind: Kind,
    /// `None`: all namespaces, or a kind that has none.
    pub namespace: Option<String>,
    pub selector: Option<String>,
}

impl List {
    pub fn describe(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("list {} in {namespace}", self.kind.word()),
            None => format!("list {}", self.kind.word()),
        }
    }
}

pub struct Page {
    pub items: Vec<Value>,
    /// Of the list as a whole.
    pub version: String,
    next: Option<String>,
    /// Objects to ask for next.
    limit: u32,
}

/// A page's objects and the list's version.
type Answer = Result<(Vec<Value>, String), Failure>;
type Fetch = JoinHandle<Result<Page, Failure>>;

/// A list of which the first page has come.
pub struct Listing {
    api: Arc<Api>,
    pub list: List,
    /// The next page to be given, and what comes after it.
    pending: Option<Fetch>,
    first: Option<Result<Page, Failure>>,
    /// `namespace/name` of the last object given; lists are in this order.
    last: String,
    /// Objects up to this one have been given already.
    skip: Option<String>,
    /// How often the list had expired.
    pub expired: u32,
}

/// The lists, each with its first page, in this order.
pub fn open(context: &Context, api: &Arc<Api>, lists: Vec<List>) -> impl Stream<Item = Listing> + Unpin + use<> {
    let (runtime, api) = (context.runtime.clone(), Arc::clone(api));
    let started = stream::iter(lists).map(move |list| {
        let first = runtime.spawn(fetch(Arc::clone(&api), list.clone(), None, FIRST));
        let api = Arc::clone(&api);
        Box::pin(async move {
            let first = Some(joined(first).await);
            Listing { api, list, pending: None, first, last: String::new(), skip: None, expired: 0 }
        })
    });
    started.buffered(AHEAD)
}

impl Listing {
    /// The next objects; `None` at the end.
    pub fn page(&mut self, context: &Context) -> Result<Option<Answer>, SourceError> {
        let mut came = match (self.first.take(), self.pending.take()) {
            (Some(first), _) => first,
            (None, Some(pending)) => context.wait(joined(pending))?,
            (None, None) => return Ok(None),
        };
        if let Err(Failure::Status { code: 410, go_on, .. }) = &came
            && self.expired < 8
        {
            // The server may offer to go on with what is there now; otherwise the list begins anew.
            let go_on = go_on.clone().filter(|token| !token.is_empty());
            self.expired += 1;
            if go_on.is_none() {
                self.skip = Some(self.last.clone());
            }
            let again = fetch(Arc::clone(&self.api), self.list.clone(), go_on, FIRST);
            came = context.wait(again)?;
        }
        let mut page = match came {
            Ok(page) => page,
            Err(failure) => return Ok(Some(Err(failure))),
        };
        if page.next.is_some() {
            let next = fetch(Arc::clone(&self.api), self.list.clone(), page.next.take(), page.limit);
            self.pending = Some(context.runtime.spawn(next));
        }
        if let Some(skip) = &self.skip {
            page.items.retain(|item| key(item) > *skip);
        }
        if let Some(last) = page.items.last() {
            self.last = key(last);
        }
        Ok(Some(Ok((page.items, page.version))))
    }
}

/// The order of lists.
fn key(item: &Value) -> String {
    let part = |name: &str| item["metadata"][name].as_str().unwrap_or_default().to_owned();
    match part("namespace") {
        namespace if namespace.is_empty() => part("name"),
        namespace => format!("{namespace}/{}", part("name")),
    }
}

async fn joined(task: Fetch) -> Result<Page, Failure> {
    task.await.unwrap_or_else(|error| Err(Failure::Transport(format!("the request was given up: {error}"))))
}

async fn fetch(api: Arc<Api>, list: List, token: Option<String>, limit: u32) -> Result<Page, Failure> {
    let parameters = ListParams {
        label_selector: list.selector.clone(),
        limit: Some(limit),
        continue_token: token,
        ..ListParams::default()
    };
    let path = list.kind.path(list.namespace.as_deref());
    let (mut answer, bytes) = api.send_sized(&path, &Ask::List(&parameters)).await?;
    let text = |name: &str| answer["metadata"][name].as_str().unwrap_or_default().to_owned();
    let (version, next) = (text("resourceVersion"), text("continue"));
    let Value::Array(items) = answer["items"].take() else {
        return Ok(Page { items: Vec::new(), version, next: None, limit });
    };
    let each = (bytes / items.len().max(1)).max(1);
    let limit = u32::try_from(PAGE / each).unwrap_or(MOST).clamp(1, MOST.min(limit.saturating_mul(8)));
    Ok(Page { items, version, next: (!next.is_empty()).then_some(next), limit })
}
