//! The floor of every search for a socket's holders: lists each /proc/PID/fd and reads each link, and does nothing else with them.

use std::{error::Error, mem::MaybeUninit};

use rustix::{
    fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw},
    io::Errno,
};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = openat(CWD, "/proc", folder, Mode::empty())?;
    let (mut names, mut entries) = ([MaybeUninit::uninit(); 32768], [MaybeUninit::uninit(); 32768]);
    let mut target = [MaybeUninit::uninit(); 256];
    let mut links = 0_u64;
    let mut processes = RawDir::new(&proc, &mut names);
    while let Some(process) = processes.next() {
        let process = process?;
        let name = process.file_name().to_bytes();
        if !name.iter().all(u8::is_ascii_digit) {
            continue;
        }
        let path = [name, b"/fd"].concat();
        // Gone meanwhile.
        let Ok(descriptors) = openat(&proc, path, folder, Mode::empty()) else { continue };
        let mut raw = RawDir::new(&descriptors, &mut entries);
        while let Some(entry) = raw.next() {
            let Ok(entry) = entry else { break };
            match readlinkat_raw(&descriptors, entry.file_name(), &mut target) {
                Ok(_) => links += 1,
                Err(Errno::INVAL | Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    println!("{links}");
    Ok(())
}
