//! What the tests of several stages share. Nothing here uses the agent's own decoders or encoders.
#![allow(clippy::panic, clippy::print_stdout)]

pub mod agent;
pub mod captures;
pub mod localstack;
pub mod machine;
pub mod netns;
pub mod packet;
pub mod storm;
