//! x

pub mod localstack;
