//! TLS 1.3 in which each end proves one Ed25519 key, as raw public keys (RFC 7250).
//!
//! Self-signed certificates are not used. A certificate would wrap the key in names, dates and extensions
//! that mean nothing here, and its parser would be the first code that handles bytes of unknown peers. With
//! raw keys the peer sends 44 bytes, 12 of them constant. The key is the identity, as in ssh. Sessions are
//! not resumed: a resumed session skips the proof, and a full handshake costs the same one round trip.
//!
//! The client pins the key of the host. The host accepts any well-formed Ed25519 key here and passes it on.
//! The application refuses unknown clients, so that it can give the reason in words on a stream instead of a
//! TLS alert.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError,
    ServerConfig, SignatureScheme, SupportedCipherSuite,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use super::{
    error::TransportError,
    identity::{Identity, PUBLIC_KEY_BYTES, PublicKey},
};

/// Name and version of the application protocol. An end with another one is refused in the handshake.
pub const ALPN: &[u8] = b"wormhole/1";

/// Prefix of the `SubjectPublicKeyInfo` of an Ed25519 key (RFC 8410). The key follows it.
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Host keys that a client accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedHost {
    /// Only this key, known from a ticket or the known-hosts file.
    Key(PublicKey),
    /// Any of these keys: a known host under a new name.
    OneOf(Arc<BTreeSet<PublicKey>>),
    /// Any key that the host proves, for a first contact after which a user checks it. The caller must check
    /// [`Connection::peer_key`](super::Connection::peer_key) before it trusts anything.
    Any,
}

impl ExpectedHost {
    fn accepts(&self, key: PublicKey) -> bool {
        match self {
            Self::Key(expected) => *expected == key,
            Self::OneOf(known) => known.contains(&key),
            Self::Any => true,
        }
    }
}

/// Client side of TLS, and the place of the key that the host presents.
pub(super) struct ClientTls {
    pub(super) config: ClientConfig,
    pub(super) presented: Arc<PresentedKey>,
}

/// The key that a host presented, kept for the error message if it was not the expected one.
#[derive(Debug, Default)]
pub(super) struct PresentedKey(Mutex<Option<PublicKey>>);

impl PresentedKey {
    pub(super) fn get(&self) -> Option<PublicKey> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, key: PublicKey) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }
}

/// Returns the TLS configuration for a connection to a host that must prove `expected`.
pub(super) fn client(
    identity: &CertifiedIdentity,
    expected: ExpectedHost,
    alpn: &[u8],
) -> Result<ClientTls, TransportError> {
    let provider = provider();
    let presented = Arc::new(PresentedKey::default());
    let verifier =
        HostVerifier { expected, presented: Arc::clone(&presented), provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&identity.0))));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(ClientTls { config, presented })
}

/// Returns the TLS configuration of a host. Any client that proves an Ed25519 key is accepted.
pub(super) fn server(identity: &CertifiedIdentity, alpn: &[u8]) -> Result<ServerConfig, TransportError> {
    let provider = provider();
    let verifier = ClientVerifier { provider: Arc::clone(&provider) };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&identity.0))));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Returns the key that the peer of an established connection proved.
pub(super) fn key_of_chain(proven: &[CertificateDer<'_>]) -> Option<PublicKey> {
    match proven {
        [only] => key_of_spki(only),
        _ => None,
    }
}

/// An identity in the form that rustls signs with.
#[derive(Clone, Debug)]
pub(super) struct CertifiedIdentity(Arc<CertifiedKey>);

impl CertifiedIdentity {
    pub(super) fn new(identity: &Identity) -> Result<Self, TransportError> {
        let key = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(identity.pkcs8()).map_err(tls_error)?;
        let spki = spki_of_key(identity.public_key());
        Ok(Self(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key))))
    }
}

fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = cipher_suites(has_aes_instructions()).to_vec();
    Arc::new(CryptoProvider { cipher_suites, ..rustls::crypto::aws_lc_rs::default_provider() })
}

