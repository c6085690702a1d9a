//! The body of `messages:send`, read as strictly as Google's front end reads it: unknown names and wrong types are refused by field.

use super::reasons::FcmCode;
use serde_json::{Map, Value};

const ROOT: &[&str] = &["message", "validate_only"];
const MESSAGE: &[&str] = &[
    "name",
    "data",
    "notification",
    "android",
    "webpush",
    "apns",
    "fcm_options",
    "token",
    "topic",
    "condition",
];
const ANDROID: &[&str] = &[
    "collapse_key",
    "priority",
    "ttl",
    "restricted_package_name",
    "data",
    "notification",
    "fcm_options",
    "direct_boot_ok",
    "bandwidth_constrained_ok",
    "restricted_satellite_ok",
];
const NOTIFICATION: &[&str] = &["title", "body", "image"];
const MAX_PAYLOAD: usize = 4096;
const MAX_TTL_S: i64 = 2_419_200;
/// Real tokens are well above 100 characters; short made-up ones are allowed so that tests stay readable.
const TOKEN_LENGTH: std::ops::RangeInclusive<usize> = 8..=4096;

/// A message that FCM would take.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) token: String,
    pub(super) collapse_key: Option<String>,
    pub(super) priority: Option<String>,
    pub(super) ttl_s: Option<i64>,
    pub(super) validate_only: bool,
}

/// Why FCM would not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    pub(super) code: FcmCode,
    /// What `BadRequest` names; `None` where FCM gives no details.
    pub(super) field: Option<String>,
    pub(super) description: String,
    /// Refused by FCM itself, and not by the JSON reader in front of it, which knows no `FcmError`.
    pub(super) by_fcm: bool,
}

impl Invalid {
    fn unknown(name: &str, at: &str) -> Self {
        let place = if at.is_empty() {
            String::new()
        } else {
            format!(" at '{at}'")
        };
        Self {
            code: FcmCode::InvalidArgument,
            field: Some(at.to_owned()),
            description: format!(
                "Invalid JSON payload received. Unknown name \"{name}\"{place}: Cannot find field."
            ),
            by_fcm: false,
        }
    }

    fn kind(at: &str, kind: &str) -> Self {
        Self {
            code: FcmCode::InvalidArgument,
            field: Some(at.to_owned()),
            description: format!("Invalid value at '{at}' ({kind})"),
            by_fcm: false,
        }
    }

    fn refused(code: FcmCode, field: &str, description: &str) -> Self {
        Self {
            code,
            field: Some(field.to_owned()),
            description: description.to_owned(),
            by_fcm: true,
        }
    }
}

/// Whether `given` is the snake-case `name` in one of the two spellings that Google's JSON takes.
fn spells(given: &str, name: &str) -> bool {
    let mut given = given.bytes();
    let mut name = name.bytes();
    while let Some(wanted) = name.next() {
        let same = match given.next() {
            Some(b) if b == wanted => true,
            Some(b) if wanted == b'_' && b.is_ascii_uppercase() => {
                name.next() == Some(b.to_ascii_lowercase())
            }
            _ => false,
        };
        if !same {
            return false;
        }
    }
    given.next().is_none()
}

/// One JSON object of the message and where it stands.
struct Part<'a> {
    map: &'a Map<String, Value>,
    at: String,
}

impl<'a> Part<'a> {
    fn new(value: &'a Value, at: &str, known: &[&str]) -> Result<Self, Invalid> {
        let map = value
            .as_object()
            .ok_or_else(|| Invalid::kind(at, "TYPE_MESSAGE"))?;
        if let Some(name) = map
            .keys()
            .find(|given| !known.iter().any(|name| spells(given, name)))
        {
            return Err(Invalid::unknown(name, at));
        }
        let at = at.to_owned();
        Ok(Self { map, at })
    }

