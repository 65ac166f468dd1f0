//! In: the tunnel ports. Out: sockets on them that swallow everything, while the keeper lives.
//! Never: reads a packet, fails the agent: without a keeper capture works, but each packet is answered to its sender.
//! Spec: RFC 1122 4.1.3.1: a host answers a datagram to a port on which nobody listens with ICMP port unreachable.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::wire::Rules;

/// BPF `ret 0`: the kernel drops the datagram before it costs any memory.
const NOTHING: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// Keeps the kernel from answering tunnel packets.
#[derive(Debug)]
pub struct Keeper {
    sockets: Vec<Socket>,
}

impl Keeper {
    /// Takes both tunnel ports, IPv4 and IPv6. A port that somebody holds already is left to them: as long as they listen the
    /// kernel does not answer. What cannot be taken for another reason is logged.
    #[must_use]
    pub fn open(rules: &Rules) -> Self {
        let mut sockets = Vec::new();
        for port in [rules.geneve_port, rules.vxlan_port] {
            for address in [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)] {
                let address = SocketAddr::new(address, port);
                match hold(address) {
                    Ok(socket) => sockets.push(socket),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        tracing::info!(%address, "the tunnel port has a listener already, so the kernel does not answer packets to it");
                    }
                    // A machine without IPv6 answers nothing over it.
                    Err(error) if address.is_ipv6() => tracing::debug!(%address, %error, "no keeper on the tunnel port"),
                    Err(error) => tracing::warn!(
                        %address, %error,
                        "cannot listen on the tunnel port: the kernel will answer each packet with ICMP port unreachable"
                    ),
                }
            }
        }
        Self { sockets }
    }

    /// How many sockets it holds; at most four.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Whether it could take no port at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }
}

fn hold(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.attach_filter(&[NOTHING])?;
    socket.bind(&address.into())?;
    Ok(socket)
}
