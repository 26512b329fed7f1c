//! What a node keeps over a crash.
//!
//! Owns: the difference between written and durable. Never: a file.

/// Why [`Disk::sync`] did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncError {
    /// The process died in it. Return at once: nothing that the node does from here on is seen by anybody.
    Crashed,
    /// The disk refused. Whether what was written is durable is not known: after a crash with loss of power it
    /// is not.
    Failed,
}

/// A disk with content `D`: what is written is durable after [`sync`](Disk::sync).
#[derive(Clone, Debug)]
pub struct Disk<D> {
    written: D,
    durable: D,
    dirty: bool,
    pub(super) crash_at: Option<(u32, bool)>,
    pub(super) fail: u32,
    pub(super) crashed: bool,
}

impl<D: Clone> Disk<D> {
    /// A disk that holds `content`, durably.
    pub fn new(content: D) -> Self {
        Disk {
            durable: content.clone(),
            written: content,
            dirty: false,
            crash_at: None,
            fail: 0,
            crashed: false,
        }
    }

    /// What a reader sees: all that was written, durable or not.
    pub fn read(&self) -> &D {
        &self.written
    }

    /// What would be left if the power went now.
    pub fn durable(&self) -> &D {
        &self.durable
    }

    /// Writes. Not durable yet.
    pub fn write(&mut self) -> &mut D {
        self.dirty = true;
        &mut self.written
    }

    /// Puts other content in place, durably: from outside, as a folder that is put back or lost.
    pub fn replace(&mut self, content: D) {
        self.durable = content.clone();
        self.written = content;
        self.dirty = false;
    }

    /// Whether the process has died in a sync.
    pub fn is_crashed(&self) -> bool {
        self.crashed
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// [`SyncError`], when a fault of the world says so.
    pub fn sync(&mut self) -> Result<(), SyncError> {
        if self.crashed {
            // Who died in a sync does nothing any more.
            return Err(SyncError::Crashed);
        }
        if let Some((left, after)) = self.crash_at {
            if left == 0 {
                self.crash_at = None;
                self.crashed = true;
                if after {
                    self.flush();
                }
                return Err(SyncError::Crashed);
            }
            self.crash_at = Some((left - 1, after));
        }
        if self.fail > 0 {
            self.fail -= 1;
            return Err(SyncError::Failed);
        }
        self.flush();
        Ok(())
    }

    fn flush(&mut self) {
        if std::mem::take(&mut self.dirty) {
            self.durable = self.written.clone();
        }
    }

    /// The process died. With loss of power only the durable part is left.
    pub(super) fn crash(&mut self, power: bool) {
        self.crash_at = None;
        self.crashed = false;
        if power && std::mem::take(&mut self.dirty) {
            self.written = self.durable.clone();
        }
    }
}
