//! Runs what builds, line by line and not for ever.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::BuildError;

/// How long one run may take: the standard library from source, on a slow machine.
pub(super) const TIME_MAX: Duration = Duration::from_secs(30 * 60);

/// Lines that wait between a program and us; then it waits.
const WAITING_LINES_MAX: usize = 256;

/// Lines of what a program said that an error repeats.
const ERROR_LINES_MAX: usize = 60;

enum Line {
    Out(String),
    Err(String),
}

/// Runs a command to its end; `out` and `err` get what it writes, by lines.
pub(super) fn run(command: Command, out: &mut dyn FnMut(&str), err: &mut dyn FnMut(&str)) -> Result<(), BuildError> {
    run_within(TIME_MAX, command, out, err)
}

pub(super) fn run_within(
    time_max: Duration,
    mut command: Command,
    out: &mut dyn FnMut(&str),
    err: &mut dyn FnMut(&str),
) -> Result<(), BuildError> {
    let program = format!("{} {}", command.get_program().display(), subcommand(&command));
    let deadline = Instant::now() + time_max;
    let failed = |why: String, output: String| BuildError::Program { program: program.clone(), why, output };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(format!("cannot be run: {error}"), String::new()))?;
    let lines = read_lines(&mut child);
    let mut last = VecDeque::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Line::Out(line)) => out(&line),
            Ok(Line::Err(line)) => {
                err(&line);
                if last.len() == ERROR_LINES_MAX {
                    last.pop_front();
                }
                last.push_back(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                // Either may fail only because the child has ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                let why = format!("did not end within {} s", time_max.as_secs());
                return Err(failed(why, Vec::from(last).join("\n")));
            }
        }
    }
    let status = child.wait().map_err(|error| failed(format!("cannot be waited for: {error}"), String::new()))?;
    if status.success() { Ok(()) } else { Err(failed(format!("failed ({status})"), Vec::from(last).join("\n"))) }
}

fn subcommand(command: &Command) -> String {
    command.get_args().next().map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The lines of both outputs; disconnected when both have ended.
fn read_lines(child: &mut Child) -> Receiver<Line> {
    let (to, lines) = sync_channel(WAITING_LINES_MAX);
    if let Some(stdout) = child.stdout.take() {
        let to = to.clone();
        std::thread::spawn(move || forward(stdout, &to, Line::Out));
    }
    if let Some(stderr) = child.stderr.take() {
        std::thread::spawn(move || forward(stderr, &to, Line::Err));
    }
    lines
}

fn forward(from: impl Read, to: &SyncSender<Line>, line: fn(String) -> Line) {
    for text in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let text = String::from_utf8_lossy(&text).trim_end().to_owned();
        // Nobody takes lines any more once the deadline has passed.
        if to.send(line(text)).is_err() {
            break;
        }
    }
}
