//! The fleet's certificate authority. Certificates carry a SPIFFE URI, one use, and nothing the requester chose
//! but its public key.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::CertsError;
use crate::identity::{COORDINATOR_DNS_NAME, Identity, Role};

/// How long a fleet's authority is valid.
const AUTHORITY_DAYS: i64 = 3650;
/// How long a coordinator's or an agent's certificate is valid.
const LEAF_DAYS: i64 = 365;
/// Certificates are valid from a little before they are made, for hosts whose clock is late.
const BACKDATED_MINUTES: i64 = 10;

/// A certificate in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub pem: String,
    /// Its bytes.
    pub der: CertificateDer<'static>,
}

/// The fleet's certificate authority: its certificate and its private key.
pub struct Authority {
    fleet: String,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
    key_pem: String,
}

/// What an agent asks for when it enrols: a signing request, and the key that never leaves its host.
pub struct Enrolment {
    /// The private key in PEM.
    pub key_pem: String,
    /// The signing request in DER.
    pub request_der: Vec<u8>,
}

impl Authority {
    /// A new authority for a fleet, valid from about `now_unix_s`.
    pub fn create(fleet: &str, now_unix_s: i64) -> Result<Self, CertsError> {
        let key = KeyPair::generate()?;
        let mut params = params(&format!("fleetwright fleet {fleet}"), now_unix_s, AUTHORITY_DAYS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{fleet}"))?];
        let made = params.self_signed(&key)?;
        Self::load(fleet, &made.pem(), &key.serialize_pem())
    }

    /// The authority with this certificate and private key.
    pub fn load(fleet: &str, certificate_pem: &str, key_pem: &str) -> Result<Self, CertsError> {
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, KeyPair::from_pem(key_pem)?)?;
        let certificate = Certificate::from_pem(certificate_pem)?;
        Ok(Self { fleet: fleet.to_owned(), certificate, issuer, key_pem: key_pem.to_owned() })
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Its private key in PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// A certificate for a coordinator, with its private key in PEM.
    pub fn issue_coordinator(&self, name: &str, now_unix_s: i64) -> Result<(Certificate, String), CertsError> {
        let key = KeyPair::generate()?;
        let identity = Identity { fleet: self.fleet.clone(), role: Role::Coordinator, name: name.to_owned() };
        let made = leaf(&identity, now_unix_s)?.signed_by(&key, &self.issuer)?;
        Ok((Certificate::from_pem(&made.pem())?, key.serialize_pem()))
    }

    /// A certificate for the agent of `host`. Of the request, only the public key is used.
    pub fn issue_agent(&self, host: &str, request_der: &[u8], now_unix_s: i64) -> Result<Certificate, CertsError> {
        let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request_der))?;
        let identity = Identity { fleet: self.fleet.clone(), role: Role::Agent, name: host.to_owned() };
        request.params = leaf(&identity, now_unix_s)?;
        let made = request.signed_by(&self.issuer)?;
        Certificate::from_pem(&made.pem())
    }
}

impl Certificate {
    /// The certificate in this PEM text.
    pub fn from_pem(pem: &str) -> Result<Self, CertsError> {
        use rustls::pki_types::pem::PemObject;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| CertsError::Identity(format!("not a PEM certificate: {error}")))?;
        Ok(Self { pem: pem.to_owned(), der })
    }
}

/// A new key, and the request to certify it.
pub fn key_and_request() -> Result<Enrolment, CertsError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok(Enrolment { key_pem: key.serialize_pem(), request_der: request.der().to_vec() })
}

/// SHA-256 of a certificate, in hexadecimal.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex::encode(Sha256::digest(certificate.as_ref()))
}

/// When a certificate ends to count, in seconds since 1970; nothing when it cannot be read.
pub fn not_after_unix_s(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

fn leaf(identity: &Identity, now_unix_s: i64) -> Result<CertificateParams, CertsError> {
    let mut params = params(&identity.uri(), now_unix_s, LEAF_DAYS)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![uri(&identity.uri())?];
    match identity.role {
        Role::Agent => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        Role::Coordinator => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names.push(SanType::DnsName(COORDINATOR_DNS_NAME.try_into()?));
        }
    }
    Ok(params)
}

fn params(common_name: &str, now_unix_s: i64, days: i64) -> Result<CertificateParams, CertsError> {
    let now =
        OffsetDateTime::from_unix_timestamp(now_unix_s).map_err(|error| CertsError::Identity(error.to_string()))?;
    let mut params = CertificateParams::default();
    params.not_before = now - Duration::minutes(BACKDATED_MINUTES);
    params.not_after = now + Duration::days(days);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    let mut serial = [0; 16];
    getrandom::fill(&mut serial)?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn uri(text: &str) -> Result<SanType, CertsError> {
    Ok(SanType::URI(text.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_000_000;

    #[test]
    fn a_certificate_bears_the_identity_the_authority_gave_and_not_what_the_request_asked_for() {
        let authority = Authority::create("demo", NOW).expect("authority");
        let key = KeyPair::generate().expect("key");
        let mut wishes = CertificateParams::default();
        wishes.subject_alt_names = vec![uri("spiffe://demo/coordinator/evil").expect("uri")];
        wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = wishes.serialize_request(&key).expect("request");
        let certificate = authority.issue_agent("h1", request.der(), NOW).expect("certificate");
        let identity = Identity::of(&certificate.der).expect("identity");
        assert_eq!(identity.uri(), "spiffe://demo/agent/h1");
        assert_eq!(identity.role, Role::Agent);
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate.der).expect("x509");
        assert!(!parsed.is_ca());
    }

    #[test]
    fn an_authority_reads_back_from_its_pem() {
        let authority = Authority::create("demo", NOW).expect("authority");
        let again = Authority::load("demo", &authority.certificate().pem, authority.key_pem()).expect("load");
        assert_eq!(fingerprint(&authority.certificate().der), fingerprint(&again.certificate().der));
        assert!(again.issue_coordinator("c1", NOW).is_ok());
    }
}
