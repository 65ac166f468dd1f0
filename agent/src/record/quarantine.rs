//! Malformed outer frames, kept so that every drop can be proved: a pcapng of its own, each frame with its reason as comment.
//! In: frames that decap refused. Out: a segment that takes the same way to S3 as captures do.
//! Never: more bytes per second than it is told; a frame that was dropped by policy.

use crate::host::clock::SECOND_NS;

/// The interface name of quarantined frames.
pub const INTERFACE: &str = "quarantine";

/// Ending of a quarantine segment's file and key.
pub const EXTENSION: &str = "quarantine.pcapng";

/// A token bucket of bytes: one second's worth may come at once.
#[derive(Debug)]
pub struct Allowance {
    bytes_per_s: u64,
    left: u64,
    refilled_ns: u64,
}

impl Allowance {
    /// An allowance that begins full.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, left: bytes_per_s, refilled_ns: 0 }
    }

    /// Whether `bytes` may be kept at `now_ns` (monotonic); takes them if so.
    pub fn take(&mut self, bytes: u64, now_ns: u64) -> bool {
        let elapsed = u128::from(now_ns.saturating_sub(self.refilled_ns));
        let earned = elapsed * u128::from(self.bytes_per_s) / u128::from(SECOND_NS);
        if earned > 0 {
            self.left = u64::try_from(earned).unwrap_or(u64::MAX).saturating_add(self.left).min(self.bytes_per_s);
            self.refilled_ns = now_ns;
        }
        let allowed = bytes <= self.left;
        if allowed {
            self.left -= bytes;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_a_second_s_worth_is_kept_at_once_and_it_comes_back_with_time() {
        let mut allowance = Allowance::new(1000);
        assert!(allowance.take(1000, SECOND_NS) && !allowance.take(1, SECOND_NS));
        assert!(!allowance.take(501, SECOND_NS + SECOND_NS / 2) && allowance.take(500, SECOND_NS + SECOND_NS / 2));
        assert!(allowance.take(1000, 100 * SECOND_NS) && !allowance.take(1, 100 * SECOND_NS));
        assert!(!Allowance::new(0).take(1, u64::MAX));
    }
}
