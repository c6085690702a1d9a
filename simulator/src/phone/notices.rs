//! What a phone is told about the other phones of its person.

use super::{Error, Phone, accepted, read};
use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use shared::domain::NoticeWord;
use shared::id::{DeviceId, NoticeId};

const NOTICES: &str = "/v1/device/notices";

/// Something that happened to another device of the person.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Notice {
    /// Its identifier.
    pub id: NoticeId,
    /// What happened.
    pub what: NoticeWord,
    /// To which device.
    pub device: DeviceId,
    /// What its owner calls that device.
    pub name: String,
    /// RFC 3339.
    pub at: String,
}

impl Phone {
    /// What it has not shown yet, newest first.
    pub async fn notices(&self) -> Result<Vec<Notice>, Error> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Notice>,
        }
        let list: List = read(self.call(Method::GET, NOTICES, Bytes::new()).await?)?;
        Ok(list.data)
    }

    /// The person has seen a notice.
    pub async fn notice_seen(&self, notice: &NoticeId) -> Result<(), Error> {
        let path = format!("{NOTICES}/{notice}");
        accepted(self.call(Method::DELETE, &path, Bytes::new()).await?).map(drop)
    }
}
