//! What the privileged command before a model's start found out for its main process, which may not look: kept by the service
//! manager in between (file descriptor store of systemd.service(5)), as a sealed file in memory that has no name.

use std::{
    env,
    fs::File,
    io::{self, IoSlice, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::FileExt, net::UnixDatagram},
    },
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create},
    io::retry_on_intr,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use super::cards::Chosen;
use crate::{act::interrupt::timespec, backend::Spec, config::settings::Engines, sys};

/// What it is called in the store.
const NAME: &str = "portreeve-model";
/// Of the form below; another one's is refused.
const VERSION: u32 = 1;
/// A spec takes some 1 kB.
const MOST_BYTES: u64 = 1 << 20;
/// For the manager to take it.
const TAKING_TIME: Duration = Duration::from_secs(20);

/// What a model's main process is to go by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// What is wanted of it.
    pub spec: Spec,
    /// Its GPUs, as they were found.
    pub chosen: Chosen,
    /// Our installation.
    pub instance: String,
    /// How engines are asked: it reads no settings of its own.
    #[serde(default)]
    pub engines: Engines,
}

/// As it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    /// When, in nanoseconds since boot. The store keeps no order.
    given_ns: u64,
    handover: Handover,
}

/// Has the service manager keep it, in place of an earlier one. It has taken it when this returns: a message of one that has
/// ended may be of nobody any more (sd_notify(3)).
pub fn give(handover: &Handover) -> io::Result<()> {
    let file = sealed(handover)?;
    let path = env::var_os("NOTIFY_SOCKET").ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "no service manager listens: no NOTIFY_SOCKET")
    })?;
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    send(&socket, &format!("FDSTOREREMOVE=1\nFDNAME={NAME}"), None)?;
    send(&socket, &format!("FDSTORE=1\nFDNAME={NAME}"), Some(file.as_fd()))?;
    barrier(&socket)
}

/// What was given to us. None where nothing was: we were not started by a unit of a model's.
pub fn take() -> io::Result<Option<Handover>> {
    let all = sys::listen_fds()?;
    let of_ours = all.into_iter().filter(|(_, name)| name == NAME);
    let read: Vec<Written> = of_ours.map(|(fd, _)| read(fd)).collect::<io::Result<_>>()?;
    let newest = read.into_iter().max_by_key(|written| written.given_ns);
    Ok(newest.map(|written| written.handover))
}

fn sealed(handover: &Handover) -> io::Result<File> {
    let now = clock_gettime(ClockId::Boottime);
    let now = Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    );
    let given_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let written = Written { version: VERSION, given_ns, handover: handover.clone() };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create(NAME, flags)?);
    file.write_all(&serde_json::to_vec(&written)?)?;
    fcntl_add_seals(&file, seals())?;
    Ok(file)
}

/// Nothing can change it any more, nor its seals.
fn seals() -> SealFlags {
    SealFlags::SEAL | SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK
}

/// From its beginning, wherever whoever had it left off.
fn read(fd: OwnedFd) -> io::Result<Written> {
    let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    if !fcntl_get_seals(&fd)?.contains(seals()) {
        return Err(bad(format!("'{NAME}' is not sealed")));
    }
    let file = File::from(fd);
    let length = file.metadata()?.len();
    let length = usize::try_from(length).ok().filter(|_| length <= MOST_BYTES);
    let length =
        length.ok_or_else(|| bad(format!("'{NAME}' is longer than {MOST_BYTES} bytes")))?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> io::Result<Written> {
    let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let written: Written =
        serde_json::from_slice(bytes).map_err(|error| bad(format!("'{NAME}': {error}")))?;
    if written.version != VERSION {
        return Err(bad(format!("'{NAME}' has form {}, not {VERSION}", written.version)));
    }
    Ok(written)
}

/// What was not written by us: read whole or not at all, and the same when it is written again.
#[cfg(any(test, fuzzing))]
pub(super) fn hostile(bytes: &[u8]) {
    let Ok(written) = parse(bytes) else { return };
    // A path that is no UTF-8 cannot stand in JSON, so all that was read can be written.
    let printed = serde_json::to_vec(&written).unwrap_or_default();
    let again = parse(&printed).map(|again| (again.given_ns, again.handover));
    assert_eq!(again.ok(), Some((written.given_ns, written.handover)));
}

/// Waits until the manager has read all that we sent before (sd_notify_barrier(3)): it closes what comes with the message.
fn barrier(socket: &UnixDatagram) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    send(socket, "BARRIER=1", Some(writer.as_fd()))?;
    drop(writer);
    let mut closed = [PollFd::new(&reader, PollFlags::empty())];
    if retry_on_intr(|| poll(&mut closed, Some(&timespec(TAKING_TIME))))? == 0 {
        let why = format!("the service manager did not take it within {} s", TAKING_TIME.as_secs());
        return Err(io::Error::new(io::ErrorKind::TimedOut, why));
    }
    Ok(())
}

fn send(socket: &UnixDatagram, text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let text = [IoSlice::new(text.as_bytes())];
    sendmsg(socket, &text, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use super::*;
    use crate::{backend::BackendName, models::plan::Cards};

    fn handover() -> Handover {
        let cards = Cards { nvidia: vec!["GPU-1".to_owned()], amd: Vec::new() };
        let chosen = Chosen { cards, devices: 1 };
        Handover {
            spec: Spec::sample(BackendName::Vllm),
            chosen,
            instance: "i".to_owned(),
            engines: Engines::default(),
        }
    }

    #[test]
    fn what_was_given_is_read_from_its_beginning_and_cannot_be_changed() {
        let mut file = sealed(&handover()).unwrap();
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
        file.seek(SeekFrom::End(0)).unwrap();
        assert_eq!(read(file.into()).unwrap().handover, handover());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None, ..Default::default()
        })]

        #[test]
        fn whatever_is_handed_over_is_read_as_it_was_given(
            spec in crate::backend::spec::any::spec(),
            instance in "\\PC{0,20}",
            nvidia in proptest::collection::vec("\\PC{0,20}", 0..3),
            devices in 0..usize::MAX,
        ) {
            let cards = Cards { nvidia, amd: vec![7] };
            let chosen = Chosen { cards, devices };
            let given = Handover { spec, chosen, instance, engines: Engines::default() };
            let read = read(sealed(&given).unwrap().into()).unwrap().handover;
            proptest::prop_assert_eq!(read, given);
        }
    }

    #[test]
    fn what_is_not_sealed_or_of_another_form_is_refused() {
        let refused = |text: &str, seals: SealFlags| {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let mut file = File::from(memfd_create(NAME, flags).unwrap());
            file.write_all(text.as_bytes()).unwrap();
            fcntl_add_seals(&file, seals).unwrap();
            read(file.into()).unwrap_err().to_string()
        };
        let written = |version| Written { version, given_ns: 0, handover: handover() };
        let text = |version| serde_json::to_string(&written(version)).unwrap();
        assert!(refused(&text(1), SealFlags::WRITE).contains("is not sealed"));
        assert!(refused(&text(2), seals()).contains("has form 2, not 1"));
        assert!(refused(&text(1).replace("given_ns", "given"), seals()).contains("unknown field"));
    }
}
