//! `/tokens`: what programs come in by.

use http::StatusCode;
use serde_json::Value;

use super::devices::{device, end, find};
use super::login::name;
use super::{Call, Outcome, Problem, listed};
use crate::limits;
use crate::protocol::fields::{BadField, Fields};
use crate::run::id::Millis;
use crate::run::server_change::CredentialKind;
use crate::server::auth::{New, NotAdmitted, NotMade, Scope, TOKEN_FILE_NAME, scope};
use crate::server::http::response::Response;

pub(super) fn list(call: &Call<'_>) -> Outcome {
    let own = call.caller.id();
    let tokens = call.api.auth.list(CredentialKind::Token, call.now);
    Ok(listed(tokens.iter().map(|one| device(one, own == Some(one.id))).collect(), None))
}

/// The only answer that has the token itself.
pub(super) fn create(call: &Call<'_>) -> Outcome {
    let auth = &call.api.auth;
    let mut fields = call.fields()?;
    let name = name(&mut fields)?.ok_or_else(|| Problem::field("name must be a string."))?;
    let scope = wanted_scope(&mut fields)?;
    let expires_at = end_of(&mut fields, call.now)?;
    if name == TOKEN_FILE_NAME {
        return Err(NotMade::NotAdmitted(NotAdmitted::NameTaken).into());
    }
    let new = New { kind: CredentialKind::Token, name, scope, expires_at, parent: None };
    let coming = auth.make(new, call.now).map_err(Problem::from)?;
    if let Err(problem) = call.commit(&coming.pending) {
        auth.given_up(&coming.lease, call.now);
        return Err(problem);
    }
    auth.opened(&coming.lease);
    let mut shown = device(&coming.lease.facts(), false);
    auth.audit(Some(call.by.clone()), "token_created", &shown, call.now);
    shown["token"] = coming.secret.expose().into();
    Ok(Response::json(StatusCode::CREATED, &shown))
}

pub(super) fn revoke(call: &Call<'_>, named: &str) -> Outcome {
    let lease = find(call, CredentialKind::Token, named)
        .ok_or_else(|| Problem::not_found("TOKEN_NOT_FOUND", "No token has that id."))?;
    end(call, &lease, "token_revoked")
}

/// What it may do: if nothing is said, all but to let others in.
pub(super) fn wanted_scope(fields: &mut Fields) -> Result<Scope, Problem> {
    match fields.string("scope")? {
        None => Ok(Scope::Control),
        Some(name) => scope::named(&name)
            .ok_or_else(|| Problem::field("scope must be read, control or admin.")),
    }
}

fn end_of(fields: &mut Fields, now: Millis) -> Result<Option<Millis>, Problem> {
    let bad = BadField {
        field: "expiresInMs",
        must_be: "a whole number of milliseconds, from 1 to ten years",
    };
    match fields.any("expiresInMs") {
        None => Ok(None),
        Some(Value::Number(number)) => {
            let ms = number.as_i64().filter(|ms| (1..=limits::TOKEN_MS_MAX).contains(ms));
            ms.map(|ms| Some(now.plus(ms))).ok_or_else(|| bad.into())
        }
        Some(_) => Err(bad.into()),
    }
}
