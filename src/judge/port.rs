//! What a guarded port is: free, held, or one of the states that no process explains.

use std::net::SocketAddr;

use crate::ident::{Endpoint, Pid, ServiceName};

use super::verdict::Unknown;

/// The judge's word on one guarded port.
#[derive(Debug, Clone)]
pub struct PortVerdict {
    /// The guarded port.
    pub endpoint: Endpoint,
    /// Its owner by the settings; none for `--port` alone.
    pub service: Option<ServiceName>,
    /// What it is.
    pub state: PortState,
    /// One sentence for the person who reads it.
    pub sentence: String,
    /// What to do, where there is something to do.
    pub next_step: Option<String>,
}

/// States of a guarded port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// Nothing has it.
    Free,
    /// Listening (UDP: bound), by these processes.
    Held(Vec<Pid>),
    /// Bound, not listening, by these processes: a server that is still loading.
    BoundOnly(Vec<Pid>),
    /// An outgoing connection took it as its own local port.
    Ephemeral {
        /// Who connected, as far as we see.
        holders: Vec<Pid>,
        /// Where to.
        peer: SocketAddr,
    },
    /// Only closing connections remain; no process holds it.
    Lingering,
    /// All of `/proc` was read and no process holds it: the kernel itself does, or a descriptor in flight.
    KernelOwned,
    /// Somebody holds it, whom we may not see.
    HolderNotVisible,
    /// The port's sockets could not be read.
    Unknown(Unknown),
}
