//! `POST /login`, `POST /logout`: how a browser becomes a device, and stops being one.

use http::StatusCode;
use serde_json::{Value, json};

use super::devices::device;
use super::{Call, Outcome, Problem};
use crate::limits;
use crate::protocol::fields::Fields;
use crate::run::event::{By, ByKind};
use crate::server::auth::{How, Lease, Login, NotAdmitted, NotMade, describe, user_agent};
use crate::server::http::response::Response;

/// A code or a token for a cookie. Everybody may try.
pub(super) fn login(call: &Call<'_>) -> Outcome {
    let auth = &call.api.auth;
    let headers = &call.request.head.headers;
    let mut fields = call.fields()?;
    let shown = fields.text("code")?;
    let name = name(&mut fields)?;
    let grant = match auth.login(&shown, headers, call.request.peer, call.now) {
        Login::Open => return Ok(welcome(&Value::Null)),
        Login::Grant(grant) => grant,
        Login::Wrong => {
            let message = "That opens nothing. A link opens once, within ten minutes; for another \
                           one: reattach open, or reattach pair.";
            let (status, code) = (StatusCode::UNAUTHORIZED, "UNAUTHORIZED".into());
            return Err(Problem { status, code, message: message.into() });
        }
        Login::Wait(seconds) => return Ok(too_many(seconds)),
    };
    let before = call.caller.lease.as_ref().filter(|_| call.caller.how == How::Cookie);
    if let Some(lease) = before.filter(|lease| lease.scope() >= grant.scope) {
        // It is in already, and may do as much: one browser is one device.
        return Ok(welcome(&device(&lease.facts(), true)));
    }
    let name = name.or_else(|| grant.name.clone()).unwrap_or_else(|| describe(user_agent(headers)));
    let coming = auth.new_device(grant, name, call.now).map_err(Problem::from)?;
    if let Err(problem) = call.commit(&coming.pending) {
        auth.given_up(&coming.lease, call.now);
        return Err(problem);
    }
    auth.opened(&coming.lease);
    if let Some(before) = before {
        // The cookie that it had is overwritten. Where the store fails, it ends by itself.
        if auth.revoke(before, call.now).is_ok_and(|pending| call.commit(&pending).is_ok()) {
            auth.revoked(before);
        }
    }
    audit_login(call, &coming.lease);
    let welcome = welcome(&device(&coming.lease.facts(), true));
    Ok(welcome.with("Set-Cookie", auth.cookie(&coming.secret)))
}

/// The device that asks ends. Others have nothing to leave.
pub(super) fn logout(call: &Call<'_>) -> Outcome {
    let auth = &call.api.auth;
    if let Some(lease) = call.caller.lease.as_ref().filter(|_| call.caller.how == How::Cookie) {
        let pending = auth.revoke(lease, call.now)?;
        call.commit(&pending)?;
        auth.revoked(lease);
        let detail = json!({ "id": lease.id().to_string(), "name": lease.name() });
        auth.audit(Some(call.by.clone()), "logout", &detail, call.now);
    }
    Ok(Response::empty(StatusCode::NO_CONTENT).with("Set-Cookie", auth.no_cookie()))
}

fn welcome(device: &Value) -> Response {
    Response::json(StatusCode::OK, &json!({ "ok": true, "device": device }))
}

fn too_many(seconds: u64) -> Response {
    let message = "Too many wrong attempts; try again later.";
    Response::error(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_ATTEMPTS", message)
        .with("Retry-After", seconds.to_string())
}

fn audit_login(call: &Call<'_>, lease: &Lease) {
    let by = By { kind: ByKind::Web, name: lease.name().to_owned() };
    let request = call.request;
    let detail = json!({
        "id": lease.id().to_string(), "scope": lease.scope(),
        "peer": call.api.auth.client_name(&request.head.headers, request.peer),
    });
    call.api.auth.audit(Some(by), "login", &detail, call.now);
}

/// What a device or a token is to be called, if that is said.
pub(super) fn name(fields: &mut Fields) -> Result<Option<String>, Problem> {
    let Some(name) = fields.string("name")? else { return Ok(None) };
    let name = name.trim();
    let fits = (1..=limits::NAME_BYTES_MAX).contains(&name.len());
    if !fits || name.chars().any(char::is_control) {
        return Err(Problem::field("name must be 1 to 64 bytes long, on one line."));
    }
    Ok(Some(name.to_owned()))
}

impl From<NotMade> for Problem {
    fn from(not_made: NotMade) -> Self {
        let conflict = |code: &str, message: &str| Self {
            status: StatusCode::CONFLICT,
            code: code.into(),
            message: message.into(),
        };
        match not_made {
            NotMade::NotAdmitted(NotAdmitted::Full) => {
                let message = "There are 1000 devices and tokens; revoke some first.";
                conflict("TOO_MANY_CREDENTIALS", message)
            }
            NotMade::NotAdmitted(NotAdmitted::NameTaken) => {
                conflict("NAME_TAKEN", "Another token has that name; revoke it, or take another.")
            }
            NotMade::Refused(refusal) => refusal.into(),
            NotMade::Io(error) => {
                tracing::error!(%error, "no randomness");
                Self::of(crate::protocol::message::ErrorCode::InternalError, "No randomness.")
            }
        }
    }
}
