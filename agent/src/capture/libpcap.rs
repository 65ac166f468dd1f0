//! Stub.

use pcap::{BpfProgram, Capture, Linktype};

use super::Error;

/// Compiles a filter on Ethernet frames.
///
/// # Errors
/// When libpcap does not understand it.
pub fn compile(expression: &str) -> Result<BpfProgram, Error> {
    let refused = |cause: pcap::Error| Error::Filter { expression: expression.into(), cause: cause.to_string() };
    Capture::dead(Linktype::ETHERNET).map_err(refused)?.compile(expression, true).map_err(refused)
}
