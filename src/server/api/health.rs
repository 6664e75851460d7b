//! Whether the server lives, whether it takes work, which version it is, and what it has counted.
//!
//! The first two answer everybody, since a service manager has no credential; why a server is not
//! ready is for those who have one.

use std::collections::BTreeMap;
use std::path::Path;

use http::StatusCode;
use rustix::fs::{Access, access, statvfs};
use serde_json::{Value, json};

use super::{Api, Problem};
use crate::limits;
use crate::metrics::labels::Session;
use crate::metrics::{CONTENT_TYPE, Snapshot};
use crate::protocol::message::{ErrorCode, VERSION};
use crate::registry::StoreState;
use crate::server::http::response::Response;

/// The commit that this program was built from, if the build said so.
const REVISION: Option<&str> = option_env!("REATTACH_REVISION");

impl Api {
    /// The process answers.
    pub(in crate::server) fn health() -> Response {
        Response::json(StatusCode::OK, &json!({ "ok": true }))
    }

    /// Whether prompts are taken, and with `details` why not, and what will soon be a reason.
    pub(in crate::server) fn ready(&self, details: bool) -> Response {
        let reasons = self.reasons();
        let ok = reasons.is_empty();
        let mut body = json!({ "ok": ok });
        if details {
            body["reasons"] = Value::from(reasons);
            let full = disk_is_nearly_full(&self.data_dir);
            body["warnings"] =
                if full { json!([{ "code": "disk_nearly_full" }]) } else { json!([]) };
        }
        if ok {
            return Response::json(StatusCode::OK, &body);
        }
        Response::json(StatusCode::SERVICE_UNAVAILABLE, &body).with("Retry-After", "1")
    }

    /// A closed list of `code`s: `draining`, `store_unavailable`, `data_dir_unwritable`.
    fn reasons(&self) -> Vec<Value> {
        let mut reasons = Vec::new();
        if self.registry.is_closing() {
            reasons.push(json!({ "code": "draining" }));
        }
        if let StoreState::Bad(code) = self.registry.store_state() {
            reasons.push(json!({ "code": "store_unavailable", "detail": code }));
        }
        if access(&self.data_dir, Access::WRITE_OK | Access::EXEC_OK).is_err() {
            reasons.push(json!({ "code": "data_dir_unwritable" }));
        }
        reasons
    }

    /// Who answers here.
    pub(super) fn version(&self) -> Response {
        let body = json!({
            "name": "reattach", "version": self.version, "revision": REVISION,
            "protocol": VERSION, "logEpoch": self.registry.epoch(),
        });
        Response::json(StatusCode::OK, &body)
    }

    /// What was counted, as OpenMetrics text.
    pub(in crate::server) fn metrics(&self) -> Response {
        match self.metrics.text(&self.snapshot()) {
            Ok(text) => Response {
                content_type: Some(CONTENT_TYPE),
                body: text.into_bytes().into(),
                ..Response::empty(StatusCode::OK)
            },
            Err(error) => Problem::of(ErrorCode::InternalError, &error.to_string()).into(),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let counts = self.readers.counts().inspect_err(|error| {
            tracing::warn!(%error, "the sessions cannot be counted");
        });
        let counts = counts.ok();
        Snapshot {
            permissions_pending: counts.map(|counts| counts.permissions),
            sessions: counts.map(|counts| {
                BTreeMap::from([
                    (Session::Running, counts.running),
                    (Session::Waiting, counts.waiting),
                    (Session::Idle, counts.idle),
                    (Session::Archived, counts.archived),
                ])
            }),
            agent_processes: self
                .workers
                .as_ref()
                .map_or_else(BTreeMap::new, |workers| workers.by_provider()),
        }
    }
}

/// Whether the disk will soon be a reason. One that cannot be asked is not.
fn disk_is_nearly_full(dir: &Path) -> bool {
    statvfs(dir)
        .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < limits::DISK_FREE_BYTES_MIN)
}
