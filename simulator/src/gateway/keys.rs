//! Keys made at every start: the certificate authority, the APNs signing key, the FCM service account. None outlives the process.

use crate::Error;
use crate::random;
use jsonwebtoken::DecodingKey;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use shared::secret::Secret;
use std::sync::Arc;

/// What a sender needs to authenticate with the simulated APNs.
#[derive(Debug, Clone)]
pub struct ApnsKey {
    /// The JWT's `iss`.
    pub team_id: String,
    /// The JWT's `kid`.
    pub key_id: String,
    /// The signing key, PKCS#8 PEM, as in Apple's `.p8` file.
    pub p8: Secret,
    /// The app's `apns-topic`.
    pub topic: String,
}

/// The APNs key with the half that verifies.
pub(super) struct ApnsCredential {
    pub(super) public: ApnsKey,
    pub(super) verify: DecodingKey,
}

impl ApnsCredential {
    pub(super) fn generate() -> Result<Self, Error> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Self {
            verify: DecodingKey::from_ec_pem(pair.public_key_pem().as_bytes())?,
            public: ApnsKey {
                team_id: random::apple_id(),
                key_id: random::apple_id(),
                p8: Secret::new(pair.serialize_pem()),
                topic: "dev.countersign.phone".to_owned(),
            },
        })
    }
}

/// The FCM service account.
pub(super) struct ServiceAccount {
    pub(super) project_id: String,
    pub(super) client_email: String,
    pub(super) key_id: String,
    pub(super) token_uri: String,
    pub(super) verify: DecodingKey,
    private_key: Secret,
}

impl ServiceAccount {
    pub(super) fn generate(fcm_url: &str) -> Result<Self, Error> {
        let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        let project_id = "countersign-sim".to_owned();
        Ok(Self {
            client_email: format!("sender@{project_id}.iam.gserviceaccount.com"),
            project_id,
            key_id: random::hex::<20>(),
            token_uri: format!("{fcm_url}/token"),
            verify: DecodingKey::from_rsa_pem(pair.public_key_pem().as_bytes())?,
            private_key: Secret::new(pair.serialize_pem()),
        })
    }

    /// The file that Google's console would hand out.
    pub(super) fn json(&self) -> Secret {
        Secret::new(
            serde_json::json!({
                "type": "service_account",
                "project_id": self.project_id,
                "private_key_id": self.key_id,
                "private_key": self.private_key.expose(),
                "client_email": self.client_email,
                "client_id": "100000000000000000001",
                "token_uri": self.token_uri,
            })
            .to_string(),
        )
    }
}

/// A certificate authority and a server configuration under it that offers HTTP/2 alone.
pub(super) struct Tls {
    pub(super) ca_pem: String,
    pub(super) server: Arc<ServerConfig>,
}

impl Tls {
    pub(super) fn generate() -> Result<Self, Error> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        authority
            .distinguished_name
            .push(DnType::CommonName, "Countersign simulator CA");
        let authority = CertifiedIssuer::self_signed(
            authority,
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
        )?;

        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut leaf = CertificateParams::new(names)?;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = leaf.signed_by(&leaf_key, &authority)?;

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            ca_pem: authority.pem(),
            server: Arc::new(server),
        })
    }
}
