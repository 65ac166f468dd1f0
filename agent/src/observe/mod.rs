//! In: what the stages count. Out: `/healthz`, `/metrics`, `/status`. Never: a count that is made twice, a check that S3 can fail.

pub mod counters;
pub mod health;
pub mod metrics;
