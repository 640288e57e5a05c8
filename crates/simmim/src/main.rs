//! The `simmim` command.
fn main() {}
