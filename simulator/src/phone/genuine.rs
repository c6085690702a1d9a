//! Is a prompt the server's own, for this phone, and what it was signed as? What is not is refused and never shown.

use super::Identity;
use super::prompt::Prompt;
use super::proof::content_hash;
use shared::crypto::PromptClaims;
use shared::id::PushId;

/// What is wrong with a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PromptFault {
    /// There is no signature.
    #[error("it is not signed")]
    Unsigned,
    /// The signature is none of the key that this phone keeps.
    #[error("it is not signed by the server's key")]
    Signature,
    /// Signed for another device or store.
    #[error("it is signed for another device")]
    Device,
    /// Signed for another push, or another push than the one asked for.
    #[error("it is signed for another push")]
    Push,
    /// What would be shown is not what was signed.
    #[error("its content was changed")]
    Content,
    /// State, nonce, code or expiry are not what was signed.
    #[error("it was changed")]
    Changed,
}

impl Prompt {
    /// Is it the server's own, for this phone? `asked` is the push that was asked for, where one was.
    pub fn check(&self, identity: &Identity, asked: Option<&PushId>) -> Result<(), PromptFault> {
        check(self, identity, asked)
    }
}

fn check(prompt: &Prompt, identity: &Identity, asked: Option<&PushId>) -> Result<(), PromptFault> {
    let signature = prompt.signature.as_deref();
    let signature = signature.ok_or(PromptFault::Unsigned)?;
    let signed = PromptClaims::read(signature, &identity.server_key);
    let signed = signed
        .filter(|signed| signed.ver == PromptClaims::VERSION)
        .ok_or(PromptFault::Signature)?;
    let ours = signed.aud == identity.device && signed.iss == identity.store;
    if !ours || prompt.store != identity.store {
        return Err(PromptFault::Device);
    }
    if signed.sub != prompt.push || asked.is_some_and(|asked| *asked != prompt.push) {
        return Err(PromptFault::Push);
    }
    let shown = content_hash(&prompt.shown).map_err(|_| PromptFault::Content)?;
    if shown != signed.content_hash || prompt.shown["kind"] != signed.kind.as_str() {
        return Err(PromptFault::Content);
    }
    let same = signed.nonce == prompt.nonce.expose()
        && signed.state == prompt.state
        && signed.match_required == prompt.match_required
        && signed.expires_at == prompt.expires_at;
    same.then_some(()).ok_or(PromptFault::Changed)
}