    fn field(&self, name: &str) -> String {
        match self.at.as_str() {
            "" => name.to_owned(),
            at => format!("{at}.{name}"),
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        let mut found = self.map.iter().filter(|(key, _)| spells(key, name));
        found
            .next()
            .map(|(_, value)| value)
            .filter(|v| !v.is_null())
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, Invalid> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let text = value.as_str();
        text.map(Some)
            .ok_or_else(|| Invalid::kind(&self.field(name), "TYPE_STRING"))
    }

    fn flag(&self, name: &str) -> Result<bool, Invalid> {
        self.get(name).map_or(Ok(false), |value| {
            value
                .as_bool()
                .ok_or_else(|| Invalid::kind(&self.field(name), "TYPE_BOOL"))
        })
    }

    fn child(&self, name: &str, known: &[&str]) -> Result<Option<Part<'a>>, Invalid> {
        self.get(name)
            .map(|value| Part::new(value, &self.field(name), known))
            .transpose()
    }
}

/// Checks `data` and says how big it is.
fn check_data(part: &Part<'_>) -> Result<usize, Invalid> {
    let Some(value) = part.get("data") else {
        return Ok(0);
    };
    let field = part.field("data");
    let map = value
        .as_object()
        .ok_or_else(|| Invalid::kind(&field, "TYPE_MESSAGE"))?;
    let mut size = 0;
    for (place, (key, value)) in map.iter().enumerate() {
        let Some(text) = value.as_str() else {
            return Err(Invalid::kind(
                &format!("{field}[{place}].value"),
                "TYPE_STRING",
            ));
        };
        let reserved = matches!(key.as_str(), "from" | "message_type" | "collapse_key")
            || key.starts_with("google")
            || key.starts_with("gcm");
        if reserved {
            let text = format!("Invalid data payload key: {key}");
            return Err(Invalid::refused(FcmCode::InvalidArgument, &field, &text));
        }
        size += key.len() + text.len();
    }
    Ok(size)
}

fn check_notification(part: &Part<'_>) -> Result<usize, Invalid> {
    let Some(notification) = part.child("notification", NOTIFICATION)? else {
        return Ok(0);
    };
    let mut size = 0;
    for name in NOTIFICATION {
        size += notification.text(name)?.map_or(0, str::len);
    }
    Ok(size)
}

/// Reads `"120s"` or `"3.5s"` as whole seconds.
fn ttl_seconds(text: &str) -> Option<i64> {
    let number = text.strip_suffix('s')?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let sound = digits(whole) && digits(fraction) && fraction.len() <= 9;
    sound.then(|| whole.parse().ok()).flatten()
}

fn android_options(android: &Part<'_>, message: &mut Message) -> Result<(), Invalid> {
    message.collapse_key = android.text("collapse_key")?.map(str::to_owned);
    android.text("restricted_package_name")?;
    android.flag("direct_boot_ok")?;
    if let Some(priority) = android.text("priority")? {
        let word = priority.to_ascii_uppercase();
        if word != "HIGH" && word != "NORMAL" {
            return Err(Invalid::kind(
                &android.field("priority"),
                "type.googleapis.com/google.firebase.fcm.v1.AndroidConfig.AndroidMessagePriority",
            ));
        }
        message.priority = Some(word);
    }
    if let Some(text) = android.text("ttl")? {
        let field = android.field("ttl");
        let ttl = ttl_seconds(text)
            .ok_or_else(|| Invalid::kind(&field, "type.googleapis.com/google.protobuf.Duration"))?;
        if ttl > MAX_TTL_S {
            let text = "Invalid ttl: must be between 0 and 2419200 seconds";
            return Err(Invalid::refused(FcmCode::InvalidArgument, &field, text));
        }
        message.ttl_s = Some(ttl);
    }
    Ok(())
}

