//! What the tests of several stages share. Nothing here uses the agent's own decoders or encoders.
#![allow(clippy::panic, clippy::print_stdout)]

pub mod agent;
pub mod bench;
pub mod captures;
pub mod emulator;
pub mod fake_aws;
pub mod faulty_s3;
pub mod filesystem;
pub mod garage;
pub mod limit;
pub mod localstack;
pub mod machine;
pub mod mailbox;
pub mod moto;
pub mod netns;
pub mod package;
pub mod packet;
pub mod program;
pub mod questions;
pub mod segments;
pub mod storm;
pub mod terraform;
pub mod tls;
pub mod traffic;
