//! What a device is told about the others of its user.

use crate::app::App;
use crate::device_auth::DeviceCall;
use crate::problem::{Code, Problem};
use crate::routes::id;
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Serialize;
use shared::clock::rfc3339;
use shared::store::Notice;
use utoipa::ToSchema;

/// Something that happened to another device of the user.
#[derive(Serialize, ToSchema)]
pub(crate) struct NoticeView {
    id: String,
    /// `added`, `blocked`, `unblocked`, `revoked` or `address_changed`.
    what: String,
    /// The device it happened to.
    device: String,
    name: String,
    platform: String,
    at: String,
}

impl From<Notice> for NoticeView {
    fn from(notice: Notice) -> Self {
        Self {
            id: notice.id.to_string(),
            what: notice.what.to_string(),
            device: notice.about.to_string(),
            name: notice.name,
            platform: notice.platform,
            at: rfc3339(notice.created_at),
        }
    }
}

/// What this device has not shown yet, newest first.
#[utoipa::path(get, path = "/v1/device/notices", tag = "device",
    responses((status = 200, body = Listed<NoticeView>), (status = 401, body = Problem)))]
pub(crate) async fn notices(
    State(app): State<App>,
    call: DeviceCall,
) -> Result<Json<Listed<NoticeView>>, Problem> {
    let notices = app.store.notices(&call.device.id).await?;
    Ok(Json(Listed {
        data: notices.into_iter().map(Into::into).collect(),
        next_cursor: None,
    }))
}

/// The person has seen a notice.
#[utoipa::path(delete, path = "/v1/device/notices/{notice}", tag = "device", params(("notice" = String, Path)),
    responses((status = 204), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn seen(
    State(app): State<App>,
    Path(notice): Path<String>,
    call: DeviceCall,
) -> Result<StatusCode, Problem> {
    if app
        .store
        .notice_seen(&call.device.id, &id(&notice)?)
        .await?
    {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Code::NotFound.into())
    }
}
