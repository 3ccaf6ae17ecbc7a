//! Whole answers over netlink(7): one question, all messages of its answer. A dump that is cut short, refused or changed
//! under us is an error, never a shorter answer.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto,
    socket_with, sockopt,
};

use super::wire::{Message, cut_short, refusal, u32_at};

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The kernel sends at most 32 KiB a message (`NLMSG_GOODSIZE`, net/netlink/af_netlink.c).
const BUFFER_BYTES: usize = 64 * 1024;
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// Of one call.
const MOST_INTERRUPTIONS: usize = 16;
/// Tens of thousands of rules, as some hosts have.
const MOST_BYTES: usize = 64 << 20;

/// A netlink socket; it speaks of the network namespace in which it was made.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// Without a protocol: rtnetlink(7), which is number 0.
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_DEADLINE))?;
        Ok(Self { socket, buffer: vec![0; BUFFER_BYTES], sequence: 0 })
    }

    /// The bodies of all messages that answer a dump. Interrupted = what it tells of changed meanwhile: ask again.
    pub(super) fn dump(&mut self, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(16 + body.len());
        // struct nlmsghdr
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        persist(|| sendto(&self.socket, &message, SendFlags::empty(), &kernel))?;
        let end = Instant::now() + ANSWER_DEADLINE;
        let (mut replies, mut bytes) = (Vec::new(), 0);
        loop {
            let buffer: &mut [u8] = &mut self.buffer;
            let (kept, length) = persist(|| recv(&self.socket, &mut *buffer, RecvFlags::TRUNC))?;
            bytes += length;
            if length > kept || length == 0 {
                return Err(cut_short());
            }
            if bytes > MOST_BYTES || Instant::now() > end {
                return Err(io::Error::other("there are too many of them"));
            }
            let part = self.buffer.get(..length).unwrap_or_default();
            if read(part, self.sequence, &mut replies)? {
                return Ok(replies);
            }
        }
    }
}

/// Makes a call anew that was interrupted: where a socket has a timeout, a stop does that, too (SIGSTOP and SIGCONT, signal(7)). Not
/// for ever.
pub(super) fn persist<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    let mut interruptions = 0;
    loop {
        match call() {
            Err(Errno::INTR) if interruptions < MOST_INTERRUPTIONS => interruptions += 1,
            answer => return answer,
        }
    }
}

/// Reads what came in one piece; tells whether it was the last.
pub(super) fn read(
    mut bytes: &[u8],
    sequence: u32,
    replies: &mut Vec<Vec<u8>>,
) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = Message::take(&mut bytes)?;
        if message.sequence != sequence {
            continue; // the rest of a dump that we gave up
        }
        if message.flags & NLM_F_DUMP_INTR != 0 {
            let why = "it changed while it was read";
            return Err(io::Error::new(io::ErrorKind::Interrupted, why));
        }
        match message.kind {
            NLMSG_NOOP => {}
            // A dump that failed half-way says so in its last message.
            NLMSG_DONE | NLMSG_ERROR => {
                let errno = u32_at(message.body, 0).ok_or_else(cut_short)?.cast_signed();
                if errno < 0 {
                    return Err(refusal(errno));
                }
                return Ok(true);
            }
            _ => replies.push(message.body.to_vec()),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(7_u32.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        message
    }

    fn answer(messages: &[Vec<u8>]) -> io::Result<(bool, usize)> {
        let mut replies = Vec::new();
        let is_done = read(&messages.concat(), 7, &mut replies)?;
        Ok((is_done, replies.len()))
    }

    #[test]
    fn an_answer_ends_with_its_last_message_and_an_error_in_it_is_one() {
        let part = message(0xa06, 0, &[0; 8]);
        assert_eq!(answer(std::slice::from_ref(&part)).unwrap(), (false, 1));
        let done = |errno: i32| message(NLMSG_DONE, 0, &errno.to_ne_bytes());
        assert_eq!(answer(&[part.clone(), done(0)]).unwrap(), (true, 1));
        let refused = answer(&[part.clone(), done(-libc::EPERM)]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        let changed = message(0xa06, NLM_F_DUMP_INTR, &[0; 8]);
        assert_eq!(answer(&[changed]).unwrap_err().kind(), io::ErrorKind::Interrupted);
        for length in 1..part.len() {
            assert!(answer(&[part[..length].to_vec()]).is_err(), "cut at {length}");
        }
    }
}
