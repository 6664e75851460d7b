//! `POST /pair`: a code that opens once, and the links that carry it to a new device.

use http::StatusCode;
use serde_json::json;

use super::login::name;
use super::tokens::wanted_scope;
use super::{Call, Outcome, Problem};
use crate::protocol::fields::Fields;
use crate::server::auth::NotMade;
use crate::server::http::response::Response;

pub(super) fn create(call: &Call<'_>) -> Outcome {
    let auth = &call.api.auth;
    let mut fields = match call.request.body.is_empty() {
        true => Fields::default(),
        false => call.fields()?,
    };
    let scope = wanted_scope(&mut fields)?;
    let name = name(&mut fields)?;
    let made = auth.issue_code(scope, name.clone(), call.caller.id(), call.now);
    let (code, ends_at) = made.map_err(|error| Problem::from(NotMade::Io(error)))?;
    let detail = json!({ "scope": scope, "name": name });
    auth.audit(Some(call.by.clone()), "link_created", &detail, call.now);
    let links = call.api.links.with(&code);
    let body = json!({
        "code": code.expose(), "scope": scope, "name": name, "expiresAt": ends_at.to_string(),
        "links": links, "loopbackOnly": call.api.links.loopback_only(),
    });
    Ok(Response::json(StatusCode::CREATED, &body))
}
