//! The other process: this program again, on another core, with a row to serve.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, set_parent_process_death_signal};

use crate::control::Control;
use crate::machine::{self, Cores};
use crate::row::Row;
use crate::transport::Order;

/// A started peer process; killed on drop if it hasn't ended.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    /// The line to its [`Row::serve`].
    pub control: Control,
}

impl Peer {
    /// Starts this program again to serve `row` on the second core.
    pub fn start(row: &str, cores: Cores) -> Result<Self> {
        let (control, theirs) = Control::pair()?;
        let child = Command::new("/proc/self/exe")
            .args(["peer", "--row", row, "--core"])
            .arg(cores.second.to_string())
            .stdin(Stdio::from(theirs.into_fd()))
            .spawn()
            .context("starting the peer process")?;
        Ok(Self { child, control })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Asks it to end and waits for it.
    pub fn finish(mut self) -> Result<()> {
        self.control.send(&Order::End)?;
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the peer process failed: {status}"),
                None => std::thread::sleep(Duration::from_micros(200)),
            }
        }
        bail!("the peer process did not end within 10 s of being asked to")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What the peer process does: pins itself, then serves until it is told to end.
pub fn serve(row: &dyn Row, core: usize) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("prctl")?;
    machine::pin_to(core)?;
    row.serve(&mut Control::inherited()?).with_context(|| format!("serving {}", row.name()))
}
