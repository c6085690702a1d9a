//! Which phone a push token belongs to, also while phones change their tokens.

use super::Behaviour;
use crate::phone::Phone;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

struct Member {
    phone: Phone,
    behaviour: Behaviour,
    /// The token under which it is found.
    token: String,
}

#[derive(Default)]
struct Members {
    by_name: HashMap<String, Member>,
    name_of: HashMap<String, String>,
}

impl Members {
    fn forget(&mut self, name: &str) {
        if let Some(member) = self.by_name.remove(name) {
            self.name_of.remove(&member.token);
        }
    }

    fn insert(&mut self, phone: Phone, behaviour: Behaviour) {
        let name = phone.name().to_owned();
        self.forget(&name);
        let token = phone.push_token().expose().to_owned();
        self.name_of.insert(token.clone(), name.clone());
        let member = Member {
            phone,
            behaviour,
            token,
        };
        self.by_name.insert(name, member);
    }
}

/// The phones of a fleet. Never locked while a phone is: a phone that gets a new token calls in here.
#[derive(Default)]
pub(crate) struct Index(Mutex<Members>);

impl Index {
    fn with<T>(&self, use_it: impl FnOnce(&mut Members) -> T) -> T {
        use_it(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn insert(&self, phone: Phone, behaviour: Behaviour) {
        // The token is read under the lock, so a change at the same time is either seen here or comes in afterwards.
        self.with(|members| members.insert(phone, behaviour));
    }

    pub(super) fn remove(&self, name: &str) {
        self.with(|members| members.forget(name));
    }

    /// A phone has a new token.
    pub(crate) fn moved(&self, name: &str) {
        self.with(|members| {
            if let Some(member) = members.by_name.remove(name) {
                members.name_of.remove(&member.token);
                members.insert(member.phone, member.behaviour);
            }
        });
    }

    pub(super) fn set_behaviour(&self, name: &str, behaviour: Behaviour) {
        self.with(|members| {
            if let Some(member) = members.by_name.get_mut(name) {
                member.behaviour = behaviour;
            }
        });
    }

    pub(super) fn phones(&self) -> Vec<Phone> {
        self.with(|members| members.by_name.values().map(|m| m.phone.clone()).collect())
    }

    pub(super) fn phone(&self, name: &str) -> Option<Phone> {
        self.with(|members| members.by_name.get(name).map(|m| m.phone.clone()))
    }

    /// Whose token this is, and how that phone behaves.
    pub(super) fn owner(&self, token: &str) -> Option<(Phone, Behaviour)> {
        self.with(|members| {
            let name = members.name_of.get(token)?;
            let member = members.by_name.get(name)?;
            Some((member.phone.clone(), member.behaviour))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Behaviour, Index};
    use crate::phone::Phone;
    use shared::domain::Provider;
    use std::sync::Arc;

    #[test]
    fn a_new_token_replaces_the_old_one() {
        let index = Arc::new(Index::default());
        let phone = Phone::new(Provider::Apns, "pocket");
        phone.follow(&index);
        index.insert(phone.clone(), Behaviour::Ignore);
        let old = phone.push_token();
        let new = phone.rotate_token();
        assert!(index.owner(old.expose()).is_none());
        let (owner, behaviour) = index.owner(new.expose()).unwrap();
        assert_eq!((owner.name(), behaviour), ("pocket", Behaviour::Ignore));
        index.remove("pocket");
        assert!(index.owner(new.expose()).is_none());
    }

    #[test]
    fn a_phone_takes_the_place_of_its_namesake() {
        let index = Index::default();
        let (first, second) = (
            Phone::new(Provider::Fcm, "pocket"),
            Phone::new(Provider::Fcm, "pocket"),
        );
        index.insert(first.clone(), Behaviour::Manual);
        index.insert(second.clone(), Behaviour::Manual);
        assert_eq!(index.phones().len(), 1);
        assert!(index.owner(first.push_token().expose()).is_none());
        assert!(index.owner(second.push_token().expose()).is_some());
    }
}
