//! Every error answer: RFC 9457, with a stable code. The list of codes is `docs/errors.md`; a test compares both.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value};
use shared::intake::Shed;
use utoipa::ToSchema;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:ident $code:literal $title:literal;)*) => {
        /// What went wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            fn parts(self) -> (StatusCode, &'static str, &'static str) {
                match self { $(Self::$name => (StatusCode::$status, $code, $title),)* }
            }
        }

        /// Every code with its status and title.
        pub const CODES: &[(u16, &str, &str)] = &[$((StatusCode::$status.as_u16(), $code, $title),)*];
    };
}

codes! {
    /// The body is no JSON.
    MalformedJson = BAD_REQUEST "malformed_json" "The body is not JSON";
    /// A header or query parameter is wrong.
    BadParameter = BAD_REQUEST "bad_parameter" "A header or query parameter is wrong";
    /// An upload that cannot be read on.
    UploadUnreadable = BAD_REQUEST "upload_unreadable" "The upload cannot be read";
    /// An upload that ended too early.
    UploadCut = BAD_REQUEST "upload_cut" "The upload ended before it was complete";
    /// No valid API key.
    Unauthenticated = UNAUTHORIZED "unauthenticated" "A valid API key is needed";
    /// No valid device signature.
    DeviceUnauthenticated = UNAUTHORIZED "device_unauthenticated" "The request is not signed by an active device";
    /// The key lacks a scope.
    Forbidden = FORBIDDEN "forbidden" "The API key may not do this";
    /// Not there, or not the caller's.
    NotFound = NOT_FOUND "not_found" "There is no such thing here";
    /// A process link that is none.
    LinkUnknown = NOT_FOUND "link_unknown" "This link leads nowhere";
    /// A process link that was used or whose push has ended.
    LinkSpent = GONE "link_spent" "This link was used or its time is over";
    /// A process link whose time has not come.
    LinkEarly = CONFLICT "link_early" "This link cannot be opened yet";
    /// The first request with this key is still under way.
    IdempotencyRunning = CONFLICT "idempotency_running" "A request with this idempotency key is still under way";
    /// Something with this name exists.
    Exists = CONFLICT "exists" "It exists already";
    /// A user who may not be asked.
    UserInactive = CONFLICT "user_inactive" "The user is locked or disabled";
    /// Too many wrong codes were typed.
    CodesBlocked = CONFLICT "codes_blocked" "Too many wrong codes were typed for this user";
    /// A fraud report has locked it.
    InitiatorLocked = CONFLICT "initiator_locked" "Somebody has reported this initiator as fraud";
    /// Its approval was used.
    Consumed = CONFLICT "consumed" "This approval was used already";
    /// There is no approval to use.
    NotApproved = CONFLICT "not_approved" "The push was not approved";
    /// An approval is good for a while only.
    ApprovalExpired = CONFLICT "approval_expired" "The push was approved too long ago";
    /// Something else was approved.
    ActionDiffers = UNPROCESSABLE_ENTITY "action_differs" "This is not what was approved";
    /// The approval of a batch is used payment by payment.
    ConsumeOneByOne = CONFLICT "consume_one_by_one" "The push asks for a batch of payments";
    /// The push policy demands more than was asked for.
    ProfileWeaker = UNPROCESSABLE_ENTITY "profile_weaker" "The push policy demands another profile";
    /// The push policy allows one open prompt.
    PromptOpen = CONFLICT "prompt_open" "The user is being asked something already";
    /// A state change that is not allowed.
    WrongState = CONFLICT "wrong_state" "That is not possible in the present state";
    /// The push has ended.
    PushEnded = CONFLICT "push_ended" "The push has already ended";
    /// The approval has ended.
    ApprovalEnded = CONFLICT "approval_ended" "The approval has already ended";
    /// What is to be used is the approval that it is a part of.
    MemberOfApproval = CONFLICT "member_of_approval" "This push is a part of an approval by several people";
    /// Too late by our clock.
    PushExpired = CONFLICT "push_expired" "The push has expired";
    /// A receipt is for what has ended.
    PushOpen = CONFLICT "push_open" "The push has not ended yet";
    /// The end is not chained yet.
    ReceiptPending = CONFLICT "receipt_pending" "The receipt is not ready yet";
    /// No receipt will come.
    NoReceipt = CONFLICT "no_receipt" "There is no receipt for this push";
    /// Too many devices.
    TooManyDevices = CONFLICT "too_many_devices" "The user has as many devices as the policy allows";
    /// Too many open enrolment codes.
    TooManyCodes = CONFLICT "too_many_codes" "The user has as many open enrolment codes as there may be";
    /// Another kind of body.
    UnsupportedMedia = UNSUPPORTED_MEDIA_TYPE "unsupported_media_type" "The body is of a media type that is not taken here";
    /// Too long.
    TooLarge = PAYLOAD_TOO_LARGE "too_large" "The body is too large";
    /// Faults in the body.
    Invalid = UNPROCESSABLE_ENTITY "invalid" "The request has faults";
    /// The key came with another body.
    IdempotencyReused = UNPROCESSABLE_ENTITY "idempotency_reused" "This idempotency key was used for another request";
    /// No device, and the caller asked for a check.
    NoDevices = UNPROCESSABLE_ENTITY "no_devices" "The user has no device that could be asked";
    /// A proof that does not hold.
    ProofRefused = UNPROCESSABLE_ENTITY "proof_refused" "The proof does not hold";
    /// A code or a key that lets no device in.
    EnrolmentRefused = UNPROCESSABLE_ENTITY "enrolment_refused" "This code lets no device in";
    /// A path that takes another method.
    MethodNotAllowed = METHOD_NOT_ALLOWED "method_not_allowed" "This path takes another method";
    /// More waits than may.
    BacklogFull = TOO_MANY_REQUESTS "backlog_full" "Too much is waiting to be sent";
    /// Something inside.
    Internal = INTERNAL_SERVER_ERROR "internal" "Something went wrong here";
    /// Too much at once, or a part is away.
    Unavailable = SERVICE_UNAVAILABLE "unavailable" "Not now; try again shortly";
}

