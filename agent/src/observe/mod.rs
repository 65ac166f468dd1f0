//! In: what the stages count. Out: `/healthz`, `/metrics`, `/status`, the line for `systemctl status`. Never: a count that is made twice, a check that S3 can fail.

pub mod cloudwatch;
pub mod counters;
pub mod health;
pub mod metrics;
pub mod vitals;
