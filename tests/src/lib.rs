//! What the tests of several stages share. Nothing here uses the agent's own decoders or encoders.

pub mod localstack;
pub mod packet;
