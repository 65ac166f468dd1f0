//! In: BPF expressions, the tunnel ports. Out: compiled filters: the user's on mirrored frames, ours on what the kernel takes.
//! Never: a filter that takes what this machine sends.
//! Spec: pcap-filter(7); the kernel's BPF extensions in linux/filter.h (`SKF_AD_PKTTYPE`).

use pcap::{BpfInstruction, BpfProgram, Capture, Linktype};
use socket2::SockFilter;

use super::Error;
use crate::wire::Rules;

/// The longest frame that is taken whole, as in the files we write.
pub(super) const FRAME_BYTES_MAX: u32 = 262_144;

/// The kernel's BPF extension that reads how a frame came (`SKF_AD_OFF + SKF_AD_PKTTYPE`), and the answer for our own frames.
const PACKET_TYPE_AT: u32 = 0xffff_f004;
const PACKET_OUTGOING: u32 = 4;
const BPF_LD_W_ABS: u16 = 0x20;
const BPF_JEQ_K: u16 = 0x15;
const BPF_RET_K: u16 = 0x06;

/// Compiles a filter on a mirrored frame.
///
/// # Errors
/// [`Error::Filter`] with libpcap's words.
pub fn compile(expression: &str) -> Result<BpfProgram, Error> {
    let failed = |cause: pcap::Error| Error::Filter { expression: expression.to_owned(), cause: words(&cause) };
    Capture::dead(Linktype::ETHERNET).map_err(failed)?.compile(expression, true).map_err(failed)
}

/// Which outer frames the kernel shall take: UDP to a tunnel port, and pieces of fragmented UDP datagrams, of which only the first
/// one tells its port.
#[must_use]
pub fn kernel_expression(rules: &Rules) -> String {
    let Rules { geneve_port, vxlan_port, .. } = rules;
    format!(
        "udp dst port {geneve_port} or udp dst port {vxlan_port} \
         or (ip proto 17 and ip[6:2] & 0x1fff != 0) \
         or (ip6[6] = 44 and ip6[40] = 17 and (ip6[42:2] & 0xfff8 != 0 or ip6[50:2] = {geneve_port} or ip6[50:2] = {vxlan_port}))"
    )
}

/// The kernel filter as the kernel wants it: nothing that this machine sends, and of the rest what [`kernel_expression`] says.
pub(super) fn kernel_filter(rules: &Rules) -> Result<Vec<SockFilter>, Error> {
    let expression = kernel_expression(rules);
    let mut filter = vec![
        SockFilter::new(BPF_LD_W_ABS, 0, 0, PACKET_TYPE_AT),
        SockFilter::new(BPF_JEQ_K, 0, 1, PACKET_OUTGOING),
        SockFilter::new(BPF_RET_K, 0, 0, 0),
    ];
    for instruction in compile(&expression)?.get_instructions() {
        let cause = || format!("its instruction '{instruction}' cannot be read");
        filter.push(kernel_instruction(instruction).ok_or_else(|| Error::Filter { expression: expression.clone(), cause: cause() })?);
    }
    Ok(filter)
}

/// An instruction's fields are to be had as text only: code, jump if true, jump if false, operand.
fn kernel_instruction(instruction: &BpfInstruction) -> Option<SockFilter> {
    let text = instruction.to_string();
    let mut fields = text.split(' ');
    let code = fields.next()?.parse().ok()?;
    let (jump_true, jump_false) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let operand: u32 = fields.next()?.parse().ok()?;
    // What a filter returns is how many bytes are kept: all of them.
    let operand = if code == BPF_RET_K && operand > 0 { FRAME_BYTES_MAX } else { operand };
    Some(SockFilter::new(code, jump_true, jump_false, operand))
}

/// libpcap's message without the crate's prefix.
pub(super) fn words(error: &pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::Inline;

    const RULES: Rules = Rules { geneve_port: 6081, vxlan_port: 4789, inline: Inline::Ignore };

    /// Ethernet, IPv4 with these flags and fragment offset, UDP to `port`.
    fn v4(protocol: u8, fragment: u16, port: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 1]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34]);
        frame.extend(port.to_be_bytes());
        frame.extend([0; 16]);
        frame
    }

    /// Ethernet, IPv6, a fragment header with this offset when there is one, UDP to `port`.
    fn v6(fragment: Option<u16>, port: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, if fragment.is_some() { 44 } else { 17 }, 64]);
        frame.extend([1; 32]);
        if let Some(offset) = fragment {
            frame.extend([17, 0]);
            frame.extend((offset << 3 | 1).to_be_bytes());
            frame.extend([0, 0, 0, 9]);
        }
        frame.extend([0x12, 0x34]);
        frame.extend(port.to_be_bytes());
        frame.extend([0; 16]);
        frame
    }

    #[test]
    fn the_kernel_filter_takes_tunnel_ports_and_fragments_and_nothing_else() {
        let filter = compile(&kernel_expression(&RULES)).unwrap();
        let cases = [
            ("GENEVE", v4(17, 0, 6081), true),
            ("VXLAN", v4(17, 0, 4789), true),
            ("VXLAN, do not fragment", v4(17, 0x4000, 4789), true),
            ("DNS", v4(17, 0, 53), false),
            ("TCP to the port of GENEVE", v4(6, 0, 6081), false),
            ("first fragment of GENEVE", v4(17, 0x2000, 6081), true),
            ("later fragment", v4(17, 0x2064, 0), true),
            ("last fragment", v4(17, 0x0064, 0), true),
            ("later fragment of TCP", v4(6, 0x2064, 0), false),
            ("GENEVE over IPv6", v6(None, 6081), true),
            ("VXLAN over IPv6", v6(None, 4789), true),
            ("DNS over IPv6", v6(None, 53), false),
            ("first fragment of VXLAN over IPv6", v6(Some(0), 4789), true),
            ("first fragment of DNS over IPv6", v6(Some(0), 53), false),
            ("later fragment over IPv6", v6(Some(9), 0), true),
        ];
        for (name, frame, taken) in cases {
            assert_eq!(filter.filter(&frame), taken, "{name}");
        }
    }

    #[test]
    fn other_ports_than_the_usual_ones_reach_the_kernel_filter() {
        let filter = compile(&kernel_expression(&Rules { geneve_port: 7000, vxlan_port: 7001, ..RULES })).unwrap();
        assert!(filter.filter(&v4(17, 0, 7000)) && filter.filter(&v6(Some(0), 7001)));
        assert!(!filter.filter(&v4(17, 0, 6081)));
    }

    #[test]
    fn every_instruction_reaches_the_kernel() {
        let program = compile(&kernel_expression(&RULES)).unwrap();
        assert_eq!(kernel_filter(&RULES).unwrap().len(), program.get_instructions().len() + 3);
    }

    #[test]
    fn a_filter_that_does_not_compile_is_answered_with_libpcaps_words() {
        let text = compile("tcp prot 80").map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("'tcp prot 80'") && text.contains("syntax error"), "{text}");
    }
}
