//! An authority that lost its store takes the state of a node.

use spanwire_config::{Answer, AuthorityEvent, Base, State, Ticket};

use super::*;

/// A node that holds something larger than a window, and an authority that has nothing and was shown it.
fn lost() -> (Authority, Script<Replica>, Link, State) {
    let (mut before, mut r, mut link) = pair();
    let large = "l".repeat(300 << 10);
    commit(&mut before, &puts([("large", &large), ("b", "3")]));
    link.flow(&mut before, &mut r);
    let held = accept(&mut r, Level::Applied).state;
    r.lose(link.below);
    let mut a = authority_of(Settings::default(), NsSettings::default(), Id([7; 16]));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert_eq!(a.memory.machine.holdings().len(), 1);
    (a, r, link, held)
}

fn adopt(a: &mut Authority, named: Option<Base>) {
    let left = a.memory.tell(AuthorityEvent::Adopt(Ticket(9), Id([9; 16]), named));
    a.bring(left);
    a.look();
}

#[test]
fn a_lost_store_begins_anew_with_what_a_node_holds() {
    let (mut a, mut r, mut link, held) = lost();
    adopt(&mut a, None);
    assert_eq!(a.memory.machine.position(), None, "it is on its way");
    link.flow(&mut a, &mut r);
    assert_eq!(a.memory.machine.durable().map(|d| d.state.clone()), Some(held.clone()));
    let Some(Answer::Begun { position, lost }) = a.memory.answer() else { panic!("no answer") };
    assert_eq!((position.epoch.number, position.rev, lost.len()), (2, 3, 0));
    // Within the window of the authority, whatever the size.
    let up = |f: &&Frame| matches!(f, Frame::Slice(_));
    assert!(link.up.iter().filter(up).count() > 4);
    // The node goes on in the new epoch, and the content costs nothing.
    let update = accept(&mut r, Level::Applied);
    assert_eq!((update.position(), update.changed.len(), update.state), (position, 0, held));
    // A repeat of the request begins no further one.
    adopt(&mut a, None);
    assert!(
        matches!(a.memory.answer(), Some(Answer::Committed { position: p, replay: true, .. }) if p == position)
    );
}

#[test]
fn a_node_that_goes_or_stops_or_sends_something_else_gives_nothing() {
    // It goes.
    let (mut a, _r, link, _) = lost();
    adopt(&mut a, None);
    a.lose(link.above);
    a.look();
    assert!(matches!(a.memory.answer(), Some(Answer::Invalid(_))));
    // It says nothing more.
    let (mut a, _r, link, _) = lost();
    adopt(&mut a, None);
    a.drain(link.above, usize::MAX);
    (0..12).for_each(|_| {
        a.sender.advance(BEACON);
        a.drain(link.above, usize::MAX);
    });
    a.look();
    assert!(matches!(a.memory.answer(), Some(Answer::Invalid(_))));
    // It sends another content than it showed: the machine recomputes the digest.
    let (mut a, mut r, mut link, _) = lost();
    adopt(&mut a, None);
    let down = a.drain(link.above, usize::MAX);
    r.arrive(link.below, down);
    let mut changed = false;
    loop {
        let up = r.drain(link.below, usize::MAX);
        if up.is_empty() {
            break;
        }
        let up: Vec<Message> = (up.iter().map(frame))
            .map(|f| match f {
                Frame::Slice(mut slice) if slice.last => {
                    let mut bytes = slice.bytes.to_vec();
                    *bytes.last_mut().expect("some") ^= 1;
                    slice.bytes = bytes.into();
                    changed = true;
                    Message::from(Frame::Slice(slice).encode())
                }
                other => Message::from(other.encode()),
            })
            .collect();
        a.arrive(link.above, up);
        let down = a.drain(link.above, usize::MAX);
        link.down.extend(down.iter().map(frame));
        r.arrive(link.below, down);
    }
    assert!(changed && matches!(a.memory.answer(), Some(Answer::Invalid(_))));
    assert_eq!(a.memory.machine.position(), None);
}

#[test]
fn slices_that_nobody_asked_for_cost_the_node_its_pipe() {
    let (mut a, mut r, link) = pair();
    let (head, state) = r.protocol.visible().expect("it has some");
    let bytes = Bytes::from(spanwire_config::wire::encode_state(state));
    let slice = Slice { head: head.clone(), base: None, offset: 0, last: true, bytes };
    a.arrive(link.above, [Frame::Slice(Box::new(slice)).encode()]);
    assert!(!a.is_open(link.above));
    // And a node that does not hold what it is asked for says nothing, and stays.
    r.arrive(link.below, [Frame::Offer("config".into(), Position::default()).encode()]);
    assert!(r.drain(link.below, usize::MAX).is_empty() && r.is_open(link.below));
}
