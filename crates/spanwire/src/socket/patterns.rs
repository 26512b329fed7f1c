//! The typed sockets whose items are plain messages: push, pull, pub, sub, pair.
//!
//! Each is a newtype that dereferences to its [`Socket`]; what it adds is its constructor, its builder and
//! its own verbs. Owns: nothing. Never: anything that a wrapper of your own could not do.

use std::ops::Deref;

use super::{Builder, Socket};
use crate::error::Error;
use crate::protocol::publish::Slow;
use crate::protocol::subscribe::Prefer;
use crate::protocol::{pair, publish, pull, push, subscribe};
use crate::queue::Limit;

macro_rules! typed {
    ($(#[$doc:meta])* $name:ident, $protocol:ty, $new:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(Socket<$protocol>);

        impl $name {
            /// A socket with default settings.
            ///
            /// # Errors
            /// [`Error::System`] when the system has no more descriptors, or no thread for the driver.
            pub fn new() -> Result<Self, Error> {
                Self::builder().build()
            }

            /// Settings for a socket.
            pub fn builder() -> Builder<$protocol, Self> {
                Builder::new($new, $name)
            }
        }

        impl Deref for $name {
            type Target = Socket<$protocol>;
            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }
    };
}

typed! {
    /// Sends each message to one of its [`Pull`] peers, in turn.
    ///
    /// ```
    /// # use spanwire::{Pull, Push};
    /// let pull = Pull::new()?;
    /// let push = Push::new()?;
    /// push.connect(pull.bind("tcp://127.0.0.1:0")?.url())?;
    /// push.send("work")?;
    /// assert_eq!(pull.recv()?, "work");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    Push, push::Push, push::Push::new()
}
typed! {
    /// Receives from all its [`Push`] peers, fairly.
    Pull, pull::Pull, pull::Pull::new()
}
typed! {
    /// Sends each message to all its [`Sub`] peers. What a slow one loses is counted; see [`Slow`].
    Pub, publish::Pub, publish::Pub::default()
}
typed! {
    /// Receives from its [`Pub`] peers what begins with one of its subscriptions; without any, nothing.
    ///
    /// ```
    /// # use spanwire::{Pub, Sub};
    /// # use std::time::Duration;
    /// let sub = Sub::new()?;
    /// sub.subscribe("weather.");
    /// let publisher = Pub::new()?;
    /// publisher.connect(sub.bind("tcp://127.0.0.1:0")?.url())?;
    /// assert!(publisher.wait_for_peers(1, Duration::from_secs(5)));
    /// publisher.send("sports.0:0")?;
    /// publisher.send("weather.sunny")?;
    /// assert_eq!(sub.recv()?, "weather.sunny");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    Sub, subscribe::Sub, subscribe::Sub::default()
}
typed! {
    /// Talks both ways with one peer; a second one is refused, and what it had sent until then is lost.
    ///
    /// This is pair version 0; version 1 (nng's and mangos's `pair1`) is another protocol, and does not connect to it.
    Pair, pair::Pair, pair::Pair::new()
}

impl Builder<push::Push, Push> {
    /// Without a peer, `send` fails with [`SendError::NoPeer`](crate::SendError::NoPeer) rather than wait. Default: it waits.
    pub fn fail_without_peer(mut self, fail: bool) -> Self {
        self.protocol = self.protocol.fail_without_peer(fail);
        self
    }
}

impl Builder<publish::Pub, Pub> {
    /// What to do about a subscriber whose queue is full. Default: it loses the newest.
    pub fn slow(mut self, slow: Slow) -> Self {
        self.protocol = publish::Pub::new(slow);
        self
    }
}

impl Builder<subscribe::Sub, Sub> {
    /// Bounds of the queue behind the filter, and what to do when it is full. Default: 1,000 messages and
    /// 8 MiB, the oldest gives way.
    pub fn queue(mut self, limit: Limit, prefer: Prefer) -> Self {
        self.protocol = subscribe::Sub::new(limit, prefer);
        self
    }
}

impl Sub {
    /// Receives what begins with `topic`, from now on; the empty topic is everything. It counts: as many
    /// [`unsubscribe`](Sub::unsubscribe) end it.
    pub fn subscribe(&self, topic: impl AsRef<[u8]>) {
        if !self.core().forked() {
            self.with(|sub, cx| sub.subscribe(cx, topic.as_ref()));
        }
    }

    /// Takes a subscription back; `false` if there was none. Messages that are queued and match nothing any
    /// more are dropped and counted.
    pub fn unsubscribe(&self, topic: impl AsRef<[u8]>) -> bool {
        !self.core().forked() && self.with(|sub, cx| sub.unsubscribe(cx, topic.as_ref()))
    }
}
