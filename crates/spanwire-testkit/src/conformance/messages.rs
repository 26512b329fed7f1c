//! Checks: messages arrive, whole, in order, both ways, by every form of call.

use spanwire::{Limit, Message, Pair, Pull, Push, Rep, Req};

use super::tasks::run_all;
use super::watch::{check, numbered};
use super::{SOON, Setup};

/// Around what is kept inline (64), a page, one read (256 KiB), and what has a buffer of its own.
fn sizes(largest: usize) -> impl Iterator<Item = usize> {
    let sizes = [0, 1, 2, 63, 64, 65, 255, 256, 4096, 32 << 10, 65_537, 256 << 10, (1 << 20) - 1, 1 << 20];
    sizes.into_iter().filter(move |size| *size < largest).chain([largest])
}

/// Messages of 0, 1, 64, 65 bytes, 4 KiB and so on up to the largest, small ones between large ones, arrive
/// whole and in order.
pub fn messages_of_every_size_arrive_whole_and_in_order(setup: &Setup) {
    let pull = setup.on(Pull::builder()).recv_max_size(setup.largest).build().expect("a socket");
    let at = setup.bind(&pull);
    let push = setup.on(Push::builder()).build().expect("a socket");
    setup.connect(&push, at.url());
    let largest = setup.largest;
    let all = move || sizes(largest).flat_map(|size| [size, 1, size.min(4096), 0]).chain(0..200).zip(0u32..);
    let sender = std::thread::spawn(move || {
        for (size, n) in all() {
            push.send_timeout(numbered(n, size), SOON).expect("there is room");
        }
        push.close(SOON).expect("it closes")
    });
    for (size, n) in all() {
        let msg = pull.recv_timeout(SOON).unwrap_or_else(|e| panic!("message {n} of {size} bytes: {e}"));
        check(&msg, n, size);
    }
    assert_eq!(sender.join().expect("the sender"), 0, "undelivered");
    assert!(pull.try_recv().is_err(), "more arrived than was sent");
}

/// Who bound may send first, and both may send at once.
pub fn both_ends_send_and_receive_whoever_dialled(setup: &Setup) {
    const EACH: u32 = 2000;
    let bound = setup.on(Pair::builder()).build().expect("a socket");
    let at = setup.bind(&bound);
    let dialled = setup.on(Pair::builder()).build().expect("a socket");
    setup.connect(&dialled, at.url());
    bound.send_timeout("from who bound", SOON).expect("there is room");
    assert_eq!(dialled.recv_timeout(SOON).expect("a message"), "from who bound");
    dialled.send_timeout("from who dialled", SOON).expect("there is room");
    assert_eq!(bound.recv_timeout(SOON).expect("a message"), "from who dialled");
    std::thread::scope(|scope| {
        for pair in [&bound, &dialled] {
            scope.spawn(move || {
                for n in 0..EACH {
                    pair.send_timeout(numbered(n, 100), SOON).expect("there is room");
                }
            });
            scope.spawn(move || {
                for n in 0..EACH {
                    check(&pair.recv_timeout(SOON).expect("a message"), n, 100);
                }
            });
        }
    });
}

/// Header words, which travel joined or apart, come back to their request, also when many are on their way.
pub fn requests_and_replies_find_their_way(setup: &Setup) {
    const EACH: u32 = 200;
    let rep = setup.on(Rep::builder()).build().expect("a socket");
    let at = setup.bind(&rep);
    let req = setup.on(Req::builder()).build().expect("a socket");
    setup.connect(&req, at.url());
    let server = rep.clone();
    let server = std::thread::spawn(move || {
        while let Ok(request) = server.recv() {
            let body = request.body().clone();
            request.reply(body).expect("a reply can be sent");
        }
    });
    std::thread::scope(|scope| {
        for t in 0..4 {
            let req = &req;
            scope.spawn(move || {
                for n in t * EACH..(t + 1) * EACH {
                    let size = n as usize % 300;
                    let reply = req.request_timeout(numbered(n, size), SOON).expect("a reply");
                    check(&reply, n, size);
                }
            });
        }
    });
    rep.close(SOON).expect("it closes");
    server.join().expect("the server");
}

/// Two sockets on one thread, as two futures of an executor that knows nothing of them, with little room; and
/// a future that is dropped takes nothing with it.
pub fn futures_work_on_any_executor(setup: &Setup) {
    const ALL: u32 = 300;
    const SIZE: usize = 1000;
    let little = Limit::messages(4);
    let pull = setup.on(Pull::builder()).recv_queue(little).build().expect("a socket");
    let at = setup.bind(&pull);
    let push = setup.on(Push::builder()).send_queue(little).build().expect("a socket");
    setup.connect(&push, at.url());
    let sending = async {
        for n in 0..ALL {
            push.send_async(Message::from(numbered(n, SIZE))).await.expect("it is sent");
        }
    };
    let receiving = async {
        for n in 0..ALL {
            drop(pull.recv_async());
            check(&pull.recv_async().await.expect("a message"), n, SIZE);
        }
    };
    run_all([Box::pin(sending), Box::pin(receiving)], SOON);
}