/// One fault in a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Fault {
    /// Where: a JSON pointer (RFC 6901) into the body.
    pub pointer: String,
    /// A stable word.
    pub code: String,
    /// What would be right.
    pub detail: String,
}

impl Fault {
    /// A fault at `pointer`.
    pub fn new(pointer: &str, code: &str, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.to_owned(),
            code: code.to_owned(),
            detail: detail.into(),
        }
    }
}

/// An error answer (RFC 9457, `application/problem+json`).
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// A page of this server that explains the code.
    #[serde(rename = "type")]
    kind: String,
    /// The code in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// A stable word.
    code: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Every fault of the body.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Fault>,
    /// What else is worth knowing.
    #[serde(flatten)]
    #[schema(ignore)]
    more: Map<String, Value>,
    #[serde(skip)]
    #[schema(ignore)]
    retry_after: Option<u32>,
}

impl Problem {
    pub(crate) fn new(code: Code) -> Self {
        let (status, word, title) = code.parts();
        Self {
            kind: format!("/problems/{word}"),
            title: title.to_owned(),
            status: status.as_u16(),
            code: word.to_owned(),
            detail: None,
            errors: Vec::new(),
            more: Map::new(),
            retry_after: None,
        }
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// For a page: the status, the title, and what to do.
    pub(crate) fn words(&self) -> (StatusCode, &str, Option<&str>) {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, &self.title, self.detail.as_deref())
    }

    pub(crate) fn faults(errors: Vec<Fault>) -> Self {
        Self {
            errors,
            ..Self::new(Code::Invalid)
        }
    }

    pub(crate) fn fault(pointer: &str, code: &str, detail: &str) -> Self {
        Self::faults(vec![Fault::new(pointer, code, detail)])
    }

    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    fn unavailable() -> Self {
        Self::new(Code::Unavailable).retry_after(1)
    }
}

impl From<Code> for Problem {
    fn from(code: Code) -> Self {
        Self::new(code)
    }
}

impl From<shared::store::Error> for Problem {
    fn from(error: shared::store::Error) -> Self {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "a request failed on the database"
        );
        match error {
            shared::store::Error::Driver(_)
            | shared::store::Error::Postgres(_)
            | shared::store::Error::Sqlite(_)
            | shared::store::Error::Stopped => Self::unavailable(),
            shared::store::Error::Scheme
            | shared::store::Error::Path
            | shared::store::Error::Migrate(_)
            | shared::store::Error::Row(_) => Self::new(Code::Internal),
        }
    }
}

impl From<Shed> for Problem {
    fn from(shed: Shed) -> Self {
        match shed {
            // Logged where it happened.
            Shed::Full | Shed::Database(_) | Shed::Stopping => Self::unavailable(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after;
        let device = self.code == "device_unauthenticated";
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = if device { "Device" } else { "Bearer" };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        response
    }
}
