//! What the machine says about itself: its clock, its interfaces, its instance.
//! In: system calls, rtnetlink, instance metadata, a time server. Out: values. Never: a decision about frames or segments.

pub mod clock;
pub mod ethtool;
pub mod imds;
pub mod nic;
pub mod systemd;
pub mod timesync;
