//! spanwire-cli
