//! spanwire-config
