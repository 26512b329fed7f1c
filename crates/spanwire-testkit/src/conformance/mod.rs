//! What every transport must do, as checks that anybody can run on theirs.
//!
//! [`transport_conformance!`](crate::transport_conformance) makes a module with one `#[test]` for each check,
//! so that a failure has a name:
//!
//! ```
//! use spanwire::transport::Tcp;
//! use spanwire_testkit::conformance::Setup;
//! use spanwire_testkit::transport_conformance;
//!
//! transport_conformance!(tcp, || {
//!     Setup::new(Tcp, || "tcp://127.0.0.1:0".into()).ports().bad_addresses(["tcp://", "tcp://nowhere"])
//! });
//! ```
//!
//! With a harness of your own, call each of [`CHECKS`]. A check panics with what it waited for and the
//! events that it saw instead. What does not apply to a transport (ports where there are none) passes.
//!
//! Nothing here sleeps: a check waits for a condition, and fails when it does not come in [`SOON`].
//!
//! Owns: the checks. Never: looks inside; it sees what an application sees.

mod addresses;
mod closing;
mod limits;
mod messages;
mod peers;
mod setup;
mod tasks;
mod watch;

use std::time::Duration;

pub use addresses::*;
pub use closing::*;
pub use limits::*;
pub use messages::*;
pub use peers::*;
pub use setup::Setup;

/// How long a check waits for anything before it fails.
pub const SOON: Duration = Duration::from_secs(30);

/// Calls `$then!` with what it was given, and the names of all checks.
#[doc(hidden)]
#[macro_export]
macro_rules! __each_transport_check {
    ($($then:ident)::+ $(, $arg:expr)?) => {
        $($then)::+! {
            $($arg)?;
            messages_of_every_size_arrive_whole_and_in_order
            both_ends_send_and_receive_whoever_dialled
            requests_and_replies_find_their_way
            futures_work_on_any_executor
            a_connect_may_come_before_the_bind
            one_socket_has_many_endpoints_of_both_kinds
            a_dialer_comes_back_when_its_listener_does
            both_ends_know_whom_they_talk_to
            a_peer_that_goes_is_reported
            a_peer_of_a_strange_protocol_is_refused_at_both_ends
            a_thousand_connections_leave_nothing_behind
            a_stopped_receiver_stops_its_sender_and_nothing_is_lost
            a_message_over_the_limit_ends_its_connection_once_and_the_dialer_backs_off
            a_close_lets_what_is_queued_leave
            a_close_that_is_too_short_tells_how_much_was_left
            a_close_wakes_whoever_waits
            a_closed_address_is_free_again
            an_address_in_use_is_an_error_that_names_it
            a_bad_address_is_an_error_that_names_it
            port_zero_becomes_a_real_port
        }
    };
}

/// Makes a module `$name` with one `#[test]` for each check of [`conformance`](crate::conformance).
///
/// `$setup` is called for each: a closure that makes a [`Setup`](crate::conformance::Setup).
#[macro_export]
macro_rules! transport_conformance {
    ($name:ident, $setup:expr) => {
        // A module and a function may have the same name.
        fn $name() -> $crate::conformance::Setup {
            ($setup)()
        }
        mod $name {
            $crate::__each_transport_check!($crate::__transport_tests, super::$name);
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __transport_tests {
    ($setup:expr; $($check:ident)*) => {
        $(#[test]
        fn $check() {
            $crate::conformance::$check(&($setup)());
        })*
    };
}

macro_rules! table {
    (; $($check:ident)*) => {
        /// All checks with their names.
        pub const CHECKS: &[(&str, fn(&Setup))] = &[$((stringify!($check), $check)),*];
    };
}
crate::__each_transport_check!(table);
