//! TLS to PostgreSQL: what `sslmode`, `sslrootcert`, `sslcert` and `sslkey` ask for (postgresql.org/docs/17/libpq-ssl.html).

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use sqlx::postgres::PgSslMode;
use std::io;
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// How connections are encrypted, where they are.
pub(super) struct Encryption {
    pub(super) mode: PgSslMode,
    pub(super) certificates: Certificates,
}

/// A parameter that is a file in PEM format, or its text.
pub(super) struct Pem {
    pub(super) parameter: &'static str,
    pub(super) value: String,
}

impl Pem {
    fn read(&self) -> Result<Vec<u8>, Refused> {
        if self.value.contains("-----BEGIN") {
            return Ok(self.value.clone().into_bytes());
        }
        // What it says may be a key all the same, and is not shown.
        std::fs::read(&self.value).map_err(|error| self.refused(&error.to_string()))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Refused> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.read()?).collect();
        match all {
            Ok(all) if !all.is_empty() => Ok(all),
            _ => Err(self.refused("no certificate in PEM format is there")),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, Refused> {
        PrivateKeyDer::from_pem_slice(&self.read()?)
            .map_err(|_| self.refused("no private key in PEM format is there"))
    }

    fn refused(&self, why: &str) -> Refused {
        Refused(format!("{}: {why}", self.parameter))
    }
}

/// The certificates of an address.
pub(super) struct Certificates {
    /// Who may vouch for the server, beside the well-known ones.
    pub(super) roots: Option<Pem>,
    /// Ours.
    pub(super) own: Option<Pem>,
    /// Its key.
    pub(super) key: Option<Pem>,
}

/// The settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the encryption of the database's address: {0}")]
pub(super) struct Refused(String);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        Self::new(io::ErrorKind::Unsupported, refused)
    }
}

impl Encryption {
    /// May a connection be encrypted?
    pub(super) fn is_wanted(&self) -> bool {
        !matches!(self.mode, PgSslMode::Disable | PgSslMode::Allow)
    }

    /// The server supports none: does it do without?
    pub(super) fn without(&self) -> Result<(), Refused> {
        if matches!(self.mode, PgSslMode::Prefer) {
            return Ok(());
        }
        Err(Refused("the server does not support TLS".to_owned()))
    }

    /// What encrypts a connection. The files are read anew each time: certificates are changed while a process runs.
    pub(super) fn connector(&self) -> Result<TlsConnector, Refused> {
        of(self.mode, &self.certificates)
    }
}

/// What a mode wants of the server's certificate.
fn of(mode: PgSslMode, certificates: &Certificates) -> Result<TlsConnector, Refused> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = match mode {
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer | PgSslMode::Require => None,
        PgSslMode::VerifyCa | PgSslMode::VerifyFull => Some(verifier(&provider, certificates)?),
    };
    let trust = Trust {
        provider: Arc::clone(&provider),
        verifier,
        by_name: matches!(mode, PgSslMode::VerifyFull),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust));
    let config = match (&certificates.own, &certificates.key) {
        (Some(own), Some(key)) => config.with_client_auth_cert(own.certificates()?, key.key()?)?,
        (None, None) => config.with_no_client_auth(),
        _ => return Err(Refused("sslcert and sslkey go together".to_owned())),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn verifier(
    provider: &Arc<CryptoProvider>,
    certificates: &Certificates,
) -> Result<Arc<WebPkiServerVerifier>, Refused> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(own) = &certificates.roots {
        for certificate in own.certificates()? {
            roots.add(certificate)?;
        }
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| Refused(error.to_string()))
}

/// Whom the server may be.
#[derive(Debug)]
struct Trust {
    /// Reads signatures: even whoever may be anyone has the key of the certificate.
    provider: Arc<CryptoProvider>,
    /// `None`: anyone. Else somebody trusted has signed it.
    verifier: Option<Arc<WebPkiServerVerifier>>,
    /// Must it have the name of the address?
    by_name: bool,
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(verifier) = &self.verifier else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.by_name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
