//! `--events`: what the socket sees, a line each on the error output.
//!
//! Owns: the wording. Never: touches the standard output, or holds the socket up (the channel is bounded, and
//! the library counts what it could not put there).

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use spanwire::Event;

/// A thread that prints events.
#[derive(Debug)]
pub(crate) struct Watch {
    done: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watch {
    pub(crate) fn start(events: Receiver<Event>) -> Self {
        let (done, finished) = bounded(1);
        let thread = std::thread::spawn(move || {
            loop {
                select! {
                    recv(events) -> event => match event {
                        Ok(event) => eprintln!("{}", line(&event)),
                        Err(_) => return,
                    },
                    recv(finished) -> _ => break,
                }
            }
            events.try_iter().for_each(|event| eprintln!("{}", line(&event)));
        });
        Watch { done, thread }
    }

    /// Prints what is still there and ends.
    pub(crate) fn finish(self) {
        drop(self.done);
        // A panic of that thread was reported by itself, and the exit code is about messages.
        let _ = self.thread.join();
    }
}

fn line(event: &Event) -> String {
    match event {
        Event::Listening { url, .. } => format!("listening at {url}"),
        Event::Connected { pipe, facts, dialed, .. } => {
            let how = if *dialed { "connected to" } else { "accepted" };
            format!("peer {pipe}: {how} {}", facts.remote)
        }
        Event::Disconnected { pipe, reason, remote, .. } => format!("peer {pipe}: {remote} gone: {reason}"),
        Event::Rejected { reason, remote, .. } => format!("refused {remote}: {reason}"),
        Event::ConnectFailed { url, error, .. } => format!("failed to connect to {url}: {error}"),
        Event::ConnectRetry { delay, .. } => format!("next attempt in {} ms", delay.as_millis()),
        Event::AcceptFailed { error, .. } => format!("failed to accept: {error}"),
        Event::Dropped { pipe: Some(pipe), reason, count } => {
            format!("peer {pipe}: dropped {count}: {reason}")
        }
        Event::Dropped { pipe: None, reason, count } => format!("dropped {count}: {reason}"),
        Event::EndpointClosed { .. } => "address closed".to_owned(),
        other => format!("{other:?}"),
    }
}
