//! The daemon `tapfleetd`.
fn main() {}
