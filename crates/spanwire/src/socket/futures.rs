//! Futures and iterators over a socket. Any executor will do: there is no runtime inside, only wakers.
//!
//! Each may be dropped at any time: one that was woken and dropped passes on what it was woken for. Owns: the
//! waiter's place. Never: an item that it did not return.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::{Socket, answered, down, told};
use crate::engine::Want;
use crate::error::{RecvError, SendError, WaitError};
use crate::protocol::{Cx, Protocol, Receives, Sends, WaitKey};

/// Future of [`Socket::wait_async`].
#[must_use = "futures do nothing unless polled"]
pub struct WaitFuture<P: Protocol, F> {
    socket: Socket<P>,
    want: Want<WaitKey>,
    slot: Option<u64>,
    f: F,
}

impl<P: Protocol, F> WaitFuture<P, F> {
    pub(super) fn new(socket: Socket<P>, want: Want<WaitKey>, f: F) -> Self {
        WaitFuture { socket, want, slot: None, f }
    }
}

// No field is pinned: the closure is only called.
impl<P: Protocol, F> Unpin for WaitFuture<P, F> {}

impl<P: Protocol, R, F> Future for WaitFuture<P, F>
where
    F: FnMut(&mut P, &mut Cx<'_>) -> Option<R>,
{
    type Output = Result<R, WaitError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let me = &mut *self;
        let f = &mut me.f;
        me.socket.core().poll_on(me.want, &mut me.slot, cx.waker(), |p, cx| f(down(p), cx))
    }
}

impl<P: Protocol, F> Drop for WaitFuture<P, F> {
    fn drop(&mut self) {
        self.socket.core().unpark(self.want, self.slot.take());
    }
}

/// Future of [`Socket::recv_async`].
#[must_use = "futures do nothing unless polled"]
pub struct RecvFuture<P: Receives> {
    socket: Socket<P>,
    slot: Option<u64>,
}

impl<P: Receives> RecvFuture<P> {
    pub(super) fn new(socket: Socket<P>) -> Self {
        RecvFuture { socket, slot: None }
    }
}

impl<P: Receives> Future for RecvFuture<P> {
    type Output = Result<P::Item, RecvError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let me = &mut *self;
        let got =
            me.socket.core().poll_on(Want::Recv, &mut me.slot, cx.waker(), |p, cx| down::<P>(p).recv(cx));
        got.map(|got| got.map_err(RecvError::from))
    }
}

impl<P: Receives> Drop for RecvFuture<P> {
    fn drop(&mut self) {
        self.socket.core().unpark(Want::Recv, self.slot.take());
    }
}

/// Future of [`Socket::send_async`].
#[must_use = "futures do nothing unless polled"]
pub struct SendFuture<'a, P: Sends> {
    socket: &'a Socket<P>,
    slot: Option<u64>,
    held: Option<P::Item>,
}

impl<'a, P: Sends> SendFuture<'a, P> {
    pub(super) fn new(socket: &'a Socket<P>, item: P::Item) -> Self {
        SendFuture { socket, slot: None, held: Some(item) }
    }
}

// The item is moved, never pinned.
impl<P: Sends> Unpin for SendFuture<'_, P> {}

impl<P: Sends> Future for SendFuture<'_, P> {
    type Output = Result<(), SendError<P::Item>>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let me = &mut *self;
        let held = &mut me.held;
        let sent = me.socket.core().poll_on(Want::Send, &mut me.slot, cx.waker(), |p, cx| {
            answered(down::<P>(p).send_held(cx, held))
        });
        sent.map(|sent| match sent {
            Ok(Ok(())) => Ok(()),
            sent => told(sent, me.held.take(), SendError::Full),
        })
    }
}

impl<P: Sends> Drop for SendFuture<'_, P> {
    fn drop(&mut self) {
        self.socket.core().unpark(Want::Send, self.slot.take());
    }
}

/// Iterator of [`Socket::iter`].
pub struct Iter<P: Receives>(Socket<P>);

impl<P: Receives> Iter<P> {
    pub(super) fn new(socket: Socket<P>) -> Self {
        Iter(socket)
    }
}

impl<P: Receives> Iterator for Iter<P> {
    type Item = P::Item;
    fn next(&mut self) -> Option<P::Item> {
        self.0.recv().ok()
    }
}

/// Stream of [`Socket::stream`]; it ends when the socket closes.
#[must_use = "streams do nothing unless polled"]
pub struct RecvStream<P: Receives>(RecvFuture<P>);

impl<P: Receives> RecvStream<P> {
    pub(super) fn new(socket: Socket<P>) -> Self {
        RecvStream(RecvFuture::new(socket))
    }
}

impl<P: Receives> Stream for RecvStream<P> {
    type Item = P::Item;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<P::Item>> {
        // The future takes its place anew at each poll, so it may be polled after it was ready.
        Pin::new(&mut self.0).poll(cx).map(Result::ok)
    }
}

macro_rules! debug_by_name {
    ($($name:ident<$($life:lifetime,)? $bound:ident $(, $more:ident)?>),*) => {$(
        impl<P: $bound $(, $more)?> fmt::Debug for $name<$($life,)? P $(, $more)?> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}
debug_by_name!(WaitFuture<Protocol, F>, RecvFuture<Receives>, SendFuture<'_, Sends>, Iter<Receives>, RecvStream<Receives>);
