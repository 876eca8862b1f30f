//! The HTTP check: status, headers and body of an answer, and how long the server's certificate still counts.

use std::sync::Arc;

use fleetwright_deploy::health::HttpMore;
use fleetwright_deploy::limits::size;
use fleetwright_deploy::time::{Length, Timestamp};
use regex::Regex;
use reqwest::RequestBuilder;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use serde_json::Value;
use serde_json_path::JsonPath;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::chain;
use crate::clock;

/// Most of a response body that is looked at, in bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Passes when the answer is as it should be.
pub(super) async fn check(
    request: RequestBuilder,
    url: &str,
    statuses: &[u16],
    contains: Option<&str>,
    more: &HttpMore,
) -> Result<String, String> {
    if let Some(length) = more.certificate_valid_for {
        certificate(url, length).await?;
    }
    let mut response = request.send().await.map_err(|error| chain(&error))?;
    let status = response.status().as_u16();
    if !statuses.contains(&status) {
        return Err(format!("{url} answers {status}"));
    }
    for (name, wanted) in &more.expected_headers {
        let found = response.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        if found.as_deref() != Some(wanted) {
            let found = found.map_or_else(|| "nothing".to_owned(), |found| format!("`{found}`"));
            return Err(format!("the header {name} of {url} is {found}, not `{wanted}`"));
        }
    }
    if contains.is_none() && more.matches.is_none() && more.json.is_empty() {
        return Ok(format!("{url} answers {status}"));
    }
    let (mut body, mut whole) = (Vec::new(), true);
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        let room = BODY_BYTES_MAX - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            whole = false;
            break;
        }
    }
    content(url, &String::from_utf8_lossy(&body), contains, more).map_err(|why| match whole {
        true => why,
        false => format!("{why} (only its first {} are looked at)", size(BODY_BYTES_MAX)),
    })?;
    Ok(format!("{url} answers {status}"))
}

fn content(url: &str, body: &str, contains: Option<&str>, more: &HttpMore) -> Result<(), String> {
    if let Some(wanted) = contains.filter(|wanted| !body.contains(*wanted)) {
        return Err(format!("the answer of {url} does not contain `{wanted}`"));
    }
    if let Some(pattern) = &more.matches {
        let regex = Regex::new(pattern).map_err(|error| error.to_string())?;
        if !regex.is_match(body) {
            return Err(format!("the answer of {url} does not match `{pattern}`"));
        }
    }
    if more.json.is_empty() {
        return Ok(());
    }
    let json: Value = serde_json::from_str(body).map_err(|error| format!("the answer of {url} is no JSON: {error}"))?;
    for (path, wanted) in &more.json {
        let query = JsonPath::parse(path).map_err(|error| format!("{path}: {error}"))?;
        let found = query.query(&json).all();
        if !found.contains(&wanted) {
            let found: Vec<String> = found.into_iter().take(5).map(Value::to_string).collect();
            let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
            return Err(format!("{path} in the answer of {url} is {found}, not {wanted}"));
        }
    }
    Ok(())
}

/// Looks at the certificate alone: whether it is trusted is for the request to say.
async fn certificate(url: &str, valid_for: Length) -> Result<(), String> {
    let parsed = reqwest::Url::parse(url).map_err(|error| format!("{url}: {error}"))?;
    let host = parsed.host_str().ok_or_else(|| format!("{url} names no host"))?.to_owned();
    let port = parsed.port_or_known_default().unwrap_or(443);
    let provider = fleetwright_protocol::endpoint::provider();
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|error| error.to_string())?;
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await.map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| chain(&error))?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let not_after = leaf.and_then(fleetwright_certs::not_after_unix_s).ok_or("its certificate cannot be read")?;
    let not_after = Timestamp::from_unix_ms(not_after.saturating_mul(1_000));
    if not_after < clock::now().after(valid_for) {
        return Err(format!(
            "the certificate of {host}:{port} counts until {not_after}, less than {valid_for} from now"
        ));
    }
    Ok(())
}

/// Takes every certificate, to look at it. Nothing is sent over the connection.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