/// Reads and checks a body that is JSON.
pub(super) fn check(body: &Value) -> Result<Message, Invalid> {
    let root = Part::new(body, "", ROOT)?;
    let Some(part) = root.child("message", MESSAGE)? else {
        let text = "The message is not set.";
        return Err(Invalid::refused(FcmCode::InvalidArgument, "message", text));
    };
    let mut size = check_data(&part)? + check_notification(&part)?;
    let mut message = Message {
        token: String::new(),
        collapse_key: None,
        priority: None,
        ttl_s: None,
        validate_only: root.flag("validate_only")?,
    };
    if let Some(android) = part.child("android", ANDROID)? {
        // Android's own data replaces the common one where both are given; counting both would refuse too much.
        size = size.max(check_data(&android)?);
        android_options(&android, &mut message)?;
    }
    // Topics and conditions reach no phone here, so a message has to name a token.
    let Some(token) = part.text("token")? else {
        let text = "Recipient of the message is not set.";
        return Err(Invalid::refused(FcmCode::InvalidArgument, "message", text));
    };
    token.clone_into(&mut message.token);
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_');
    if !TOKEN_LENGTH.contains(&token.len()) || !token.bytes().all(sound) {
        let code = FcmCode::InvalidToken;
        return Err(Invalid::refused(code, "message.token", code.message()));
    }
    if size > MAX_PAYLOAD {
        return Err(Invalid {
            code: FcmCode::TooBig,
            field: None,
            description: FcmCode::TooBig.message().to_owned(),
            by_fcm: true,
        });
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::{check, spells, ttl_seconds};
    use serde_json::{Value, json};

    fn field(body: &Value) -> Option<String> {
        check(body).unwrap_err().field
    }

    #[test]
    fn every_fault_names_its_field() {
        let with = |part: Value| {
            let mut body = json!({"message": {"token": "a-good-token"}});
            let message = body["message"].as_object_mut().unwrap();
            message.extend(part.as_object().unwrap().clone());
            field(&body).unwrap()
        };
        assert_eq!(field(&json!({})).unwrap(), "message");
        assert_eq!(field(&json!([])).unwrap(), "");
        assert_eq!(field(&json!({"message": {}})).unwrap(), "message");
        assert_eq!(with(json!({"token": "no token"})), "message.token");
        assert_eq!(with(json!({"token": 5})), "message.token");
        assert_eq!(with(json!({"colour": 1})), "message");
        assert_eq!(
            with(json!({"data": {"a": "1", "b": 2}})),
            "message.data[1].value"
        );
        assert_eq!(with(json!({"data": {"from": "x"}})), "message.data");
        assert_eq!(with(json!({"android": {"ttl": 5}})), "message.android.ttl");
        assert_eq!(
            with(json!({"android": {"ttl": "2419201s"}})),
            "message.android.ttl"
        );
        assert_eq!(
            with(json!({"android": {"priority": "urgent"}})),
            "message.android.priority"
        );
        assert_eq!(
            with(json!({"notification": {"title": 1}})),
            "message.notification.title"
        );
    }

    #[test]
    fn too_big_comes_without_a_field() {
        let big = "x".repeat(5000);
        let body = json!({"message": {"token": "a-good-token", "data": {"k": big}}});
        assert_eq!(field(&body), None);
    }

    #[test]
    fn both_spellings_of_a_name_are_read() {
        let android = json!({"collapseKey": "c", "priority": "high", "ttl": "90s"});
        let body =
            json!({"message": {"token": "a-good-token", "android": android}, "validateOnly": true});
        let message = check(&body).unwrap();
        assert_eq!(message.collapse_key.as_deref(), Some("c"));
        assert_eq!(message.priority.as_deref(), Some("HIGH"));
        assert_eq!(message.ttl_s, Some(90));
        assert!(message.validate_only);
    }

    #[test]
    fn a_name_has_two_spellings_and_no_third() {
        for given in ["fcm_options", "fcmOptions"] {
            assert!(spells(given, "fcm_options"), "{given}");
        }
        for given in [
            "fcmoptions",
            "FcmOptions",
            "fcm_Options",
            "fcm",
            "fcm_options_",
            "fcm_",
            "",
        ] {
            assert!(!spells(given, "fcm_options"), "{given}");
        }
    }

    #[test]
    fn a_duration_is_digits_and_an_s() {
        assert_eq!(ttl_seconds("3.5s"), Some(3));
        for bad in ["3", "-1s", "s", "1e3s", "3.s", " 3s"] {
            assert_eq!(ttl_seconds(bad), None, "{bad}");
        }
    }
}
