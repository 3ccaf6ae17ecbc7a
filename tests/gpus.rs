//! What is seen of GPUs: NVIDIA's library and `nvidia-smi` through stand-ins that answer, hang, crash and lie; device numbers and
//! the kernel's files in folders that look like hosts. What is not understood, or not answered, is never a free GPU.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use portreeve::{
    host::Host,
    ident::Pid,
    observe::gpus::{Reader, Sources, Way},
    snapshot::{GpuHolding, GpuMemory, GpuSource, GpuTrouble, GpuUse, GpuVendor, Gpus, Seen},
};
use support::{
    DEADLINE,
    gpus::{STATE, Stub},
    skip, wait_until,
};

const MIB: u64 = 1 << 20;
const ONE: &str = "gpu GPU-2C1E4A5B-0000-1111-2222-0123456789AB 00000000:3B:00.0 NVIDIA Stub, 9\nmemory 1000 400\n";
const TIMEOUT: Duration = Duration::from_millis(1500);

/// A `portreeve` that finds the state of its stand-in: a reader passes its environment on, and tests share theirs.
fn portreeve(stub: &Stub, folder: &Path) -> PathBuf {
    let path = folder.join("portreeve");
    let (bin, state) = (env!("CARGO_BIN_EXE_portreeve"), stub.state_file());
    let script = format!("#!/bin/sh\n{STATE}='{}' exec '{bin}' \"$@\"\n", state.display());
    fs::write(&path, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&path, mode).unwrap();
    path
}

/// A stand-in for the library, and a reader that asks it and nobody else.
struct Asked {
    stub: Stub,
    folder: tempfile::TempDir,
    reader: Reader,
}

impl Asked {
    fn of(stub: Stub) -> Self {
        Self::or_else(stub, Way::Off)
    }

    fn or_else(stub: Stub, nvidia_smi: Way) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources { nvml: Way::At(stub.library()), nvidia_smi, timeout: TIMEOUT };
        let reader = Reader::with_program(sources, portreeve(&stub, folder.path()));
        Self { stub, folder, reader }
    }

    fn says(state: &str) -> Self {
        let asked = Self::of(Stub::new());
        asked.stub.state(state);
        asked
    }

    fn look(&mut self) -> Gpus {
        self.reader.look(&Host::live())
    }

    /// The one trouble of a look that comes to no GPU.
    fn trouble(&mut self) -> GpuTrouble {
        let gpus = self.look();
        assert!(gpus.all.is_empty(), "{gpus:?}");
        assert_eq!(gpus.trouble.len(), 1, "{gpus:?}");
        assert_eq!(gpus.trouble[0].source, GpuSource::Nvml);
        gpus.trouble[0].clone()
    }
}

/// Whether pids from the driver mean anything here.
fn is_first_pid_namespace() -> bool {
    let is_first = portreeve::observe::sight(&Host::live()).is_first_pid_namespace;
    if !is_first {
        skip("this is not the first pid namespace, where NVIDIA's driver names processes");
    }
    is_first
}

/// A process to be listed.
struct Planted(Child);

