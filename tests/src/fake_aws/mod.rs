//! What no public server has: instance metadata (IMDSv2) and the part of EC2 Auto Scaling that a leaving instance speaks to, on loopback.
//! In: a state that the test sets. Out: answers, and a record of what was asked. Never: kinder than AWS: tokens must be fetched by PUT,
//! requests must be signed, an action that does not fit the instance's state is refused.
//! Spec: Amazon EC2 User Guide "Use IMDSv2"; Amazon EC2 Auto Scaling API Reference "Common errors", "Query requests".
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod autoscaling;
mod http;
mod imds;

pub use autoscaling::{AutoScaling, Call, Hook};
pub use imds::{Imds, Keys, Source};
