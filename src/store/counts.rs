//! How many there are of what, for whoever watches the server. Must not know what is told of it.

use super::error::ReadError;
use super::reader::Readers;

/// Sessions by what they do, each counted once, and requests that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sessions with a run that is on and does not wait.
    pub running: i64,
    /// Sessions whose run waits for somebody's answer.
    pub waiting: i64,
    /// Sessions without a run that is on, and not archived.
    pub idle: i64,
    /// Archived ones without a run that is on.
    pub archived: i64,
    /// Permission requests that wait for an answer.
    pub permissions: i64,
}

impl Readers {
    /// Counts, in one snapshot.
    ///
    /// # Errors
    /// As SQLite says.
    pub fn counts(&self) -> Result<Counts, ReadError> {
        self.read(|conn| {
            let mut counted = conn.prepare_cached(
                "SELECT count(*), ifnull(sum(archived), 0) FROM session WHERE id NOT IN \
                 (SELECT session FROM run WHERE state = 'running')",
            )?;
            let (resting, archived): (i64, i64) =
                counted.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let mut counted = conn.prepare_cached(
                "SELECT count(*), count(open > 0 OR NULL), ifnull(sum(open), 0) FROM (SELECT \
                 (SELECT count(*) FROM permission m WHERE m.run = r.id AND m.state = 'open') \
                 AS open FROM run r WHERE r.state = 'running')",
            )?;
            let (on, waiting, permissions): (i64, i64, i64) =
                counted.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok(Counts {
                running: on - waiting,
                waiting,
                idle: resting - archived,
                archived,
                permissions,
            })
        })
    }
}
