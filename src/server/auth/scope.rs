//! What each request and each frame needs. Here, in one place, so that a new one is not forgotten:
//! what nobody has thought of needs more, not less. Must not know who asks.

use crate::protocol::message::ClientMessage;
pub use crate::run::server_change::Scope;

/// What a REST request below `/api/v1` needs; `None` is what everybody may do. `method` is upper
/// case, `HEAD` counts as `GET`.
#[must_use]
pub fn of_request(method: &str, segments: &[&str]) -> Option<Scope> {
    let first = segments.first().copied().unwrap_or_default();
    match (method, first) {
        ("POST", "login") => None,
        // To leave is nobody's to grant.
        ("POST", "logout") => Some(Scope::Read),
        // Who else may come in, what was done here, and where news of it go.
        (_, "tokens" | "devices" | "pair" | "audit" | "notifications" | "notify") => {
            Some(Scope::Admin)
        }
        ("GET" | "HEAD", _) => Some(Scope::Read),
        _ => Some(Scope::Control),
    }
}

/// What a WebSocket frame needs.
#[must_use]
pub const fn of_frame(message: &ClientMessage) -> Scope {
    match message {
        ClientMessage::Hello { .. }
        | ClientMessage::Subscribe { .. }
        | ClientMessage::Unsubscribe { .. }
        | ClientMessage::Presence { .. }
        | ClientMessage::Ping => Scope::Read,
        ClientMessage::Send { .. } | ClientMessage::Abort { .. } | ClientMessage::Answer { .. } => {
            Scope::Control
        }
    }
}

/// A scope by its name.
#[must_use]
pub fn named(name: &str) -> Option<Scope> {
    match name {
        "read" => Some(Scope::Read),
        "control" => Some(Scope::Control),
        "admin" => Some(Scope::Admin),
        _ => None,
    }
}

/// What somebody is told who may not do as much.
#[must_use]
pub fn forbidden(scope: Scope) -> String {
    let name = match scope {
        Scope::Read => "read",
        Scope::Control => "control",
        Scope::Admin => "admin",
    };
    format!("This needs a device or token of scope {name}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_include_each_other_in_order() {
        assert!(Scope::Read < Scope::Control && Scope::Control < Scope::Admin);
        for (name, scope) in
            [("read", Scope::Read), ("control", Scope::Control), ("admin", Scope::Admin)]
        {
            assert_eq!(named(name), Some(scope));
        }
        assert_eq!([named("Read"), named(""), named("root")], [None, None, None]);
    }

    #[test]
    fn what_nobody_thought_of_is_not_open() {
        assert_eq!(of_request("GET", &["something", "new"]), Some(Scope::Read));
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            assert_eq!(of_request(method, &["something", "new"]), Some(Scope::Control), "{method}");
        }
        assert_eq!(of_request("GET", &["login"]), Some(Scope::Read));
        assert_eq!(of_request("GET", &[]), Some(Scope::Read));
    }
}
