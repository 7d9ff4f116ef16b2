//! Child processes, the only place that starts them: no shell, no standard input unless it is fed, an own process group
//! that is killed as a whole at the deadline, when the run is stopped, and when [`Running`] is dropped. Of those that are
//! started by [`Command::start_bound`] also when this process is killed.

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use rustix::process::{Pid, Signal, kill_current_process_group, kill_process_group};
use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use zeroize::Zeroizing;

const TICK: Duration = Duration::from_millis(20);
const PIECE: usize = 64 << 10;
const STDERR_KEPT: usize = 4 << 10;
/// Also when it was replaced by a newer one in the meantime.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// The first argument of this program when it is to [`supervise`] another.
pub const SUPERVISE: &str = "supervise-program";

/// What to run.
pub struct Command {
    pub program: String,
    pub arguments: Vec<String>,
    pub inherits: Inherits,
    /// On top of that.
    pub env: Vec<(String, Zeroizing<String>)>,
    pub deadline: Instant,
    /// Asked often: true ends it early.
    pub stop: Box<dyn Fn() -> bool + Send>,
}

/// What a program gets of our own environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inherits {
    /// What every program needs: nothing there changes what it does, and no secret is among it.
    Little,
    /// For a program of people's own.
    AllBut(BTreeSet<String>),
}

const LITTLE: [&str; 7] = ["PATH", "HOME", "TMPDIR", "TZ", "LANG", "LD_LIBRARY_PATH", "SSH_AUTH_SOCK"];

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("start {program} (is it installed, and on the PATH?)")]
    Start { program: String, source: io::Error },
    #[error(
        "{program} was killed: it did not end within its time; raise the timeout or find out what it waits for{stderr}"
    )]
    Deadline { program: String, stderr: String },
    #[error("{program} was killed: the run was cancelled")]
    Stopped { program: String },
    #[error("{program} {status}{stderr}")]
    Exit { program: String, status: String, stderr: String },
    #[error("read the output of {program}")]
    Output { program: String, source: io::Error },
    #[error("{program} wrote more than {limit} bytes")]
    TooMuch { program: String, limit: usize },
}

/// A started program; its standard output is read in order.
pub struct Running {
    command: Command,
    child: Child,
    reaped: bool,
    output: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    taken: usize,
    stderr: Arc<Mutex<VecDeque<u8>>>,
    stderr_end: Receiver<()>,
    /// Pieces for its standard input, until that is closed.
    input: Option<Sender<Vec<u8>>>,
}

impl Command {
    pub fn start(self) -> Result<Running, ExecError> {
        self.start_with(Stdio::null(), false)
    }

    /// So that it and all that it starts in its group end with this process, however that ends.
    ///
    /// This program itself, started once more ([`supervise`]), stands between: the pipe to it closes when nobody holds the
    /// other end. The kernel's own way (a signal at the parent's death) is set between fork and exec, which takes unsafe code,
    /// and reaches no grandchildren.
    pub fn start_bound(self) -> Result<Running, ExecError> {
        self.start_with(Stdio::piped(), true)
    }

    /// With a standard input that [`Running`] writes to, up to [`Running::close`].
    pub fn start_fed(self) -> Result<Running, ExecError> {
        let mut running = self.start_with(Stdio::piped(), false)?;
        let (send, pieces) = bounded::<Vec<u8>>(4);
        let stdin = running.child.stdin.take();
        let feed = move || {
            let Some(mut stdin) = stdin else { return };
            // Whoever reads no further has ended, or is about to: its end tells why.
            let _ = pieces.iter().try_for_each(|piece| stdin.write_all(&piece));
        };
        let spawned = std::thread::Builder::new().name("stdin".into()).spawn(feed);
        spawned.map_err(|source| ExecError::Start { program: running.program(), source })?;
        running.input = Some(send);
        Ok(running)
    }

