//! Nothing: the examples of this package are programs beside this file.
