//! In: an interface name. Out: its driver's own counters, as `ethtool -S` shows them; whether it merges packets; its receive ring.
//! Never: changes anything; takes more than [`COUNTERS_MAX`] counters.
//! Spec: linux/ethtool.h (ETHTOOL_GSSET_INFO, ETHTOOL_GSTRINGS, ETHTOOL_GSTATS, ETHTOOL_GGRO, ETHTOOL_GRINGPARAM), netdevice(7) for SIOCETHTOOL.
//!
//! There is no question for these in rtnetlink, so this file has the ioctl and its `unsafe` to itself.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

/// The most counters that are read; ENA has about 30 and 20 for each of at most 32 queues.
const COUNTERS_MAX: usize = 4096;

/// The kernel writes as many entries as the driver has, whatever room was named. A driver whose counters grow between two
/// calls (its number of queues was changed) still finds room for four times as many.
const ROOM: usize = 4 * COUNTERS_MAX;

const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETH_SS_STATS: u32 = 1;
const ETH_GSTRING_LEN: usize = 32;

/// The driver's counters, in its order. Empty when it has none.
///
/// # Errors
/// When there is no such interface, or its driver does not know the question.
pub fn statistics(interface: &str) -> io::Result<Vec<(String, u64)>> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // struct ethtool_sset_info: cmd, reserved, sset_mask (64 bits), one count for each bit that was set and is known.
    let mut info = vec![0u64; 4];
    set_u32s(&mut info, [ETHTOOL_GSSET_INFO, 0]);
    if let Some(mask) = info.get_mut(1) {
        *mask = 1 << ETH_SS_STATS;
    }
    call(&socket, interface, &mut info)?;
    let known = info.get(1).is_some_and(|mask| *mask != 0);
    let count = info.get(2).map_or(0, |counts| u32s(*counts)[0]) as usize;
    if !known || count == 0 {
        return Ok(Vec::new());
    }
    if count > COUNTERS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the driver names {count} counters")));
    }

    // struct ethtool_gstrings: cmd, string_set, len, names. The names begin at byte 12, so they are read as bytes.
    let mut names = vec![0u64; 2 + ROOM * ETH_GSTRING_LEN / 8];
    set_u32s(&mut names, [ETHTOOL_GSTRINGS, ETH_SS_STATS]);
    set_second(&mut names, [count as u32, 0]);
    call(&socket, interface, &mut names)?;
    let names: Vec<u8> = names.iter().flat_map(|word| word.to_ne_bytes()).skip(12).take(count * ETH_GSTRING_LEN).collect();

    // struct ethtool_stats: cmd, n_stats, values.
    let mut values = vec![0u64; 1 + ROOM];
    set_u32s(&mut values, [ETHTOOL_GSTATS, count as u32]);
    call(&socket, interface, &mut values)?;
    Ok(names.chunks_exact(ETH_GSTRING_LEN).map(text).zip(values.into_iter().skip(1)).collect())
}

/// Whether received packets are merged (generic receive offload).
///
/// # Errors
/// When there is no such interface.
pub fn merges_packets(interface: &str) -> io::Result<bool> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // struct ethtool_value: cmd, data.
    let mut value = vec![0u64; 1];
    set_u32s(&mut value, [ETHTOOL_GGRO, 0]);
    call(&socket, interface, &mut value)?;
    Ok(value.first().is_some_and(|word| u32s(*word)[1] != 0))
}

/// Entries of the receive ring: as it is, and at most.
///
/// # Errors
/// When there is no such interface, or its driver has no ring.
pub fn receive_ring(interface: &str) -> io::Result<(u32, u32)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // struct ethtool_ringparam, in numbers of 32 bits: cmd, four maxima (rx, rx_mini, rx_jumbo, tx), then rx as it is and three more.
    let mut ring = vec![0u64; 5];
    set_u32s(&mut ring, [ETHTOOL_GRINGPARAM, 0]);
    call(&socket, interface, &mut ring)?;
    let number = |place: usize| ring.get(place / 2).and_then(|word| u32s(*word).get(place % 2).copied()).unwrap_or(0);
    Ok((number(5), number(1)))
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

fn u32s(word: u64) -> [u32; 2] {
    let bytes = word.to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

fn join([low, high]: [u32; 2]) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (low.to_ne_bytes(), high.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn set_u32s(words: &mut [u64], pair: [u32; 2]) {
    if let Some(word) = words.get_mut(0) {
        *word = join(pair);
    }
}

fn set_second(words: &mut [u64], pair: [u32; 2]) {
    if let Some(word) = words.get_mut(1) {
        *word = join(pair);
    }
}

/// One SIOCETHTOOL; `command` is the structure that the question and its answer share.
fn call(socket: &Socket, interface: &str, command: &mut [u64]) -> io::Result<()> {
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: command.as_mut_ptr().cast() } };
    // SAFETY: the descriptor is open; `request` is a whole `ifreq` with a NUL-ended name; `ifru_data` points to `command`, which
    // is aligned for any of the structures, lives through the call and has room for ROOM entries where the kernel writes entries.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_without_counters_or_an_unknown_interface_is_told_from_a_crash() {
        assert!(statistics("lo").map_or(true, |counters| counters.is_empty()));
        assert!(statistics("tapfleet-none").is_err());
        assert!(statistics("a-name-longer-than-any-interface-may-have").is_err());
    }

    #[test]
    fn words_and_pairs_are_each_others_inverse() {
        assert_eq!(u32s(join([7, 9])), [7, 9]);
    }
}
