//! Who listens on these TCP ports, by the crate procfs: `procfs-holders PORT…`

use std::{
    collections::{HashMap, HashSet},
    env,
    error::Error,
};

use procfs::{
    net::{TcpState, tcp, tcp6},
    process::{FDTarget, all_processes},
};

fn main() -> Result<(), Box<dyn Error>> {
    let ports: HashSet<u16> =
        env::args().skip(1).map(|port| port.parse()).collect::<Result<_, _>>()?;
    let listeners: HashMap<u64, u16> = tcp()?
        .into_iter()
        .chain(tcp6()?)
        .filter(|entry| entry.state == TcpState::Listen)
        .map(|entry| (entry.inode, entry.local_address.port()))
        .filter(|(_, port)| ports.contains(port))
        .collect();
    for process in all_processes()?.flatten() {
        let Ok(descriptors) = process.fd() else { continue };
        for descriptor in descriptors.flatten() {
            if let FDTarget::Socket(inode) = descriptor.target
                && let Some(port) = listeners.get(&inode)
            {
                println!("{port} {}", process.pid);
            }
        }
    }
    Ok(())
}
