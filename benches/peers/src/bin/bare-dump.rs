//! The floor of every question who listens: one dump of the kernel's TCP listeners for each family, counted and dropped (sock_diag(7)).

use std::error::Error;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_DONE: u16 = 3;
const NLMSG_ERROR: u16 = 2;
const TCP: u8 = 6;
const LISTEN: u32 = 1 << 10;
/// A header, and `inet_diag_req_v2` with no socket named.
const LENGTH: usize = 16 + 56;

fn main() -> Result<(), Box<dyn Error>> {
    let mut listeners = 0;
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        listeners += dump(u8::try_from(family.as_raw())?)?;
    }
    println!("{listeners}");
    Ok(())
}

fn dump(family: u8) -> Result<u64, Box<dyn Error>> {
    let kernel = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let mut request = Vec::with_capacity(LENGTH);
    request.extend(u32::try_from(LENGTH)?.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]); // sequence, port
    request.extend([family, TCP, 0, 0]);
    request.extend(LISTEN.to_ne_bytes());
    request.resize(LENGTH, 0);
    send(&kernel, &request, SendFlags::empty())?;
    let mut page = vec![0_u8; 32768];
    let mut listeners = 0;
    loop {
        let (length, _) = recv(&kernel, &mut page[..], RecvFlags::empty())?;
        let mut rest = &page[..length];
        while let Some((header, _)) = rest.split_first_chunk::<16>() {
            let size = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
            match u16::from_ne_bytes([header[4], header[5]]) {
                NLMSG_DONE => return Ok(listeners),
                NLMSG_ERROR => return Err("the kernel refuses the dump".into()),
                _ => listeners += 1,
            }
            rest = rest.get(usize::try_from(size)?.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
