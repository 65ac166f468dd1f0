//! In: packet sockets that the service manager kept while no agent ran. Out: their rings, mapped, if they are what the settings ask for.
//! Never: a ring of other geometry, other threads or another link; some rings of a set; a socket left behind that nobody will read.
//! Spec: sd_notify(3) FDSTORE, FDNAME; sd_listen_fds(3).
//!
//! What is given exactly once: a clean stop takes what the kernel had counted by then, gives every block back and leaves the rest to
//! the next agent. After a kill -9 blocks that no recorder had begun are given again, those it had begun are not ([`super::Block::begin`]):
//! so nothing comes twice, and what is lost is what the dead agent held in memory, at most `spool.flush_ms` of frames.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::sync::Arc;

use super::group::shares_by;
use super::map::Map;
use super::socket::{Socket, bound_to};
use super::{geometry, interface};
use crate::capture::Settings;
use crate::host::nic::Link;

/// The first word of every name. Its number changes when what we keep in a ring's private bytes does.
const WORD: &str = "tapfleet-ring-1";

/// Where sockets wait between two agents. Both calls do what they can: without a shelf a restart costs what comes meanwhile.
pub trait Shelf: Send + Sync {
    /// Keeps a copy of the socket under the name, of at most 255 printable characters without ':'.
    fn put(&self, name: &str, socket: BorrowedFd<'_>);
    /// Closes the copies of that name.
    fn remove(&self, name: &str);
}

/// What a socket is, as its name on the shelf says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Name {
    /// Which socket of its set, from 0.
    pub member: usize,
    /// How many the set has.
    pub members: usize,
    pub block_bytes: usize,
    pub blocks: usize,
    /// Tells the sets apart: nanoseconds since 1970 when it was opened.
    pub generation: u64,
    pub interface: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { member, members, block_bytes, blocks, generation, interface } = self;
        write!(f, "{WORD} {member} {members} {block_bytes} {blocks} {generation} {interface}")
    }
}

impl FromStr for Name {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        fn number<T: FromStr>(word: Option<&str>) -> Result<T, ()> {
            word.ok_or(())?.parse().map_err(drop)
        }
        let mut words = text.splitn(7, ' ');
        if words.next() != Some(WORD) {
            return Err(());
        }
        Ok(Self {
            member: number(words.next())?,
            members: number(words.next())?,
            block_bytes: number(words.next())?,
            blocks: number(words.next())?,
            generation: number(words.next())?,
            interface: words.next().ok_or(())?.to_owned(),
        })
    }
}

impl Name {
    /// Whether the service manager takes it; an interface may have any name without blanks.
    pub fn is_speakable(&self) -> bool {
        let text = self.to_string();
        text.len() <= 255 && text.bytes().all(|byte| (b' '..0x7f).contains(&byte) && byte != b':')
    }
}

/// A ring that an earlier agent left.
#[derive(Debug)]
pub(super) struct Left {
    pub name: Name,
    pub socket: Socket,
    pub map: Map,
    pub link: Link,
}

/// Takes the rings that wait, if they are a whole set by the settings and its link is still there. Else they are closed, and removed
/// from the shelf, and it is logged why.
pub(super) fn take_over(settings: &Settings, interface: &str, shelf: &Arc<dyn Shelf>, found: Vec<(String, OwnedFd)>) -> Vec<Left> {
    let (names, sockets): (Vec<String>, Vec<OwnedFd>) = found.into_iter().filter(|(name, _)| name.starts_with("tapfleet-ring-")).unzip();
    if names.is_empty() {
        return Vec::new();
    }
    match whole_set(settings, interface, &names, sockets) {
        Ok(rings) => {
            tracing::info!(interface, rings = rings.len(), "going on with the rings of the agent before");
            rings
        }
        Err(why) => {
            names.iter().for_each(|name| shelf.remove(name));
            tracing::warn!(interface, rings = names.len(), why, "the rings of the agent before are given up, with the frames in them");
            Vec::new()
        }
    }
}

fn whole_set(settings: &Settings, interface: &str, names: &[String], sockets: Vec<OwnedFd>) -> Result<Vec<Left>, String> {
    let link = interface::usable(interface).map_err(|error| error.to_string())?;
    let (block_bytes, blocks) = geometry(settings.ring_bytes);
    let mut rings = Vec::new();
    for (name, socket) in names.iter().zip(sockets) {
        let name: Name = name.parse().map_err(|()| format!("'{name}' is not a name of this version's"))?;
        let generation = rings.first().map_or(name.generation, |first: &Left| first.name.generation);
        let asked =
            Name { member: name.member, members: settings.threads.max(1), block_bytes, blocks, generation, interface: interface.into() };
        if name != asked {
            return Err(format!("'{name}' is not what the settings ask for: '{asked}'"));
        }
        match bound_to(socket.as_fd()) {
            Ok(Some(index)) if index == link.index => {}
            Ok(_) => return Err("the interface was removed and created again".to_owned()),
            Err(cause) => return Err(format!("'{name}' is no packet socket: {cause}")),
        }
        if asked.members > 1 && !shares_by(socket.as_fd(), settings.fanout).unwrap_or(false) {
            return Err(format!("'{name}' shares its frames with others in another way than capture.fanout"));
        }
        let (socket, map) =
            Socket::take_over(socket, block_bytes, blocks).map_err(|cause| format!("'{name}' cannot be mapped: {cause}"))?;
        rings.push(Left { name, socket, map, link: link.clone() });
    }
    rings.sort_by_key(|ring| ring.name.member);
    if !rings.iter().map(|ring| ring.name.member).eq(0..settings.threads.max(1)) {
        return Err(format!("there are {} rings of {}", rings.len(), settings.threads));
    }
    Ok(rings)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name { member: 1, members: 2, block_bytes: 1 << 20, blocks: 64, generation: 1_790_000_000_000_000_000, interface: "eth0".into() }
    }

    #[test]
    fn a_name_says_what_the_socket_is_and_can_be_read_again() {
        assert_eq!(name().to_string(), "tapfleet-ring-1 1 2 1048576 64 1790000000000000000 eth0");
        assert_eq!(name().to_string().parse(), Ok(name()));
        assert!(name().is_speakable());
    }

    #[test]
    fn a_foreign_name_is_none_of_ours() {
        for text in
            ["", "unknown", "tapfleet-ring-2 1 2 1048576 64 1 eth0", "tapfleet-ring-1 1 2 64 1 eth0", "tapfleet-ring-1 x 2 3 4 5 eth0"]
        {
            assert_eq!(text.parse::<Name>(), Err(()), "{text}");
        }
    }

    #[test]
    fn an_interface_that_the_service_manager_cannot_spell_is_not_put_there() {
        for interface in ["a:b", "münchen", "tab\there"] {
            assert!(!Name { interface: interface.into(), ..name() }.is_speakable(), "{interface}");
        }
    }
}
