//! Everything below one directory of the snapshot; and when all of it has been read: contents are read by other threads,
//! after the walk has handed them over.

use crate::entry::{Content, Entry, Input, Kind, Open, Problem, Sink, Stopped, Verdict};
use crate::source::{Context, SourceError};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::io;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(50);

pub struct Below<'a> {
    sink: &'a mut dyn Sink,
    directory: &'static str,
    /// Nothing is ever sent: every content that has not been read keeps a copy.
    unread: Sender<()>,
    read: Receiver<()>,
}

impl<'a> Below<'a> {
    pub fn new(sink: &'a mut dyn Sink, directory: &'static str) -> Self {
        let (unread, read) = bounded(0);
        Self { sink, directory, unread, read }
    }

    /// Waits until every content has been read, or will not be.
    ///
    /// # Errors
    /// The run was given up.
    pub fn wait(self, context: &Context) -> Result<(), SourceError> {
        drop(self.unread);
        while self.read.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            context.go_on()?;
        }
        Ok(())
    }
}

fn path_below(directory: &str, path: &[u8]) -> Vec<u8> {
    match path {
        b"" | b"." => directory.into(),
        below => [directory.as_bytes(), b"/", below].concat(),
    }
}

/// The entry of the root `directory`, or of what is in it.
pub fn entry_below(directory: &str, mut entry: Entry) -> Entry {
    entry.path = path_below(directory, &entry.path);
    if entry.kind == Kind::Hardlink {
        entry.link = entry.link.map(|link| path_below(directory, &link));
    }
    entry
}

impl Sink for Below<'_> {
    fn add(&mut self, entry: Entry, input: Option<Input>) -> Result<(), Stopped> {
        let entry = entry_below(self.directory, entry);
        let input = input.map(|input| {
            let (open, unread) = (input.open, self.unread.clone());
            let open: Open =
                Box::new(move || Ok(Box::new(Counted { content: open()?, _unread: unread }) as Box<dyn Content>));
            Input { open, ..input }
        });
        self.sink.add(entry, input)
    }

    fn problem(&mut self, problem: Problem) {
        self.sink.problem(Problem { path: path_below(self.directory, &problem.path), ..problem });
    }
}

struct Counted {
    content: Box<dyn Content>,
    _unread: Sender<()>,
}

impl Content for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.content.read(buffer)
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        self.content.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Layout, OnError};
    use crate::source::Cancel;
    use std::time::Instant;

    /// Keeps contents without reading them.
    #[derive(Default)]
    struct Slow(Vec<(Entry, Option<Input>)>);

    impl Sink for Slow {
        fn add(&mut self, entry: Entry, input: Option<Input>) -> Result<(), Stopped> {
            self.0.push((entry, input));
            Ok(())
        }

        fn problem(&mut self, _: Problem) {}
    }

    struct Nothing;

    impl Content for Nothing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }

        fn finish(self: Box<Self>) -> io::Result<Verdict> {
            Ok(Verdict::Consistent)
        }
    }

    fn file(path: &str) -> (Entry, Input) {
        let open = Box::new(|| Ok(Box::new(Nothing) as Box<dyn Content>));
        let entry = crate::source::command::plain_file(path.into(), 0, jiff::Timestamp::UNIX_EPOCH);
        (entry, Input { layout: Layout::Content, fingerprint: None, on_error: OnError::Report, open })
    }

    #[test]
    fn what_is_not_read_yet_is_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let context = Context {
            runtime: runtime.handle().clone(),
            cancel: Cancel::default(),
            started: jiff::Timestamp::UNIX_EPOCH,
            begun: Instant::now(),
            deadline: Instant::now() + Duration::from_mins(1),
        };
        let mut slow = Slow::default();
        let mut below = Below::new(&mut slow, "files");
        for path in [".", "read", "known", "unread"] {
            let (entry, input) = file(path);
            below.add(entry, Some(input)).unwrap();
        }
        let (unread, read) = (below.unread.clone(), below.read.clone());
        drop((below, unread));
        let paths: Vec<_> = slow.0.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect();
        assert_eq!(paths, ["files", "files/read", "files/known", "files/unread"]);
        for (index, (_, input)) in slow.0.drain(..).enumerate() {
            assert_eq!(read.try_recv(), Err(crossbeam_channel::TryRecvError::Empty), "{index} are read");
            // One is known already, and never opened.
            if index != 2 {
                (input.unwrap().open)().unwrap().finish().unwrap();
            }
        }
        assert_eq!(read.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected));
        let below = Below::new(&mut slow, "files");
        below.wait(&context).unwrap();
    }
}
