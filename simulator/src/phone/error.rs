//! What goes wrong between a phone and the API.

use http::StatusCode;

/// A phone's call failed. An answer that the API refused is no error here: it is an [`super::Answered`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The phone does not know who it is yet.
    #[error(
        "the phone is not enrolled; call `enrol` with a link, or register its public key and call `enrolled`"
    )]
    NotEnrolled,
    /// The address of the API is no `http://host:port`.
    #[error("`{0}` is not the base URL of an API; give one like http://127.0.0.1:7070")]
    Base(String),
    /// No answer came. The request may have arrived: send the very same proof again.
    #[error("the API did not answer")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The API said no.
    #[error("the API answered {status}{}", code.as_deref().map(|c| format!(" ({c})")).unwrap_or_default())]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The problem's stable code, where there is one.
        code: Option<String>,
    },
    /// The API answered with something else than the protocol says.
    #[error("the API's answer cannot be read")]
    Unreadable(#[source] serde_json::Error),
    /// A text is no link for enrolling.
    #[error("this is no link of the form countersign://enrol?url=…&store=…&code=…&kid=…")]
    Link,
    /// The server is not the one that the link named.
    #[error("the server's key is not the one that the link names; nothing was enrolled here")]
    ServerKey,
    /// A prompt was refused: somebody else than the server has made or changed it.
    #[error("a prompt was refused: {0}")]
    NotGenuine(super::PromptFault),
    /// A saved key is none.
    #[error("the saved key is not a P-256 or Ed25519 key in PKCS#8")]
    SavedKey,
}
