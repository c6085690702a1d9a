//! The service account file, and the signed statement that it is traded in with.

use crate::push::pool::Peer;
use crate::push::token::TokenKey;
use http::Uri;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::{Deserialize, Serialize};
use shared::clock::Millis;
use shared::secret::Secret;

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// Google's most.
const LIFETIME_S: i64 = 3600;

/// Why a service account cannot be used. Says which part, never what stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// No JSON, or a field is missing.
    #[error("the service account is not the JSON file that Google's console hands out")]
    Format,
    /// The project's name cannot stand in a path.
    #[error("the service account names no usable project")]
    Project,
    /// Not an `https` address.
    #[error("the service account's token_uri is not an https address")]
    TokenUri,
    /// Not an RSA key, PKCS#8, PEM.
    #[error("the service account's private key cannot sign")]
    Key,
}

#[derive(Deserialize)]
struct File {
    project_id: String,
    client_email: String,
    private_key: Secret,
    private_key_id: Option<String>,
    token_uri: String,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    scope: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
}

/// A service account that can sign.
pub(super) struct Account {
    pub(super) project: String,
    pub(super) token_peer: Peer,
    pub(super) token_uri: Uri,
    /// As it stands in the file: Google compares it with the audience.
    audience: String,
    client_email: String,
    key_id: Option<String>,
    key: EncodingKey,
}

impl Account {
    /// The account, and the name that the processes know its key by.
    pub(super) fn parse(json: &Secret) -> Result<(Self, TokenKey), AccountError> {
        let file: File = serde_json::from_str(json.expose()).map_err(|_| AccountError::Format)?;
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
        if file.project_id.is_empty() || !file.project_id.bytes().all(sound) {
            return Err(AccountError::Project);
        }
        let token_uri: Uri = file.token_uri.parse().map_err(|_| AccountError::TokenUri)?;
        let token_peer = Peer::parse(&file.token_uri).ok_or(AccountError::TokenUri)?;
        let key = EncodingKey::from_rsa_pem(file.private_key.expose().as_bytes());
        let key_id = file.private_key_id.as_deref().unwrap_or_default();
        let identity = [file.client_email.as_str(), key_id, file.token_uri.as_str()];
        let name = TokenKey::new("fcm", &identity, &file.private_key);
        let account = Self {
            project: file.project_id,
            token_peer,
            token_uri,
            audience: file.token_uri,
            client_email: file.client_email,
            key_id: file.private_key_id,
            key: key.map_err(|_| AccountError::Key)?,
        };
        Ok((account, name))
    }

    /// The statement that Google trades for an access token.
    pub(super) fn assertion(&self, now: Millis) -> Result<String, AccountError> {
        let mut header = Header::new(Algorithm::RS256);
        header.kid.clone_from(&self.key_id);
        let iat = now / 1000;
        let claims = Claims {
            iss: &self.client_email,
            scope: SCOPE,
            aud: &self.audience,
            iat,
            exp: iat + LIFETIME_S,
        };
        encode(&header, &claims, &self.key).map_err(|_| AccountError::Key)
    }
}

#[cfg(test)]
mod tests {
    use super::{Account, AccountError};
    use serde_json::json;
    use shared::secret::Secret;

    fn parse(project: &str, uri: &str) -> Result<Account, AccountError> {
        let parsed = Account::parse(&Secret::new(
            json!({
                "project_id": project,
                "client_email": "a@b",
                "private_key": "canary",
                "token_uri": uri,
            })
            .to_string(),
        ));
        parsed.map(|(account, _)| account)
    }

    #[test]
    fn a_bad_file_is_refused_without_quoting_it() {
        let error = |r: Result<Account, AccountError>| r.err().unwrap();
        assert_eq!(
            error(Account::parse(&Secret::new("{}")).map(|(account, _)| account)),
            AccountError::Format
        );
        assert_eq!(
            error(parse("a/../b", "https://x/token")),
            AccountError::Project
        );
        assert_eq!(error(parse("", "https://x/token")), AccountError::Project);
        assert_eq!(error(parse("p", "http://x/token")), AccountError::TokenUri);
        let key = error(parse("p", "https://x/token"));
        assert_eq!(key, AccountError::Key);
        assert!(!format!("{key} {key:?}").contains("canary"));
    }
}
