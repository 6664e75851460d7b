//! What every connection hears, waiting to be said: ids until then, so that a session that
//! changed twice is described once, as it is now. Must not know sockets.

use std::collections::VecDeque;
use std::path::Path;

use serde_json::{Value, json};

use crate::protocol::gateway::GatewayFrame;
use crate::registry::{Announced, AnnouncementCursor, Mode, StoreState};
use crate::run::id::SessionId;
use crate::server::view;
use crate::store::{Readers, SessionView};

/// One connection's news.
#[derive(Debug)]
pub struct News {
    /// How far it has read the broadcasts.
    pub cursor: AnnouncementCursor,
    /// There may be more to read. The first read also arms the slot.
    pub stale: bool,
    /// The client has been told, or is about to be, that the server drains.
    pub draining_told: bool,
    /// At most what one read gives: no further read before these are said (I7).
    waiting: VecDeque<Item>,
}

/// One piece of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// The store's state.
    Store(StoreState),
    /// The server stops.
    Draining(Mode),
    /// A session was made or changed.
    Changed(SessionId),
    /// A session is gone.
    Deleted(SessionId),
    /// Too much to name.
    Lost,
}

impl News {
    /// The news from `cursor` on.
    #[must_use]
    pub fn new(cursor: AnnouncementCursor) -> Self {
        Self { cursor, stale: true, draining_told: false, waiting: VecDeque::new() }
    }

    /// Whether nothing waits to be said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What a read gave.
    pub fn add(&mut self, announced: Announced) {
        let Announced { changed, deleted, lost, store, draining } = announced;
        self.stale = false;
        self.draining_told |= draining.is_some();
        self.waiting.extend(store.map(Item::Store));
        self.waiting.extend(draining.map(Item::Draining));
        self.waiting.extend(lost.then_some(Item::Lost));
        self.waiting.extend(deleted.into_iter().map(Item::Deleted));
        self.waiting.extend(changed.into_iter().map(Item::Changed));
    }

    /// What is to be said next.
    pub fn pop(&mut self) -> Option<Item> {
        self.waiting.pop_front()
    }
}

/// The frame that says it. None if the session is gone by now, which is news of its own, or
/// cannot be read, in which case the list cannot either.
#[must_use]
pub fn frame(item: Item, readers: &Readers) -> Option<GatewayFrame> {
    Some(match item {
        Item::Store(StoreState::Good) => GatewayFrame::StoreState { ok: true, code: None },
        Item::Store(StoreState::Bad(code)) => {
            GatewayFrame::StoreState { ok: false, code: Some(code.to_owned()) }
        }
        Item::Draining(mode) => GatewayFrame::ServerDraining { mode: mode_word(mode).to_owned() },
        Item::Lost => GatewayFrame::SessionsChanged {},
        Item::Deleted(session_id) => GatewayFrame::SessionDeleted { session_id },
        Item::Changed(session) => match readers.session_view(session) {
            Ok(view) => upserted(&view?),
            Err(error) => {
                tracing::warn!(%session, %error, "a session that changed cannot be read");
                GatewayFrame::SessionsChanged {}
            }
        },
    })
}

fn upserted(view: &SessionView) -> GatewayFrame {
    GatewayFrame::SessionUpserted {
        session_id: view.row.id,
        provider_session_id: view.row.native_id.as_ref().map(|id| id.0.clone()),
        provider: view.row.provider.clone(),
        session: view::session(view),
        project: Some(project(view)),
    }
}

fn project(view: &SessionView) -> Value {
    let project = &view.project;
    let folder = Path::new(&project.path).file_name();
    let folder = folder.map(|name| name.to_string_lossy().into_owned());
    let name = project.custom_name.clone().or(folder).unwrap_or_else(|| project.path.clone());
    json!({
        "projectId": project.id.to_string(), "path": project.path, "fullPath": project.path,
        "displayName": name, "isStarred": project.starred,
    })
}

/// The word for what becomes of agents.
#[must_use]
pub const fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Abort => "abort",
        Mode::Keep => "keep",
    }
}
