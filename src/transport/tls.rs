//! TLS 1.3 in which each end proves one Ed25519 key, as raw public keys (RFC 7250).
//!
//! Why not self-signed certificates: a certificate would be an envelope around the key whose names, dates and
//! extensions mean nothing here, and whose parser would be the first code a stranger's bytes meet. With raw keys the peer
//! sends 44 bytes of which 12 are constant; the key is the identity, as in ssh. Sessions are not resumed: a resumed
//! session skips the proof, and a full handshake costs the same one round trip.
//!
//! The client pins the host's key. The host takes any well-formed Ed25519 key here and hands it up: refusing a stranger
//! is the application's decision, so that it can be told in words on a stream instead of as a TLS alert.

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

/// Name and version of the protocol above; an end that speaks another one is refused in the handshake.
pub const ALPN: &[u8] = b"wormhole/1";

/// RFC 8410: the `SubjectPublicKeyInfo` of an Ed25519 key is these 12 bytes, then the key.
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Which host key a client is content with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedHost {
    /// Only this one, known from a ticket or the known-hosts file.
    Key(PublicKey),
    /// Any of these: a known host under a name that it did not have before.
    OneOf(Arc<BTreeSet<PublicKey>>),
    /// Whichever the host proves. For a first contact whose key a person is then shown; the caller must look at
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

/// The client's side of TLS, and where the key that the host presented can be read afterwards.
pub(super) struct ClientTls {
    pub(super) config: ClientConfig,
    pub(super) presented: Arc<PresentedKey>,
}

/// The key a host presented, kept for the error message when it was not the expected one.
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

/// TLS for a connection to a host, which must prove `expected`.
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

/// TLS for a host: any client that proves an Ed25519 key passes.
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

/// The key that the peer of an established connection proved.
pub(super) fn key_of_chain(proven: &[CertificateDer<'_>]) -> Option<PublicKey> {
    match proven {
        [only] => key_of_spki(only),
        _ => None,
    }
}

/// An identity in the form rustls signs with.
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

/// The ciphers of TLS 1.3, the cheapest first. AES of 128 bits costs four rounds of fourteen less than that of 256, and
/// nobody can break either; where the processor has no instructions for AES, `ChaCha20` is several times faster.
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

/// Reads the one raw key a peer may send; anything else is malformed.
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

/// What rustls asks of either side's verifier about signatures: TLS 1.3, Ed25519, by a raw key.
macro_rules! raw_ed25519_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, TlsError> {
            Err(TlsError::General("TLS 1.2 is not spoken here".to_owned()))
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
