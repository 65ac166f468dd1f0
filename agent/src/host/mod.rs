//! What the machine says about itself: its clock, its interfaces, its instance, whether it is to leave.
//! In: system calls, rtnetlink, instance metadata, Auto Scaling, a time server. Out: values.
//! Never: a decision about frames or segments.

pub mod advice;
pub mod autoscaling;
pub mod clock;
pub mod ethtool;
pub mod imds;
pub mod lifecycle;
mod memory;
pub mod nic;
pub mod processors;
pub mod systemd;
pub mod timesync;
