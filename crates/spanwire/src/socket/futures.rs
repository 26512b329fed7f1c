//! Futures and iterators over a socket. Any executor will do: there is no runtime inside, only wakers.
//!
//! Each may be dropped at any time: one that was woken and dropped passes on what it was woken for. Owns: the
//! waiter's place. Never: an item that it did not return.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::{Socket, down, refused, unsent};
use crate::engine::Want;
use crate::error::{RecvError, SendError, WaitError};
use crate::protocol::{Cx, Protocol, Receives, Refused, Sends, WaitKey};

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
pub struct SendFuture<P: Sends> {
    socket: Socket<P>,
    slot: Option<u64>,
    held: Option<P::Item>,
}

impl<P: Sends> SendFuture<P> {
    pub(super) fn new(socket: Socket<P>, item: P::Item) -> Self {
        SendFuture { socket, slot: None, held: Some(item) }
    }
}

// The item is moved, never pinned.
impl<P: Sends> Unpin for SendFuture<P> {}

impl<P: Sends> Future for SendFuture<P> {
    type Output = Result<(), SendError<P::Item>>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let me = &mut *self;
        let held = &mut me.held;
        let sent = me.socket.core().poll_on(Want::Send, &mut me.slot, cx.waker(), |p, cx| {
            match down::<P>(p).send(cx, held.take()?) {
                Ok(()) => Some(Ok(())),
                Err(Refused::NotNow(item)) => {
                    *held = Some(item);
                    None
                }
                Err(e) => Some(Err(e)),
            }
        });
        match sent {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(sent)) => Poll::Ready(sent.map_err(refused(SendError::Full))),
            Poll::Ready(Err(e)) => Poll::Ready(match me.held.take() {
                Some(item) => Err(unsent(e, item)),
                None => Ok(()), // not reached: what was not sent is held
            }),
        }
    }
}

impl<P: Sends> Drop for SendFuture<P> {
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
    ($($name:ident<$bound:ident $(, $more:ident)?>),*) => {$(
        impl<P: $bound $(, $more)?> fmt::Debug for $name<P $(, $more)?> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}
debug_by_name!(WaitFuture<Protocol, F>, RecvFuture<Receives>, SendFuture<Sends>, Iter<Receives>, RecvStream<Receives>);
