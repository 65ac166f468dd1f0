//! Stub.
use std::collections::BTreeMap;
/// Stub.
#[derive(Clone, Default, Debug)]
pub struct LossCounters {
    /// x
    pub nic: BTreeMap<String, u64>,
    /// x
    pub ec2: BTreeMap<String, u64>,
}
