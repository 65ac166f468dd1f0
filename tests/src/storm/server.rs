//! The S3 behind a storm's gate. In: the namespace it shall be reached in. Out: a port there, a client, the keys it takes.

use aws_sdk_s3::Client;

use crate::garage::{self, Garage};
use crate::localstack::{self, LocalStack};
use crate::netns::Namespace;

/// An S3 of a storm's own.
pub trait Server: Sync {
    /// The key pair that it takes.
    const CREDENTIALS: (&'static str, &'static str);

    /// Starts one.
    fn start(netns: &Namespace) -> Self;

    /// Where it listens, on the namespace's loopback.
    fn port(&self) -> u16;

    /// A client of it, for use in the namespace.
    fn client(&self) -> Client;
}

/// Knows conditions; its objects die with it.
impl Server for LocalStack {
    const CREDENTIALS: (&'static str, &'static str) = (localstack::CREDENTIALS, localstack::CREDENTIALS);

    fn start(netns: &Namespace) -> Self {
        Self::start(Some(netns.name()))
    }

    fn port(&self) -> u16 {
        self.port()
    }

    fn client(&self) -> Client {
        self.client()
    }
}

/// Keeps its objects when it is killed; knows no conditions.
impl Server for Garage {
    const CREDENTIALS: (&'static str, &'static str) = garage::CREDENTIALS;

    fn start(netns: &Namespace) -> Self {
        Self::start(netns)
    }

    fn port(&self) -> u16 {
        self.port()
    }

    fn client(&self) -> Client {
        self.client()
    }
}
