//! A keeper's process as a gateway sees it: its own child, or one that it found.
//!
//! Must not know what the keeper says.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

use rustix::process::{Pid, Signal};

use super::super::home::Home;
use crate::limits::LOOK_AGAIN_MS;

/// The keeper's process. It ends by itself once its agent has and its gateway has all of it, or is
/// gone; whoever spawned it waits for it, so that no zombie stays.
#[derive(Debug)]
pub struct Process(Kind);

#[derive(Debug)]
enum Kind {
    Child(Child),
    Found(Found),
}

/// A keeper that is not our child: its life is its lock's.
#[derive(Debug)]
struct Found {
    pid: u32,
    home: Home,
    #[cfg(target_os = "linux")]
    handle: Option<std::os::fd::OwnedFd>,
}

impl Process {
    pub(super) const fn child(child: Child) -> Self {
        Self(Kind::Child(child))
    }

    /// The keeper of this home, which says that it is process `pid`. `None`: it is gone.
    pub(super) fn found(home: &Home, pid: u32) -> io::Result<Option<Self>> {
        #[cfg(target_os = "linux")]
        let handle = named(pid).and_then(|pid| {
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
        });
        let found = Found {
            pid,
            home: home.clone(),
            #[cfg(target_os = "linux")]
            handle,
        };
        // It lives after we took hold of the number, so the number is still its own.
        Ok(home.is_alive()?.then_some(Self(Kind::Found(found))))
    }

    /// The keeper's process id (not the agent's).
    #[must_use]
    pub fn pid(&self) -> u32 {
        match &self.0 {
            Kind::Child(child) => child.id(),
            Kind::Found(found) => found.pid,
        }
    }

    /// Waits for its end. Zero: the agent had its end, too. Of a keeper that is not our child
    /// the system tells no status: then it is always zero.
    ///
    /// # Errors
    /// As `waitpid`, or the lock cannot be looked at.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        match &mut self.0 {
            Kind::Child(child) => child.wait(),
            Kind::Found(found) => found.wait().map(|()| ExitStatus::from_raw(0)),
        }
    }

    /// Its status if it has ended.
    ///
    /// # Errors
    /// As `wait`.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        match &mut self.0 {
            Kind::Child(child) => child.try_wait(),
            Kind::Found(found) => Ok((!found.is_alive()?).then(|| ExitStatus::from_raw(0))),
        }
    }

    /// Kills the keeper itself, which leaves its agent behind: `keeper::sweep_agent` is to
    /// follow. For a keeper that no longer does its work.
    pub fn kill(&mut self) {
        // Either fails only for a process that has ended.
        match &mut self.0 {
            Kind::Child(child) => {
                child.kill().ok();
                child.wait().ok();
            }
            Kind::Found(found) => {
                found.kill();
                found.wait().ok();
            }
        }
    }
}

impl Found {
    fn is_alive(&self) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        if let Some(handle) = &self.handle {
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            return ended(handle, Some(&now)).map(|ended| !ended);
        }
        self.home.is_alive()
    }

    fn wait(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(handle) = &self.handle {
            while !ended(handle, None)? {}
            return Ok(());
        }
        while self.home.is_alive()? {
            std::thread::sleep(std::time::Duration::from_millis(LOOK_AGAIN_MS.unsigned_abs()));
        }
        Ok(())
    }

    fn kill(&self) {
        #[cfg(target_os = "linux")]
        if let Some(handle) = &self.handle {
            // It fails only for a process that has ended.
            rustix::process::pidfd_send_signal(handle, Signal::KILL).ok();
            return;
        }
        if let Some(pid) = named(self.pid).filter(|_| self.home.is_alive().unwrap_or(false)) {
            // As above.
            rustix::process::kill_process(pid, Signal::KILL).ok();
        }
    }
}

impl Home {
    /// Tells the keeper to stop its agent and end, by a signal: that works whatever protocol it
    /// speaks. `false`: there is none.
    ///
    /// # Errors
    /// It cannot be signalled, or its lock cannot be looked at.
    pub fn terminate(&self) -> io::Result<bool> {
        let Some(pid) = self.info().and_then(|info| named(info.pid)) else { return Ok(false) };
        if !self.is_alive()? {
            return Ok(false);
        }
        rustix::process::kill_process(pid, Signal::TERM)?;
        Ok(true)
    }
}

fn named(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Whether the process has ended, zombie or not, within that time.
#[cfg(target_os = "linux")]
fn ended(
    handle: &std::os::fd::OwnedFd,
    timeout: Option<&rustix::event::Timespec>,
) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, poll};

    match poll(&mut [PollFd::new(handle, PollFlags::IN)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