impl Planted {
    fn new() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid(self.0.id())
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn memory(total: u64, free: u64) -> Seen<Option<GpuMemory>> {
    Seen::Known(Some(GpuMemory { total_bytes: total * MIB, free_bytes: free * MIB }))
}

fn held(pid: Pid, kind: GpuUse, mib: Option<u64>) -> GpuHolding {
    GpuHolding { pid, kind, memory_bytes: mib.map(|mib| mib * MIB) }
}

// ---- NVIDIA's library

#[test]
fn nvml_tells_gpus_their_memory_and_who_holds_them_and_how() {
    if !is_first_pid_namespace() {
        return;
    }
    let (a, b, c) = (Planted::new(), Planted::new(), Planted::new());
    let mut asked = Asked::says(&format!(
        "{ONE}compute {} 100\nmps {}\ncompute {} 7\ngraphics {} 5\n",
        a.pid(),
        b.pid(),
        b.pid(),
        c.pid()
    ));
    let gpus = asked.look();
    assert_eq!(gpus.trouble, []);
    let gpu = &gpus.all[0];
    assert_eq!((gpu.vendor, gpu.index, gpu.source), (GpuVendor::Nvidia, 0, GpuSource::Nvml));
    assert_eq!(gpu.uuid.as_deref(), Some("GPU-2c1e4a5b-0000-1111-2222-0123456789ab"));
    assert_eq!(gpu.bus.as_deref(), Some("0000:3b:00.0"));
    assert_eq!(
        (gpu.name.as_str(), gpu.is_split, gpu.is_integrated),
        ("NVIDIA Stub, 9", false, false)
    );
    assert_eq!(gpu.memory, memory(1000, 400));
    assert_eq!(
        gpu.holdings,
        [
            held(b.pid(), GpuUse::Mps, None),
            held(a.pid(), GpuUse::Compute, Some(100)),
            held(c.pid(), GpuUse::Graphics, Some(5)),
        ]
    );
    assert_eq!(gpu.may_miss, None);
}

#[test]
fn memory_that_comes_back_after_the_exit_is_seen_look_by_look_by_one_process() {
    if !is_first_pid_namespace() {
        return;
    }
    let mut planted = Planted::new();
    let mut asked = Asked::says(&format!("{ONE}compute {} 600\nreturns 300\n", planted.pid()));
    assert_eq!(asked.look().all[0].holdings.len(), 1);
    planted.end();
    let gone = asked.look().all.remove(0);
    assert_eq!((gone.holdings, gone.memory), (Vec::new(), memory(1000, 400)));
    wait_until(DEADLINE, "its memory is back", || asked.look().all[0].memory == memory(1000, 1000));
    asked.stub.state(&format!("{ONE}settle 3 900\n"));
    let free = [(); 4].map(|()| asked.look().all.remove(0).memory);
    assert_eq!(free, [400, 400, 900, 900].map(|free| memory(1000, free)));
}

#[test]
fn the_parts_of_a_split_gpu_have_its_processes_and_its_memory() {
    if !is_first_pid_namespace() {
        return;
    }
    let planted = Planted::new();
    let part = "part MIG-2c1e4a5b-0000-1111-2222-0123456789";
    let mut asked = Asked::says(&format!(
        "{ONE}{part}aa NVIDIA Stub MIG 1g.5gb\nmemory 500 100\ncompute {}\n{part}ab Other\nmemory 500 500\n\
         gpu GPU-2c1e4a5b-0000-1111-2222-0123456789ac 0000:3c:00.0 Whole\nmemory 3\n",
        planted.pid()
    ));
    let gpus = asked.look().all;
    let shown: Vec<_> = gpus.iter().map(|gpu| (gpu.index, gpu.part, gpu.is_split)).collect();
    assert_eq!(
        shown,
        [(0, None, true), (0, Some(0), false), (0, Some(1), false), (1, None, false)]
    );
    assert_eq!(gpus[0].holdings, [], "what NVML lists there as well belongs to the part");
    assert_eq!(gpus[1].holdings, [held(planted.pid(), GpuUse::Compute, None)]);
    assert_eq!(gpus[1].uuid.as_deref(), Some("MIG-2c1e4a5b-0000-1111-2222-0123456789aa"));
    assert_eq!((&gpus[1].memory, &gpus[1].bus), (&memory(500, 100), &gpus[0].bus));
    assert_eq!(gpus[3].memory, Seen::Known(None), "memory that is shared with the processor");
}

#[test]
fn what_nvml_cannot_tell_of_a_gpu_is_unknown() {
    let mut asked = Asked::says(&format!(
        "{ONE}memory 15\nfails compute 999\n\
         gpu GPU-2c1e4a5b-0000-1111-2222-0123456789ac 0000:3c:00.0 Lost\nlost 15\n\
         gpu GPU-2c1e4a5b-0000-1111-2222-0123456789ad 0000:3d:00.0 Secret\nmemory 10 10\nfails compute 4\n\
         gpu GPU-2c1e4a5b-0000-1111-2222-0123456789ae 0000:3e:00.0 Mig\nmemory 10 10\nfails mig 999\n\
         gpu GPU-2c1e4a5b-0000-1111-2222-0123456789af 0000:3f:00.0 Old\nmemory 10 10\nfails mps 3\n"
    ));
    let gpus = asked.look().all;
    assert_eq!(gpus.len(), 5, "a GPU that is lost is there all the same");
    for lost in &gpus[..2] {
        assert!(matches!(&lost.memory, Seen::Unreadable(why) if why.contains("fell off the bus")));
    }
    if is_first_pid_namespace() {
        for gpu in &gpus[..4] {
            assert!(gpu.may_miss.as_ref().is_some_and(|why| why.contains("NVML")), "{gpu:?}");
        }
        assert_eq!(gpus[4].may_miss, None, "where there is no MPS, nobody uses it");
    }
}

#[test]
fn a_library_of_another_version_is_a_trouble_with_its_remedy() {
    let mut asked = Asked::says("init 18\n");
    let trouble = asked.trouble();
    assert_eq!(trouble.why, "is of another version than the loaded kernel module");
    assert!(trouble.remedy.unwrap().starts_with("the driver was updated under the running kernel"));
}

#[test]
fn a_missing_library_is_a_trouble_where_it_was_named_and_nothing_where_there_is_no_gpu() {
    let sources = |nvml| Sources { nvml, nvidia_smi: Way::Auto, timeout: TIMEOUT };
    let missing = sources(Way::At("/nowhere/libnvidia-ml.so.1".into()));
    let mut reader = Reader::with_program(missing, env!("CARGO_BIN_EXE_portreeve"));
    let trouble = reader.look(&Host::live()).trouble;
    assert!(
        trouble[0].why.starts_with("cannot be loaded: /nowhere/libnvidia-ml.so.1"),
        "{trouble:?}"
    );
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("sys/class")).unwrap();
    let mut reader = Reader::with_program(sources(Way::Auto), "/nowhere/portreeve");
    assert_eq!(reader.look(&Host::fixture(folder.path())), Gpus::default());
}