    fn start_with(self, stdin: Stdio, bound: bool) -> Result<Running, ExecError> {
        let fail = |source| ExecError::Start { program: self.program.clone(), source };
        let program = if bound { OWN_PROGRAM } else { self.program.as_str() };
        #[expect(clippy::disallowed_methods, reason = "this is where child processes are started")]
        let mut command = std::process::Command::new(program);
        if bound {
            command.args([SUPERVISE, &self.program]);
        }
        #[expect(clippy::disallowed_methods, reason = "of what is handed on, nothing is looked at")]
        match &self.inherits {
            Inherits::Little => {
                let kept = LITTLE.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
                command.env_clear().envs(kept);
            }
            Inherits::AllBut(names) => names.iter().for_each(|name| _ = command.env_remove(name)),
        }
        command.args(&self.arguments).envs(self.env.iter().map(|(name, value)| (name, value.as_str())));
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(fail)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (send, output) = bounded(4);
        let (send_end, stderr_end) = bounded(1);
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let running = Running {
            child,
            reaped: false,
            output,
            piece: Vec::new(),
            taken: 0,
            stderr: Arc::clone(&tail),
            stderr_end,
            input: None,
            command: self,
        };
        let pump = move || {
            let Some(mut stdout) = stdout else { return };
            loop {
                let mut piece = vec![0; PIECE];
                let read = match stdout.read(&mut piece) {
                    Ok(0) => return,
                    Ok(length) => {
                        piece.truncate(length);
                        Ok(piece)
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let end = read.is_err();
                if send.send(read).is_err() || end {
                    return;
                }
            }
        };
        let listen = move || {
            let mut buffer = [0; 4096];
            let Some(mut stderr) = stderr else { return };
            while let Ok(length @ 1..) = stderr.read(&mut buffer) {
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                tail.extend(&buffer[..length]);
                let excess = tail.len().saturating_sub(STDERR_KEPT);
                tail.drain(..excess);
            }
            let _ = send_end.send(()); // nobody may be waiting
        };
        let spawn =
            |name: &str, work: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name.into()).spawn(work);
        for (name, work) in [("stdout", Box::new(pump) as Box<dyn FnOnce() + Send>), ("stderr", Box::new(listen))] {
            spawn(name, work)
                .map_err(|source| ExecError::Start { program: running.command.program.clone(), source })?;
        }
        Ok(running)
    }

    /// Runs to the end and gives all output, which must not be larger than `limit`.
    pub fn run(self, limit: usize) -> Result<Vec<u8>, ExecError> {
        let mut running = self.start()?;
        let (mut all, mut buffer) = (Vec::new(), vec![0; PIECE]);
        loop {
            let length = running.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            if all.len() + length > limit {
                return Err(ExecError::TooMuch { program: running.program(), limit });
            }
            all.extend_from_slice(&buffer[..length]);
        }
        running.wait()?;
        Ok(all)
    }

    /// Runs to the end and gives what it says on standard error, of much the last.
    pub fn run_for_stderr(self) -> Result<String, ExecError> {
        let (mut running, mut buffer) = (self.start()?, vec![0; PIECE]);
        while running.read(&mut buffer)? > 0 {}
        running.end()?;
        Ok(running.last_words())
    }
}

/// A temporary directory that nobody else looks into, for what a program writes.
pub fn private_directory(prefix: &str) -> io::Result<TempDir> {
    tempfile::Builder::new().prefix(prefix).permissions(Permissions::from_mode(0o700)).tempdir()
}

/// Of the last `kept` bytes of something, its whole lines: half a line may be half a secret, which nobody would know.
pub fn whole_lines(mut tail: Vec<u8>, kept: usize) -> Vec<u8> {
    if tail.len() >= kept {
        let end = tail.iter().position(|byte| *byte == b'\n').map_or(tail.len(), |at| at + 1);
        tail.drain(..end);
    }
    tail
}

/// Puts the names of secrets in their place, the longest first: one may hold another.
pub fn hide(text: &str, secrets: &[(String, Zeroizing<String>)]) -> String {
    let mut known: Vec<_> = secrets.iter().filter(|(_, secret)| !secret.trim().is_empty()).collect();
    known.sort_by_key(|(_, secret)| std::cmp::Reverse(secret.trim().len()));
    known
        .into_iter()
        .fold(text.to_owned(), |text, (name, secret)| text.replace(secret.trim(), &format!("(the value of {name})")))
}

/// Runs the program that `words` name, and ends the whole process group when the standard input ends: nobody waits any more.
/// Returns the exit code, as a shell gives it.
pub fn supervise(mut words: impl Iterator<Item = OsString>) -> Result<u8, ExecError> {
    let program = words.next().unwrap_or_default();
    #[expect(clippy::disallowed_methods, reason = "this is where child processes are started")]
    let mut command = std::process::Command::new(&program);
    let fail = |source| ExecError::Start { program: program.display().to_string(), source };
    let mut child = command.args(words).stdin(Stdio::null()).spawn().map_err(fail)?;
    let watch = || {
        // Nothing is ever written to it.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = kill_current_process_group(Signal::KILL);
    };
    if let Err(source) = std::thread::Builder::new().name("watch".into()).spawn(watch) {
        let _ = child.kill(); // gone already
        return Err(fail(source));
    }
    let status = child.wait().map_err(fail)?;
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

impl Running {
    /// As [`Read::read`]; 0 is the end of the output, which says nothing of success: see [`Running::wait`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ExecError> {
        while self.taken == self.piece.len() {
            self.go_on()?;
            match self.output.recv_timeout(TICK) {
                Ok(Ok(piece)) => (self.piece, self.taken) = (piece, 0),
                Ok(Err(source)) => return Err(ExecError::Output { program: self.program(), source }),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len() - self.taken);
        buffer[..length].copy_from_slice(&self.piece[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }

    /// Whether it has ended by itself; [`Running::wait`] says how.
    pub fn has_ended(&mut self) -> Result<bool, ExecError> {
        self.go_on()?;
        let ended = self.child.try_wait();
        let ended = ended.map_err(|source| ExecError::Output { program: self.program(), source })?.is_some();
        self.reaped |= ended;
        Ok(ended)
    }

    /// Ends its standard input.
    pub fn close(&mut self) {
        self.input = None;
    }

    /// Waits for its end. Anything but exit status 0 is an error.
    pub fn wait(mut self) -> Result<(), ExecError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), ExecError> {
        let status = loop {
            let ended = self.child.try_wait();
            match ended.map_err(|source| ExecError::Output { program: self.program(), source })? {
                Some(status) => break status,
                None => self.go_on()?,
            }
            std::thread::sleep(TICK);
        };
        self.reaped = true;
        if status.success() {
            return Ok(());
        }
        Err(ExecError::Exit { program: self.program(), status: describe(status), stderr: self.last_words() })
    }

    fn go_on(&mut self) -> Result<(), ExecError> {
        if (self.command.stop)() {
            self.kill();
            Err(ExecError::Stopped { program: self.program() })
        } else if Instant::now() >= self.command.deadline {
            self.kill();
            Err(ExecError::Deadline { program: self.program(), stderr: self.last_words() })
        } else {
            Ok(())
        }
    }

    fn program(&self) -> String {
        self.command.program.clone()
    }

    /// What it last wrote to standard error. A child that left the group may hold it open: do not wait for long.
    fn last_words(&self) -> String {
        let _ = self.stderr_end.recv_timeout(Duration::from_secs(1));
        let tail = self.stderr.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let tail = whole_lines(tail, STDERR_KEPT);
        match String::from_utf8_lossy(&tail).trim() {
            "" => String::new(),
            text => format!(": {text}"),
        }
    }

    /// Once it was waited for, its group's id may belong to others.
    fn kill(&mut self) {
        if !std::mem::replace(&mut self.reaped, true) {
            if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL); // gone already
            }
            let _ = self.child.wait();
        }
    }
}

/// Into its standard input. Its output must be small, or be read on another thread.
impl Write for Running {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut piece = bytes[..bytes.len().min(PIECE)].to_vec();
        loop {
            self.go_on().map_err(io::Error::other)?;
            let Some(input) = &self.input else { return Err(io::ErrorKind::BrokenPipe.into()) };
            match input.send_timeout(piece, TICK) {
                Ok(()) => return Ok(bytes.len().min(PIECE)),
                Err(SendTimeoutError::Timeout(back)) => piece = back,
                Err(SendTimeoutError::Disconnected(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

/// `text` and the causes behind it, in one line.
pub(crate) fn causes(mut text: String, mut next: Option<&(dyn std::error::Error + 'static)>) -> String {
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