/// Returns the ciphers of TLS 1.3, the cheapest first. AES-128 takes ten rounds where AES-256 takes fourteen,
/// and neither can be broken. Without AES instructions `ChaCha20` is several times faster.
const fn cipher_suites(has_aes: bool) -> [SupportedCipherSuite; 3] {
    use rustls::crypto::aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    if has_aes {
        [TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256]
    } else {
        [TLS13_CHACHA20_POLY1305_SHA256, TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384]
    }
}

fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[expect(clippy::needless_pass_by_value, reason = "the form `map_err` wants")]
fn tls_error(error: TlsError) -> TransportError {
    TransportError::Tls(error.to_string())
}

fn spki_of_key(key: PublicKey) -> Vec<u8> {
    [ED25519_SPKI_PREFIX.as_slice(), key.as_bytes()].concat()
}

fn key_of_spki(spki: &[u8]) -> Option<PublicKey> {
    let key: [u8; PUBLIC_KEY_BYTES] = spki.strip_prefix(&ED25519_SPKI_PREFIX)?.try_into().ok()?;
    Some(PublicKey(key))
}

/// Returns the only raw key that a peer may send. Anything else is malformed.
fn presented_key(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<PublicKey, TlsError> {
    match (key_of_spki(end_entity), intermediates) {
        (Some(key), []) => Ok(key),
        _ => Err(TlsError::InvalidCertificate(CertificateError::BadEncoding)),
    }
}

fn verify_signature(
    provider: &CryptoProvider,
    message: &[u8],
    spki: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, TlsError> {
    let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
    verify_tls13_signature_with_raw_key(
        message,
        &spki,
        signature,
        &provider.signature_verification_algorithms,
    )
}

/// Methods about signatures that rustls asks of both verifiers: TLS 1.3, Ed25519, raw keys.
macro_rules! raw_ed25519_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, TlsError> {
            Err(TlsError::General("TLS 1.2 is not supported".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, TlsError> {
            verify_signature(&self.provider, message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

#[derive(Debug)]
struct HostVerifier {
    expected: ExpectedHost,
    presented: Arc<PresentedKey>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for HostVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let key = presented_key(end_entity, intermediates)?;
        self.presented.set(key);
        if self.expected.accepts(key) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    raw_ed25519_signatures!();
}

#[derive(Debug)]
struct ClientVerifier {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        presented_key(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    raw_ed25519_signatures!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_cipher_is_preferred_and_the_others_are_taken() {
        let suites = |has_aes| cipher_suites(has_aes).map(|suite| format!("{:?}", suite.suite()));
        assert!(suites(true)[0].contains("AES_128") && suites(false)[0].contains("CHACHA20"));
        let offered = provider().cipher_suites.clone();
        assert_eq!(offered, cipher_suites(has_aes_instructions()));
        let known = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
        assert!(offered.iter().all(|suite| known.contains(suite)));
    }

    #[test]
    fn spki_is_the_one_ring_makes() {
        let identity = Identity::generate().unwrap();
        let signer = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(identity.pkcs8()).unwrap();
        let spki = signer.public_key().unwrap();
        assert_eq!(spki.as_ref(), spki_of_key(identity.public_key()));
        assert_eq!(key_of_spki(&spki), Some(identity.public_key()));
    }

    #[test]
    fn anything_but_one_ed25519_key_is_malformed() {
        let spki = spki_of_key(PublicKey([7; 32]));
        let whole = CertificateDer::from(spki.clone());
        assert!(presented_key(&whole, &[]).is_ok());
        assert!(presented_key(&whole, std::slice::from_ref(&whole)).is_err());
        assert!(presented_key(&CertificateDer::from(spki[..43].to_vec()), &[]).is_err());
        assert!(presented_key(&CertificateDer::from([spki.clone(), vec![0]].concat()), &[]).is_err());
        let mut other_curve = spki;
        other_curve[8] = 0x6e;
        assert!(presented_key(&CertificateDer::from(other_curve), &[]).is_err());
    }
}
