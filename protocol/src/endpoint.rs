//! Settings of the QUIC endpoints: TLS 1.3 only, certificates on both sides, every limit named.

use std::sync::Arc;
use std::time::Duration;

use fleetwright_certs::{Identity, PinnedAuthority};
use fleetwright_deploy::time::{Length, Timestamp};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, EndpointConfig, ServerConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, version::TLS13};

use crate::{ALPN, ALPN_ENROL, Clock};

/// A connection on which nothing arrives for this long is gone.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a quiet connection is shown to be alive.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// How often it is looked whether a peer's certificate still counts, at least.
const EXPIRY_LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Most bidirectional streams that a coordinator may have open with an agent at once: one for each command.
pub const STREAMS_MAX: u32 = 256;
/// Most connections that a coordinator has not looked at yet, and how much of what comes for them is kept, in bytes: for
/// one of them, and for all.
pub const INCOMING_MAX: usize = 1_024;
const INCOMING_BYTES_MAX: u64 = 8 * 1024;
const INCOMING_BYTES_MAX_TOTAL: u64 = 1024 * 1024;
/// How much of a peer that is not known yet a coordinator takes in, and holds ready for it, in bytes: of one stream, which
/// is all that it may open.
const STRANGER_BYTES_MAX: u32 = 64 * 1024;
/// Most bidirectional streams that an agent may have open with its coordinator at once.
pub const AGENT_STREAMS_MAX: u32 = 32;
/// How much a coordinator takes in of one agent before it has read it, in bytes: the largest frame, and what comes beside.
const AGENT_RECEIVE_BYTES_MAX: u32 = 1024 * 1024;
/// How much a coordinator holds ready for one agent that has not acknowledged it, in bytes: a release, or chunks.
const AGENT_SEND_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A certificate chain and its key, in PEM.
#[derive(Clone)]
pub struct TlsIdentity {
    /// The certificate, and those that lead to the authority.
    pub chain_pem: String,
    /// The private key.
    pub key_pem: String,
    /// The authority's certificate.
    pub authority_pem: String,
}

/// Why an endpoint cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Keys, certificates or TLS settings do not fit.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// PEM text cannot be read.
    #[error("PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// The verifier of peers cannot be built.
    #[error("TLS: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// QUIC needs a cipher suite that is missing.
    #[error("QUIC: {0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// The one provider of cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A coordinator's endpoint. A peer without a certificate is let through the handshake only so that it can
/// enrol: whoever accepts connections must look at [`peer`] and at the negotiated ALPN. Every peer begins with the little
/// that enrolling takes; [`widen`] gives an agent more.
pub fn coordinator(identity: &TlsIdentity, clock: &Clock) -> Result<ServerConfig, EndpointError> {
    let roots = Arc::new(roots(&identity.authority_pem)?);
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider()).allow_unauthenticated().build()?;
    let mut tls = rustls::ServerConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain(&identity.chain_pem)?, key(&identity.key_pem)?)?;
    tls.alpn_protocols = vec![ALPN.to_vec(), ALPN_ENROL.to_vec()];
    tls.max_early_data_size = 0;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let mut narrow = transport();
    narrow
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(STRANGER_BYTES_MAX))
        .receive_window(VarInt::from_u32(STRANGER_BYTES_MAX))
        .send_window(STRANGER_BYTES_MAX.into());
    config
        .transport_config(Arc::new(narrow))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX_TOTAL);
    Ok(config)
}

/// Gives a connection, which has turned out to be an agent's, the streams and windows that its work takes.
pub fn widen(connection: &quinn::Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(AGENT_STREAMS_MAX));
    connection.set_receive_window(VarInt::from_u32(AGENT_RECEIVE_BYTES_MAX));
    connection.set_send_window(AGENT_SEND_BYTES_MAX);
}

/// Settings of a coordinator's socket. With the same key as in its last run, it tells its agents at once that it knows
/// nothing of their connections any more (stateless reset, RFC 9000 section 10.3); otherwise they would wait for
/// [`IDLE_TIMEOUT`].
pub fn coordinator_socket(reset_key: &[u8; 32]) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset_key)));
    // It must also know the ids of connections for its own.
    let id_key = reset_key.iter().take(8).fold(0_u64, |key, byte| key << 8 | u64::from(*byte));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
    config
}

/// An agent's endpoint for its work.
pub fn agent(identity: &TlsIdentity, clock: &Clock) -> Result<ClientConfig, EndpointError> {
    let mut tls = rustls::ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(&identity.authority_pem)?)
        .with_client_auth_cert(chain(&identity.chain_pem)?, key(&identity.key_pem)?)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    client(tls)
}

/// An agent's endpoint for enrolling with the coordinator whose authority is pinned.
pub fn enrolling(authority: PinnedAuthority, clock: &Clock) -> Result<ClientConfig, EndpointError> {
    let mut tls = rustls::ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(authority))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN_ENROL.to_vec()];
    client(tls)
}

/// The identity in the verified certificate of a connection's peer; nothing when it presented none.
pub fn peer(connection: &quinn::Connection) -> Option<Identity> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Identity::of(chain.first()?).ok()
}

/// SHA-256 of the certificate of a connection's peer, in hexadecimal.
pub fn peer_fingerprint(connection: &quinn::Connection) -> Option<String> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Some(fleetwright_certs::fingerprint(chain.first()?))
}

/// When the certificate of a connection's peer ends to count; nothing when it presented none.
pub fn peer_not_after(connection: &quinn::Connection) -> Option<Timestamp> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Some(Timestamp::from_unix_ms(fleetwright_certs::not_after_unix_s(chain.first()?)?.saturating_mul(1_000)))
}

/// Ends when the certificate of a connection's peer is over; never, where it presented none. The wall clock is
/// looked at now and then, since it may be set.
pub async fn peer_expired(connection: &quinn::Connection, clock: &Clock) {
    let Some(not_after) = peer_not_after(connection) else { return std::future::pending().await };
    loop {
        let left = not_after.since(clock.now());
        if left == Length::ZERO {
            return;
        }
        tokio::time::sleep(EXPIRY_LOOK_INTERVAL.min(left.into())).await;
    }
}

/// The protocol that a connection negotiated.
pub fn alpn(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

fn client(mut tls: rustls::ClientConfig) -> Result<ClientConfig, EndpointError> {
    tls.enable_early_data = false;
    // Every connection proves itself anew: a resumed session would not show that certificates still hold.
    tls.resumption = rustls::client::Resumption::disabled();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport()));
    Ok(config)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32).into()))
        .keep_alive_interval(Some(KEEP_ALIVE_INTERVAL))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}

fn roots(pem: &str) -> Result<RootCertStore, EndpointError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes())?)?;
    Ok(roots)
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, EndpointError> {
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?)
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>, EndpointError> {
    Ok(PrivateKeyDer::from_pem_slice(pem.as_bytes())?)
}
