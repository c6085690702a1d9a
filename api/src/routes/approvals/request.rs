//! What a sender asks of several people: the question of a confirm push, and by whom it is to be approved.

use crate::app::App;
use crate::body::{faults_of, typed};
use crate::problem::{Fault, Problem};
use crate::routes::pushes::checks::{more_faults, user_faults};
use crate::routes::pushes::create::{PushRequest, UserName, user_of, user_row};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::domain::OnDenial;
use shared::id::{StoreId, UserId};
use shared::store::{User, UserRef};
use std::borrow::Cow;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// The members of the body that a push does not have.
const OWN: [&str; 4] = ["approvers", "required", "requested_by", "on_denial"];
/// The members of a push that the body does not have: they follow, or make no sense, as `payments`, each of which has one use, of one push.
const WITHOUT: [&str; 4] = ["user", "kind", "process", "payments"];

/// Who is to approve.
#[derive(Deserialize, ToSchema)]
struct Group {
    /// Whom to ask: 2 to 20 different people.
    #[schema(min_items = 2, max_items = 20)]
    approvers: Vec<Approver>,
    /// How many of them must approve.
    #[schema(minimum = 1, maximum = 20)]
    required: u32,
    /// Who wants it: must be none of the approvers.
    #[serde(default)]
    requested_by: Option<UserName>,
    /// What one denial means: the others may still approve (`continue`, when left out), or it is over (`end`). A denial that reports fraud always ends it.
    #[serde(default)]
    on_denial: Option<OnDenialWord>,
}

/// One of those asked.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Approver {
    /// By one of two names.
    user: UserName,
}

/// See `ApprovalRequest`.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnDenialWord {
    Continue,
    End,
}

/// The body: the members of a push request that make sense here, and those of [`Group`]. One schema is made of both, so that a question is
/// asked of one person and of several in the same words.
pub(crate) struct ApprovalRequest;

impl PartialSchema for ApprovalRequest {
    fn schema() -> RefOr<Schema> {
        let (question, group) = (PushRequest::schema(), Group::schema());
        let (RefOr::T(Schema::Object(mut one)), RefOr::T(Schema::Object(mut other))) =
            (question, group)
        else {
            return RefOr::default();
        };
        for name in WITHOUT {
            one.properties.remove(name);
        }
        one.required
            .retain(|name| !WITHOUT.contains(&name.as_str()));
        one.required.append(&mut other.required);
        one.properties.append(&mut other.properties);
        one.description = Some("What to ask, and whom of several.".to_owned());
        RefOr::T(Schema::Object(one))
    }
}

impl ToSchema for ApprovalRequest {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("ApprovalRequest")
    }

    fn schemas(all: &mut Vec<(String, RefOr<Schema>)>) {
        PushRequest::schemas(all);
        Group::schemas(all);
    }
}

/// A body without faults, and the people that it names.
pub(super) struct Asked {
    pub(super) required: u32,
    pub(super) on_denial: OnDenial,
    pub(super) requested_by: Option<UserId>,
    pub(super) approvers: Vec<User>,
    question: Value,
}

impl Asked {
    /// Reads a body, or says all that is wrong with it.
    pub(super) async fn read(app: &App, store: &StoreId, sent: Value) -> Result<Self, Problem> {
        let mut faults = faults_of::<ApprovalRequest>(&sent);
        let mut question = sent.clone();
        if let Some(question) = question.as_object_mut() {
            question.retain(|name, _| !OWN.contains(&name.as_str()));
            question.insert("kind".to_owned(), json!("confirm"));
        }
        more_faults(app, store, &question, &mut faults);
        group_faults(&sent, &mut faults);
        let group: Group = typed(sent, faults)?;
        let (approvers, requested_by) = people(app, store, group.approvers, group.requested_by)
            .await
            .map_err(|found| found.map_or_else(|problem| problem, Problem::faults))?;
        Ok(Self {
            required: group.required,
            on_denial: match group.on_denial {
                None | Some(OnDenialWord::Continue) => OnDenial::Continue,
                Some(OnDenialWord::End) => OnDenial::End,
            },
            requested_by,
            approvers,
            question,
        })
    }

    /// The push that asks one of the people.
    pub(super) fn of(&self, user: &User) -> Result<PushRequest, Problem> {
        let mut body = self.question.clone();
        body["user"] = json!({"id": user.id});
        typed(body, Vec::new())
    }
}

/// What the schema cannot say of the people.
fn group_faults(sent: &Value, faults: &mut Vec<Fault>) {
    let mut fault = |pointer: &str, code: &str, detail: &str| {
        faults.push(Fault::new(pointer, code, detail));
    };
    let approvers = sent["approvers"].as_array().map_or(&[][..], Vec::as_slice);
    for (n, approver) in approvers.iter().enumerate() {
        user_faults(approver, &mut |pointer, code, detail| {
            fault(&format!("/approvers/{n}{pointer}"), code, detail);
        });
    }
    let requested_by = json!({"user": sent["requested_by"]});
    user_faults(&requested_by, &mut |_, code, detail| {
        fault("/requested_by", code, detail);
    });
    if sent["required"]
        .as_u64()
        .is_some_and(|required| required > approvers.len() as u64)
    {
        fault("/required", "too_large", "at most as many as are asked");
    }
    if sent["target"]["mode"] == "devices" {
        let detail = "devices belong to one user: all or preferred";
        fault("/target/mode", "not_allowed", detail);
    }
}

/// Whom the names mean. Two names of one person are one person.
async fn people(
    app: &App,
    store: &StoreId,
    approvers: Vec<Approver>,
    requested_by: Option<UserName>,
) -> Result<(Vec<User>, Option<UserId>), Result<Vec<Fault>, Problem>> {
    let mut faults = Vec::new();
    let mut unknown = |pointer: &str| {
        let detail = "the store has no such user";
        faults.push(Fault::new(pointer, "unknown_user", detail));
    };
    let found = async |name: UserName| {
        let name: UserRef = user_of(name);
        user_row(app, store, &name).await.map_err(Err)
    };
    let mut users: Vec<(usize, User)> = Vec::new();
    for (n, approver) in approvers.into_iter().enumerate() {
        match found(approver.user).await? {
            Some(user) => users.push((n, user)),
            None => unknown(&format!("/approvers/{n}/user")),
        }
    }
    let mut requester = None;
    if let Some(name) = requested_by {
        match found(name).await? {
            Some(user) => requester = Some(user.id),
            None => unknown("/requested_by"),
        }
    }
    for (at, (n, user)) in users.iter().enumerate() {
        let pointer = format!("/approvers/{n}/user");
        if users[..at].iter().any(|(_, other)| other.id == user.id) {
            let detail = "this person is among the approvers already";
            faults.push(Fault::new(&pointer, "duplicate", detail));
        }
        if requester.as_ref() == Some(&user.id) {
            let detail = "who wants something does not approve it";
            faults.push(Fault::new(&pointer, "four_eyes", detail));
        }
    }
    if faults.is_empty() {
        let users = users.into_iter().map(|(_, user)| user);
        Ok((users.collect(), requester))
    } else {
        Err(Ok(faults))
    }
}
