//! The errors that the providers document, each with its HTTP status. The wire form is made in [`super::apns`] and [`super::fcm_reply`].

macro_rules! apns_reasons {
    ($($name:ident = $status:literal,)*) => {
        /// Every reason string that Apple documents.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "the names are Apple's; their meaning is in Apple's table")]
        pub enum ApnsReason { $($name,)* }

        impl ApnsReason {
            /// All of them, for table tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The text in the body's `reason`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The HTTP status it comes with.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }
        }
    };
}

apns_reasons! {
    BadCollapseId = 400,
    BadDeviceToken = 400,
    BadExpirationDate = 400,
    BadMessageId = 400,
    BadPriority = 400,
    BadTopic = 400,
    DeviceTokenNotForTopic = 400,
    DuplicateHeaders = 400,
    IdleTimeout = 400,
    InvalidPushType = 400,
    MissingDeviceToken = 400,
    MissingTopic = 400,
    PayloadEmpty = 400,
    TopicDisallowed = 400,
    BadCertificate = 403,
    BadCertificateEnvironment = 403,
    BadEnvironmentKeyIdInToken = 403,
    ExpiredProviderToken = 403,
    Forbidden = 403,
    InvalidProviderToken = 403,
    MissingProviderToken = 403,
    UnrelatedKeyIdInToken = 403,
    BadPath = 404,
    MethodNotAllowed = 405,
    ExpiredToken = 410,
    Unregistered = 410,
    PayloadTooLarge = 413,
    TooManyProviderTokenUpdates = 429,
    TooManyRequests = 429,
    InternalServerError = 500,
    ServiceUnavailable = 503,
    Shutdown = 503,
}

macro_rules! fcm_codes {
    ($($(#[$doc:meta])* $name:ident = $http:literal $status:literal $text:literal;)*) => {
        /// The errors that FCM v1 answers with, told apart as far as a sender has to.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum FcmCode { $($(#[$doc])* $name,)* }

        impl FcmCode {
            /// All of them, for table tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The HTTP status.
            pub fn http(self) -> u16 {
                match self { $(Self::$name => $http,)* }
            }

            /// The canonical code in `error.status`.
            pub fn status(self) -> &'static str {
                match self { $(Self::$name => $status,)* }
            }

            /// The sentence in `error.message`.
            pub fn message(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

fcm_codes! {
    /// The message is wrong; `details` name the field.
    InvalidArgument = 400 "INVALID_ARGUMENT" "Request contains an invalid argument.";
    /// The message is too big; comes with no details at all.
    TooBig = 400 "INVALID_ARGUMENT" "Android message is too big";
    /// The token is none: `BadRequest` names `message.token`.
    InvalidToken = 400 "INVALID_ARGUMENT" "The registration token is not a valid FCM registration token";
    /// The access token is missing, unknown or expired.
    Unauthenticated = 401 "UNAUTHENTICATED" "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.";
    /// Firebase's own APNs key or web push key is bad.
    ThirdPartyAuthError = 401 "UNAUTHENTICATED" "Auth error from APNS or Web Push Service";
    /// The token belongs to another project.
    SenderIdMismatch = 403 "PERMISSION_DENIED" "SenderId mismatch";
    /// The account may not send; no `FcmError`.
    PermissionDenied = 403 "PERMISSION_DENIED" "Permission 'cloudmessaging.messages.create' denied on resource or it may not exist.";
    /// The API is switched off in the project; `ErrorInfo` only.
    ServiceDisabled = 403 "PERMISSION_DENIED" "Firebase Cloud Messaging API has not been used in this project before or it is disabled.";
    /// The token is gone.
    Unregistered = 404 "NOT_FOUND" "Requested entity was not found.";
    /// Wrong project or path; no `FcmError`.
    NotFound = 404 "NOT_FOUND" "Requested entity was not found.";
    /// The quota, told by `FcmError`.
    QuotaExceeded = 429 "RESOURCE_EXHAUSTED" "Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute'.";
    /// The quota, told by `ErrorInfo` alone.
    RateLimitExceeded = 429 "RESOURCE_EXHAUSTED" "Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute'.";
    /// FCM broke.
    Internal = 500 "INTERNAL" "Internal error encountered.";
    /// FCM is overloaded.
    Unavailable = 503 "UNAVAILABLE" "The service is currently unavailable.";
    /// An error code that says nothing.
    UnspecifiedError = 500 "UNKNOWN" "Unknown error.";
}
