//! What the tests that cross a border share.
#![allow(clippy::panic)]

pub mod netns;
