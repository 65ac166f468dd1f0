//! In: the interface's name from the settings. Out: the link it means, and whether it is still the one that was opened.
//! Never: `any`, an interface without Ethernet frames, a link that is down.

use std::time::{Duration, Instant};

use super::Error;
use crate::host::nic::{self, Link};

/// The word that stands for the default route's interface.
pub const AUTO: &str = "auto";

/// How often an engine looks whether its interface is still there.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The exact name of the interface that `name` means.
///
/// # Errors
/// [`Error::AnyRefused`], [`Error::UnknownInterface`], [`Error::NoDefaultRoute`]; [`Error::System`] when the kernel does not answer.
pub fn resolve(name: &str) -> Result<String, Error> {
    match name {
        "any" => Err(Error::AnyRefused),
        AUTO => match nic::default_route_link().map_err(|cause| silent(name, &cause))? {
            Some(link) => Ok(link.name),
            None => Err(Error::NoDefaultRoute { known: known(name)? }),
        },
        _ => find(name).map(|link| link.name),
    }
}

/// The link of that exact name, if frames can be taken from it.
///
/// # Errors
/// [`Error::UnknownInterface`], [`Error::Gone`] while it is down, [`Error::System`] when its frames are not Ethernet's or the kernel
/// does not answer.
pub(super) fn usable(name: &str) -> Result<Link, Error> {
    let link = find(name)?;
    if !link.ethernet {
        let cause = "its frames have no Ethernet header (a tunnel's interface?)".to_owned();
        return Err(Error::System { act: "capture on", thing: link.name, cause });
    }
    if !link.up {
        return Err(Error::Gone { interface: link.name, cause: DOWN.to_owned() });
    }
    Ok(link)
}

const DOWN: &str = "went down";

fn find(name: &str) -> Result<Link, Error> {
    match nic::link(name).map_err(|cause| silent(name, &cause))? {
        Some(link) => Ok(link),
        None => Err(Error::UnknownInterface { name: name.to_owned(), known: known(name)? }),
    }
}

fn known(name: &str) -> Result<Vec<String>, Error> {
    let links = nic::links().map_err(|cause| silent(name, &cause))?;
    Ok(links.into_iter().map(|link| link.name).collect())
}

fn silent(name: &str, cause: &nic::Error) -> Error {
    Error::System { act: "find the interface", thing: name.to_owned(), cause: cause.to_string() }
}

/// Looks after the link that an engine is bound to.
#[derive(Debug)]
pub(super) struct Watch {
    link: Link,
    looked: Instant,
}

impl Watch {
    pub fn new(link: Link) -> Self {
        Self { link, looked: Instant::now() }
    }

    pub fn name(&self) -> &str {
        &self.link.name
    }

    /// What happened to the link, when it is time to look and something did. A socket that is bound to a link that was removed
    /// says so once at most and is deaf for ever after, so its word alone is not enough.
    pub fn look(&mut self) -> Option<String> {
        if self.looked.elapsed() < LOOK_EVERY {
            return None;
        }
        self.looked = Instant::now();
        self.change()
    }

    /// What happened to the link, when the kernel said that something did.
    pub fn why_gone(&self) -> String {
        // It may be back already.
        self.change().unwrap_or_else(|| DOWN.to_owned())
    }

    fn change(&self) -> Option<String> {
        match nic::link(&self.link.name) {
            Ok(None) => Some("was removed".to_owned()),
            Ok(Some(link)) if link.index != self.link.index => Some("was removed and created again".to_owned()),
            Ok(Some(link)) if !link.up => Some(DOWN.to_owned()),
            Ok(Some(_)) => None,
            Err(error) => {
                tracing::debug!(%error, interface = self.link.name, "cannot tell whether the interface is still there");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_is_refused_with_the_reason() {
        let text = resolve("any").map_err(|error| error.to_string());
        assert!(text.is_err_and(|text| text.contains("once per interface")));
    }

    #[test]
    fn an_unknown_interface_is_answered_with_those_that_exist() {
        let text = resolve("tapfleet-none").map_err(|error| error.to_string());
        assert!(text.is_err_and(|text| text.contains("'tapfleet-none'") && text.contains("lo")));
    }

    #[test]
    fn an_exact_name_stays_as_it_is() {
        assert_eq!(resolve("lo").ok(), Some("lo".to_owned()));
    }
}
