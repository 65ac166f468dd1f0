//! Stub.

use crate::config::Settings;

/// Stub.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The spool cannot be used.
    #[error("{0}")]
    Spool(#[from] crate::spool::Error),
}

/// Stub.
///
/// # Errors
/// Stub.
pub fn run(settings: Settings) -> Result<(), Error> {
    crate::spool::Folder::open(&settings.spool)?;
    Ok(())
}
