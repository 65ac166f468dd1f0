//! In: one frame as the interface gave it. Out: the mirrored frame inside it and its origin, or a reason why there is none.
//! Never: allocates, panics, reads a clock, looks into the mirrored frame further than its length and source address.
//! Spec: RFC 8926 (GENEVE), RFC 7348 (VXLAN), AWS "Traffic Mirroring packet format", AWS "Gateway Load Balancer" (GENEVE options).
//!
//! The call order of [`decap`](decap::decap) is the order of the headers; each header has a file. `template` knows the one layout that
//! nearly all frames have.

pub mod cursor;
pub mod decap;
pub mod ethernet;
pub mod geneve;
pub mod ip;
pub mod origin;
pub mod reason;
mod template;
pub mod udp;
pub mod vxlan;

pub use decap::{Inline, Inner, Link, Notes, Outcome, Rules, decap};
pub use origin::{EndpointId, Origin, Via};
pub use reason::{Drop, Ignored};
