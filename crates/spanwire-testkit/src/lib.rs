//! spanwire-testkit
