//! TLS for a server of the suite, or in front of one that speaks none, with a certificate made for it.
//! In: a folder, where that server listens. Out: an endpoint, the certificate as a file, how often it was greeted.
//! Never: looks into what it carries; outlives its value.
//! Spec: RFC 8446, section 2.2 ("Resumption and Pre-Shared Key").

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::{HandshakeKind, ServerConfig};

/// TLS before a server; it ends when it is dropped.
#[derive(Debug)]
pub struct Tls {
    port: u16,
    certificate: PathBuf,
    greetings: Arc<Greetings>,
    accepting: JoinHandle<()>,
}

/// Handshakes.
#[derive(Default, Debug)]
struct Greetings {
    full: AtomicU32,
    resumed: AtomicU32,
}

impl Tls {
    /// TLS on a free port of loopback before the server on port `to`; the certificate to be trusted is written into `folder`.
    ///
    /// # Panics
    /// When there is no port, or the certificate cannot be made.
    pub async fn before(to: u16, folder: &Path) -> Self {
        let (acceptor, certificate) = acceptor(folder);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap_or_else(|error| panic!("no port on loopback: {error}"));
        let port = listener.local_addr().unwrap_or_else(|error| panic!("no address: {error}")).port();
        let greetings = Arc::new(Greetings::default());
        let accepting = tokio::spawn(accept(listener, acceptor, to, greetings.clone()));
        Self { port, certificate, greetings, accepting }
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The certificate that a client has to trust (PEM).
    #[must_use]
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Handshakes of clients that it did not know.
    #[must_use]
    pub fn full(&self) -> u32 {
        self.greetings.full.load(Ordering::Acquire)
    }

    /// Handshakes of clients that went on with an earlier session.
    #[must_use]
    pub fn resumed(&self) -> u32 {
        self.greetings.resumed.load(Ordering::Acquire)
    }
}

/// Takes the clients of a server on loopback that speaks TLS itself; the certificate to be trusted is written into `folder`.
///
/// # Panics
/// When the certificate cannot be made.
#[must_use]
pub fn acceptor(folder: &Path) -> (TlsAcceptor, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap_or_else(|error| panic!("no certificate: {error}"));
    let certificate = folder.join("certificate.pem");
    fs::write(&certificate, made.cert.pem()).unwrap_or_else(|error| panic!("cannot write {}: {error}", certificate.display()));
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.into()], key.into());
    (TlsAcceptor::from(Arc::new(config.unwrap_or_else(|error| panic!("TLS refuses the certificate: {error}")))), certificate)
}

impl Drop for Tls {
    fn drop(&mut self) {
        // Its connections end with it.
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, to: u16, greetings: Arc<Greetings>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(carry(client, acceptor.clone(), to, greetings.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// One connection, until one of its ends closes it.
async fn carry(client: TcpStream, acceptor: TlsAcceptor, to: u16, greetings: Arc<Greetings>) {
    // Who does not trust the certificate goes; the test sees that nothing arrives.
    let Ok(mut client) = acceptor.accept(client).await else { return };
    let resumed = client.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
    let kind = if resumed { &greetings.resumed } else { &greetings.full };
    kind.fetch_add(1, Ordering::AcqRel);
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let _ = copy_bidirectional(&mut client, &mut server).await;
}
