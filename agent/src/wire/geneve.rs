//! GENEVE with the options of the AWS Gateway Load Balancer.
//! In: a cursor at the header. Out: what the payload is, VNI, endpoint id, with the cursor at the payload.
//! Never: minds the order of options, reserved bits, or the C bit (each option says itself whether it is critical).
//! Spec: RFC 8926 sections 3.4 and 3.5; AWS "Gateway Load Balancer" (option class 0x0108).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---+-----------+-+-+-----------+-------------------------------+
//! |Ver| OptLen    |O|C| reserved  | protocol type                 |  OptLen in words of 4 bytes
//! +---+-----------+-+-+-----------+---------------+---------------+
//! | VNI                                           | reserved      |
//! +-------------------------------+---------------+-----+---------+  then OptLen words of options:
//! | option class                  |C| type        | R   | length  |  length in words, without these 4 bytes
//! +-------------------------------+-+-------------+-----+---------+
//! | data ...                                                      |
//! +---------------------------------------------------------------+
//! ```

use super::cursor::Cursor;
use super::origin::EndpointId;
use super::reason::Drop;

/// Bytes of the header without options.
pub const HEADER_LEN: usize = 8;
const OPTION_HEADER_LEN: usize = 4;
const WORD: usize = 4;

const VERSION_OPT_LEN: usize = 0;
const FLAGS: usize = 1;
const PROTOCOL: usize = 2;
const VNI: usize = 4;

const VERSION_SHIFT: u32 = 6;
const OPT_LEN_MASK: u8 = 0x3f;
const CONTROL_FLAG: u8 = 0x80;

const OPTION_CLASS: usize = 0;
const OPTION_TYPE: usize = 2;
const OPTION_LENGTH: usize = 3;

const CRITICAL_FLAG: u8 = 0x80;
const OPTION_LENGTH_MASK: u8 = 0x1f;

/// The class of the Gateway Load Balancer's options; none of them is critical.
const AWS_CLASS: u16 = 0x0108;
/// Id of the GWLB endpoint.
const ENDPOINT: u8 = 1;
const ENDPOINT_LEN: usize = 8;
/// Id that the customer sees; 0 in practice.
const ATTACHMENT: u8 = 2;
const ATTACHMENT_LEN: usize = 8;
/// Flow cookie, to be returned with inline packets.
const COOKIE: u8 = 3;
const COOKIE_LEN: usize = 4;

/// What a header said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the payload is, as an EtherType.
    pub protocol: u16,
    /// 24 bits.
    pub vni: u32,
    /// What the options said.
    pub options: Options,
}

/// What the AWS options said.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Options {
    /// The endpoint that the packet came through.
    pub endpoint: Option<EndpointId>,
    /// Whether one of them came twice; the first one counts.
    pub repeated: bool,
    /// One bit for each type that came.
    seen: u8,
}

/// Consumes the header and its options.
///
/// # Errors
/// With the reason why RFC 8926 does not let the payload be read.
#[inline]
pub fn header(cursor: &mut Cursor<'_>) -> Result<Header, Drop> {
    let header = cursor.take::<HEADER_LEN>().ok_or(Drop::GeneveShort)?;
    // RFC 8926 3.4: an endpoint MUST drop packets of a version it does not know.
    if header[VERSION_OPT_LEN] >> VERSION_SHIFT != 0 {
        return Err(Drop::GeneveVersion);
    }
    let options_len = usize::from(header[VERSION_OPT_LEN] & OPT_LEN_MASK) * WORD;
    let options = cursor.split(options_len).ok_or(Drop::GeneveOptLen)?;
    // RFC 8926 3.4: the payload of a control packet must not be forwarded.
    if header[FLAGS] & CONTROL_FLAG != 0 {
        return Err(Drop::GeneveControl);
    }
    Ok(Header {
        protocol: u16::from_be_bytes([header[PROTOCOL], header[PROTOCOL + 1]]),
        vni: u32::from_be_bytes([0, header[VNI], header[VNI + 1], header[VNI + 2]]),
        options: walk(options)?,
    })
}

/// Reads all options. RFC 8926 3.5: their lengths must add up to the header's, else the packet MUST be dropped.
#[inline]
fn walk(mut cursor: Cursor<'_>) -> Result<Options, Drop> {
    let mut options = Options::default();
    while !cursor.rest().is_empty() {
        let head = cursor.take::<OPTION_HEADER_LEN>().ok_or(Drop::GeneveOption)?;
        let class = u16::from_be_bytes([head[OPTION_CLASS], head[OPTION_CLASS + 1]]);
        let data_len = usize::from(head[OPTION_LENGTH] & OPTION_LENGTH_MASK) * WORD;
        let data = cursor.split(data_len).ok_or(Drop::GeneveOption)?;
        options.take(class, head[OPTION_TYPE], data)?;
    }
    Ok(options)
}

impl Options {
    #[inline]
    fn take(&mut self, class: u16, kind: u8, mut data: Cursor<'_>) -> Result<(), Drop> {
        let expected_len = match (class, kind) {
            (AWS_CLASS, ENDPOINT) => ENDPOINT_LEN,
            (AWS_CLASS, ATTACHMENT) => ATTACHMENT_LEN,
            (AWS_CLASS, COOKIE) => COOKIE_LEN,
            // RFC 8926 3.5.1: a packet with an unknown critical option MUST be dropped.
            _ if kind & CRITICAL_FLAG != 0 => return Err(Drop::GeneveCritical),
            _ => return Ok(()),
        };
        if data.rest().len() != expected_len {
            return Err(Drop::GeneveOption);
        }
        let bit = 1 << kind;
        self.repeated |= self.seen & bit != 0;
        if kind == ENDPOINT && self.endpoint.is_none() {
            self.endpoint = data.take().map(|id| EndpointId(u64::from_be_bytes(*id)));
        }
        self.seen |= bit;
        Ok(())
    }
}
