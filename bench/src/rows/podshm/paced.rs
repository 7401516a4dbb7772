//! Calls with a pause between them.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use podshm::{Client, Spin};

use super::{Node, PATIENCE, default_agent, serve_until_told};
use crate::control::Control;
use crate::machine;
use crate::metric::Metric;
use crate::row::{Plan, Row, Sample};
use crate::rows::paced::{PACED, PACED_P90, paced};

/// Calls whose caller waits by the library's default, or never spins.
pub struct Paced {
    /// It sleeps at once.
    sleeps: bool,
}

impl Paced {
    /// As the library has it.
    pub const DEFAULT: Self = Paced { sleeps: false };
    /// Without spinning first.
    pub const SLEEPS: Self = Paced { sleeps: true };
}

impl Row for Paced {
    fn name(&self) -> &'static str {
        if self.sleeps { "podshm-paced-sleeps" } else { "podshm-paced" }
    }

    fn title(&self) -> String {
        format!("podshm{}", if self.sleeps { ", caller never spins" } else { "" })
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![PACED, PACED_P90]
    }

    fn measure(&self, peer: &mut Control, _plan: Plan) -> Result<Vec<Sample>> {
        let node = Node::start()?;
        peer.send(&node.agent())?;
        let client = Client::join(node.client(), PATIENCE)?;
        let call = client.call("call")?;
        let call = if self.sleeps { call.spin(Spin::Never) } else { call };
        paced(|| {
            let mut answer = [0; 64];
            ensure!(call.call(&[7; 64], &mut answer, PATIENCE)? == 64, "expected an answer of 64 bytes");
            Ok(())
        })
    }

    fn serve(&self, control: &mut Control) -> Result<()> {
        machine::unpin()?;
        let directory: PathBuf = control.recv()?;
        let agent = default_agent(&directory)?;
        serve_until_told(agent, control)
    }
}