#[test]
fn a_driver_before_510_is_asked_in_its_own_way_and_a_library_without_lists_is_a_trouble() {
    if !is_first_pid_namespace() {
        return;
    }
    let planted = Planted::new();
    let mut old = Asked::of(Stub::without(&["V2", "MIG"]));
    old.stub.state(&format!("{ONE}compute {} 100\n", planted.pid()));
    let gpu = old.look().all.remove(0);
    assert_eq!(gpu.memory, memory(1000, 400));
    assert_eq!(gpu.holdings, [held(planted.pid(), GpuUse::Compute, Some(100))]);
    assert_eq!(gpu.may_miss, None);
    let mut useless = Asked::of(Stub::without(&["LISTS"]));
    useless.stub.state(ONE);
    let why = useless.trouble().why;
    assert!(why.contains("undefined symbol: nvmlDeviceGetComputeRunningProcesses"), "{why}");
}

#[test]
fn a_library_that_hangs_is_ended_at_the_deadline_and_not_asked_again_at_once() {
    for call in ["init", "memory", "processes"] {
        let mut asked = Asked::says(&format!("hang {call}\n{ONE}compute 1\n"));
        let start = Instant::now();
        assert_eq!(asked.trouble().why, format!("did not answer within {TIMEOUT:?}"));
        assert!(start.elapsed() < TIMEOUT + Duration::from_secs(1), "{:?}", start.elapsed());
        let again = Instant::now();
        asked.trouble();
        assert!(again.elapsed() < Duration::from_millis(500), "{:?}", again.elapsed());
        assert_eq!(readers_of(&asked.stub), [0; 0]);
    }
}

#[test]
fn a_library_that_crashes_takes_nothing_with_it() {
    for call in ["init", "processes"] {
        let mut asked = Asked::says(&format!("crash {call}\n{ONE}"));
        assert_eq!(asked.trouble().why, "crashed (signal 11)");
    }
}

#[test]
fn the_process_that_asks_ends_with_its_reader_and_with_its_parent() {
    let mut asked = Asked::says(ONE);
    asked.look();
    assert_eq!(readers_of(&asked.stub).len(), 1);
    asked.look();
    assert_eq!(readers_of(&asked.stub).len(), 1, "it is kept between looks");
    let Asked { stub, reader, folder } = asked;
    drop(reader);
    assert_eq!(readers_of(&stub), [0; 0]);

    // A parent that is killed while the library hangs.
    stub.state("hang init\n");
    let program = portreeve(&stub, folder.path());
    let script = format!(
        "cd '{}'; mkfifo questions; exec 3<>questions; echo look >&3\n\
         '{}' nvml-reader --library '{}' <questions >answers & wait",
        folder.path().display(),
        program.display(),
        stub.library().display()
    );
    let _guard = NoReaders(&stub);
    let mut parent = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    wait_until(DEADLINE, "the library is asked", || readers_of(&stub).len() == 1);
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until(DEADLINE, "it ended with its parent", || readers_of(&stub).is_empty());
}

/// Ends what a failed test would leave behind.
struct NoReaders<'s>(&'s Stub);

impl Drop for NoReaders<'_> {
    fn drop(&mut self) {
        for pid in readers_of(self.0) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

/// The processes that have this stand-in loaded, or are about to.
fn readers_of(stub: &Stub) -> Vec<u32> {
    let library = stub.library();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|&b| b == 0).collect();
        words.contains(&b"nvml-reader".as_slice())
            && words.contains(&library.to_str().unwrap().as_bytes())
    })
    .collect()
}
