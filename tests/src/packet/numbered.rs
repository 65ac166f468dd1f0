//! Mirrored frames that bear a number, by which they are known again.

use super::{Ethernet, Ipv4, Udp};

/// Where in the frame its number stands: behind Ethernet, IPv4 and UDP.
pub const NUMBER_AT: usize = 14 + 20 + 8;

/// The frame of a number, with more bytes behind it. Its checksum is that of number 0, so that another number can be put into it: nobody
/// looks behind the tunnels.
#[must_use]
pub fn frame(number: u64, filling: &[u8]) -> Vec<u8> {
    let payload = [&[0; size_of::<u64>()], filling].concat();
    let mut frame = (Ethernet::default() / Ipv4::new([192, 0, 2, 1], [198, 51, 100, 1]) / Udp::new(5000, 5001) / payload).build();
    let place = frame.get_mut(NUMBER_AT..).and_then(<[u8]>::first_chunk_mut);
    place.into_iter().for_each(|place| *place = number.to_be_bytes());
    frame
}

/// The number of a frame; `None` when it is too short to bear one.
#[must_use]
pub fn number(frame: &[u8]) -> Option<u64> {
    frame.get(NUMBER_AT..)?.first_chunk().map(|number| u64::from_be_bytes(*number))
}
