//! Who listens on these TCP ports, by the crate netstat2: `netstat2-holders PORT…`

use std::{collections::HashSet, env, error::Error};

use netstat2::{AddressFamilyFlags, ProtocolFlags, ProtocolSocketInfo, TcpState, get_sockets_info};

fn main() -> Result<(), Box<dyn Error>> {
    let ports: HashSet<u16> =
        env::args().skip(1).map(|port| port.parse()).collect::<Result<_, _>>()?;
    let families = AddressFamilyFlags::IPV4 | AddressFamilyFlags::IPV6;
    for socket in get_sockets_info(families, ProtocolFlags::TCP)? {
        if let ProtocolSocketInfo::Tcp(tcp) = &socket.protocol_socket_info
            && tcp.state == TcpState::Listen
            && ports.contains(&tcp.local_port)
        {
            println!("{} {:?}", tcp.local_port, socket.associated_pids);
        }
    }
    Ok(())
}
