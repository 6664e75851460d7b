//! `/devices`: the browsers that have logged in.

use http::StatusCode;
use serde_json::{Value, json};

use super::{Call, Outcome, Problem, listed};
use crate::run::id::CredentialId;
use crate::run::server_change::CredentialKind;
use crate::server::auth::{Facts, Lease};
use crate::server::http::response::Response;

pub(super) fn list(call: &Call<'_>) -> Outcome {
    let own = call.caller.id();
    let devices = call.api.auth.list(CredentialKind::Device, call.now);
    Ok(listed(devices.iter().map(|one| device(one, own == Some(one.id))).collect(), None))
}

pub(super) fn revoke(call: &Call<'_>, named: &str) -> Outcome {
    let lease = find(call, CredentialKind::Device, named)
        .ok_or_else(|| Problem::not_found("DEVICE_NOT_FOUND", "No device has that id."))?;
    end(call, &lease, "device_revoked")
}

/// A device or token as lists show it. `current`: it is the one that asks.
pub(super) fn device(facts: &Facts, current: bool) -> Value {
    let time = |at: Option<crate::run::id::Millis>| at.map(|at| at.to_string());
    json!({
        "id": facts.id.to_string(),
        "name": facts.name,
        "scope": facts.scope,
        "createdAt": facts.created_at.to_string(),
        "expiresAt": time(facts.expires_at),
        "lastUsedAt": time(facts.last_used_at),
        "current": current,
    })
}

pub(super) fn find(call: &Call<'_>, kind: CredentialKind, named: &str) -> Option<Lease> {
    let id: CredentialId = named.parse().ok()?;
    call.api.auth.get(kind, id).filter(|_| id.to_string() == named)
}

/// It opens nothing from now on; the answer follows when the disk knows.
pub(super) fn end(call: &Call<'_>, lease: &Lease, what: &'static str) -> Outcome {
    let auth = &call.api.auth;
    let pending = auth.revoke(lease, call.now)?;
    call.commit(&pending)?;
    auth.revoked(lease);
    let detail = json!({ "id": lease.id().to_string(), "name": lease.name() });
    auth.audit(Some(call.by.clone()), what, &detail, call.now);
    Ok(Response::empty(StatusCode::NO_CONTENT))
}
