//! Keys, codes and signatures. The arithmetic is aws-lc-rs's and ed25519-dalek's; here is only what is
//! signed, how strictly it is read, and how it is bound.

mod device;
mod enrolment;
mod jws;
mod key;
pub(crate) mod merkle;
mod prompt;
mod secrets;
mod signing;

pub use device::{
    DENIAL_REASONS, Expected, Proof, ProofFault, REQUEST_TOLERANCE_S, RequestFault, Signed,
    content_hash, match_of,
};
pub use enrolment::{Binding, BindingFault};
pub use key::DeviceKey;
pub use prompt::PromptClaims;
pub use secrets::{ApiKey, FreshCode, ServerSecret, Unsealed, report_mac};
pub use signing::{ServerKey, Signer};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// `N` bytes of the system's generator, as unpadded base64url.
pub fn random_text<const N: usize>() -> String {
    let mut bytes = [0_u8; N];
    // It fails only before the kernel has seeded it; going on with zeros would make every secret the same.
    #[expect(
        clippy::expect_used,
        reason = "without randomness nothing here may go on"
    )]
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random generator answers");
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The SHA-256 of `bytes`, as unpadded base64url.
pub fn sha256_text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// The SHA-256 of everything that can be read, as unpadded base64url.
pub fn sha256_of(mut from: impl std::io::Read) -> std::io::Result<String> {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut part = vec![0; 64 * 1024];
    loop {
        match from.read(&mut part)? {
            0 => return Ok(URL_SAFE_NO_PAD.encode(digest.finish())),
            read => digest.update(&part[..read]),
        }
    }
}

/// Is this the text of an APNs key: PKCS#8, PEM, P-256?
pub fn is_apns_key(pem: &str) -> bool {
    jsonwebtoken::EncodingKey::from_ec_pem(pem.as_bytes()).is_ok()
}

/// Is this an RSA key, PEM, as in a service account's file?
pub fn is_rsa_key(pem: &str) -> bool {
    jsonwebtoken::EncodingKey::from_rsa_pem(pem.as_bytes()).is_ok()
}

/// Are the two texts the same? Takes the same time wherever they differ.
pub fn same_text(a: &str, b: &str) -> bool {
    use subtle::ConstantTimeEq as _;
    a.as_bytes().ct_eq(b.as_bytes()).into()
}
