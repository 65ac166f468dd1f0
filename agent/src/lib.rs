//! tapfleet: mirrored packets in, complete and verified capture objects in S3 out.
//!
//! The modules stand in the order in which a packet meets them. Data moves one way; the spool folder is the only place where
//! the half that records (plain threads) and the half that uploads (tokio) meet. Who may import whom is a table in
//! `tests/tests/layout.rs`.
//!
//! Start reading at [`wire::decap`], then [`capture`], [`record`], [`spool`], [`upload`]; [`run`] ties them together.

pub mod wire;

pub mod capture;

pub mod record;

pub mod spool;

pub mod upload;

pub mod alert;

pub mod host;

pub mod aws;

pub mod observe;

pub mod config;

pub mod run;
