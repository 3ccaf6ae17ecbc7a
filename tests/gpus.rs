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
    os::unix::fs::{OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use portreeve::{
    host::Host,
    ident::Pid,
    observe::gpus::{Reader, Sources, Way},
    snapshot::{Gpu, GpuHolding, GpuMemory, GpuSource, GpuTrouble, GpuUse, GpuVendor, Gpus, Seen},
};
use support::{
    DEADLINE,
    gpus::{STATE, Stub, nvidia_smi},
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

#[test]
fn the_process_that_asks_takes_no_other_question_and_needs_no_library_for_the_drivers_own_files() {
    let ask = |question: &str| {
        let script = format!("echo {question} | '{}' nvml-reader", env!("CARGO_BIN_EXE_portreeve"));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, answer) = ask("information");
    assert_eq!(code, Some(0));
    assert!(answer.starts_with("{\"Information\":"), "{answer}");
    assert_eq!(ask("reset"), (Some(2), String::new()));
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

#[test]
fn doctor_says_who_answers_about_gpus_and_what_would_mend_who_does_not() {
    let stub = Stub::new();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    let text =
        format!("gpus: {{ nvml: '{}', nvidia_smi: off, timeout: 1s }}\n", stub.library().display());
    fs::write(&config, text).unwrap();
    let checks = |state: &str| {
        stub.state(state);
        let output = Command::new(env!("CARGO_BIN_EXE_portreeve"))
            .args(["doctor", "--format", "json", "--config", config.to_str().unwrap()])
            .env(STATE, stub.state_file())
            .output()
            .unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = json["checks"].as_array().unwrap().clone();
        move |name: &str, field: &str| -> String {
            let check =
                checks.iter().find(|check| check["name"] == name && check["area"] == "gpus");
            check
                .map(|check| check[field].as_str().unwrap_or_default().to_owned())
                .unwrap_or_default()
        }
    };
    let good = checks(ONE);
    assert_eq!([good("NVML", "state"), good("NVML", "detail")], ["good", "answers: 1 GPU"]);
    if is_first_pid_namespace() {
        assert_eq!(good("GPU 0", "state"), "good");
        assert!(
            good("GPU 0", "detail").contains("400 of 1000 MiB free"),
            "{}",
            good("GPU 0", "detail")
        );
    }
    let old = checks("init 18\n");
    assert_eq!(old("NVML", "state"), "off");
    assert!(old("NVML", "fix").contains("reboot"), "{}", old("NVML", "fix"));
    let hung = checks("hang init\n");
    assert_eq!(hung("NVML", "state"), "unknown");
    assert_eq!(hung("NVML", "detail"), "NVML did not answer within 1s");
}

// ---- nvidia-smi

const UUID: &str = "GPU-2c1e4a5b-0000-1111-2222-0123456789ab";

/// What a reader sees through a script in the place of `nvidia-smi`, which answers the question for GPUs with the first text and
/// the question for processes with the second; both are shell.
fn through_smi(gpus: &str, processes: &str) -> Gpus {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("case $1 in --query-gpu=*)\n{gpus}\n;; *)\n{processes}\n;; esac");
    let program = nvidia_smi(folder.path(), &script);
    let sources = Sources { nvml: Way::Off, nvidia_smi: Way::At(program), timeout: TIMEOUT };
    Reader::new(sources).look(&Host::live())
}

fn echo(line: &str) -> String {
    format!("echo '{line}'")
}

fn of_smi(memory: &str, name: &str) -> String {
    echo(&format!("0, {UUID}, 00000000:3B:00.0, {memory}, [N/A], {name}"))
}

#[test]
fn nvidia_smi_is_asked_where_the_library_gives_no_answer() {
    if !is_first_pid_namespace() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let answer = of_smi("1000, 400", "NVIDIA Stub, 9");
    let processes = echo(&format!("{UUID}, 4242, 100\n{UUID}, 4243, [N/A]"));
    let script = format!(
        "case $1 in --query-gpu=*) {answer};; *) {};; esac",
        processes.replace("echo", "printf '%b\\n'")
    );
    let program = nvidia_smi(folder.path(), &script);
    let mut asked = Asked::or_else(Stub::new(), Way::At(program));
    asked.stub.state("init 9\n");
    let gpus = asked.look();
    assert_eq!(gpus.trouble.len(), 1);
    assert_eq!(gpus.trouble[0].remedy.as_deref(), Some("load the driver: modprobe nvidia"));
    let gpu = &gpus.all[0];
    assert_eq!((gpu.source, gpu.name.as_str()), (GpuSource::NvidiaSmi, "NVIDIA Stub, 9"));
    assert_eq!(gpu.bus.as_deref(), Some("0000:3b:00.0"));
    assert_eq!(gpu.memory, memory(1000, 400));
    let holdings =
        [held(Pid(4242), GpuUse::Compute, Some(100)), held(Pid(4243), GpuUse::Compute, None)];
    assert_eq!((&gpu.holdings[..], &gpu.may_miss), (&holdings[..], &None));
}

#[test]
fn what_nvidia_smi_says_of_gpus_and_is_not_understood_is_a_trouble_and_no_gpu() {
    for (said, why) in [
        ("sleep 600", "did not answer within"),
        (
            "echo 'index, uuid, pci.bus_id, memory.total [MiB], memory.free [MiB], mig, name'",
            "not understood",
        ),
        ("echo No devices were found; exit 6", "failed with 6: No devices were found"),
        ("echo No devices were found", "not understood"),
        ("true", "tells of no GPU"),
        ("kill -9 $$", "failed by a signal"),
        (&of_smi("1000 MiB, 400 MiB", "x"), "not understood"),
        (&of_smi("1000", "x"), "not understood"),
        (&of_smi("ERR!, 400", "x"), "not understood"),
        ("echo '0, GPU-1, 3B, 1, 1, Enabled, x'", "not understood"),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch' >&2; exit 18",
            "failed with 18: Failed to",
        ),
        ("exec yes", "says more than"),
    ] {
        let gpus = through_smi(said, "true");
        assert_eq!((gpus.all.len(), gpus.trouble.len()), (0, 1), "{said}: {gpus:?}");
        assert!(gpus.trouble[0].why.contains(why), "{said}: {gpus:?}");
    }
}

#[test]
fn what_nvidia_smi_says_of_processes_and_is_not_understood_leaves_the_holders_unknown() {
    let gpu = of_smi("1000, 1000", "x");
    let process = |line: &str| echo(&format!("{UUID}, 4242, 1\n{line}"));
    for said in [
        "sleep 600",
        "exit 3",
        "echo 'gpu_uuid, pid, used_gpu_memory [MiB]'",
        "echo '[Not Supported], [Not Supported], [Not Supported]'",
        &process(&format!("{UUID}, 0, 1")),
        &process(&format!("{UUID}, 4242")),
        &process(&format!("{UUID}, 4242, 1 MiB")),
        &process("GPU-2c1e4a5b-0000-1111-2222-0123456789ff, 4242, 1"),
    ] {
        let gpus = through_smi(&gpu, said);
        assert_eq!((gpus.all.len(), gpus.trouble.len()), (1, 1), "{said}: {gpus:?}");
        assert!(
            gpus.all[0].holdings.is_empty() && gpus.all[0].may_miss.is_some(),
            "{said}: {gpus:?}"
        );
    }
}

#[test]
fn a_figure_that_nvidia_smi_does_not_give_is_no_free_memory() {
    let seen = |text: &str| through_smi(&of_smi(text, "x"), "true").all.remove(0).memory;
    assert_eq!(seen("[N/A], [N/A]"), Seen::Known(None));
    assert_eq!(seen("[Not Supported], [Not Supported]"), Seen::Known(None));
    assert!(matches!(seen("1000, [N/A]"), Seen::Unreadable(_)));
    assert!(matches!(
        seen("[Insufficient Permissions], [Insufficient Permissions]"),
        Seen::Unreadable(_)
    ));
    let split = echo(&format!("0, {UUID}, 0000:3b:00.0, 1, 1, Enabled, x"));
    let gpu = through_smi(&split, "true").all.remove(0);
    assert!(gpu.is_split && gpu.may_miss.is_some(), "its parts are not told");
}

// ---- the kernel's files, in folders that look like hosts

/// A host in a folder, seen from the first pid namespace.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(folder.path("proc/self/ns")).unwrap();
        symlink("pid:[4026531836]", folder.path("proc/self/ns/pid")).unwrap();
        fs::create_dir_all(folder.path("sys/class/drm")).unwrap();
        folder
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn link(&self, path: &str, to: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
        self
    }

    fn gpus(&self) -> Gpus {
        let sources = Sources { nvml: Way::Auto, nvidia_smi: Way::Auto, timeout: TIMEOUT };
        Reader::with_program(sources, "/nowhere/portreeve").look(&Host::fixture(self.0.path()))
    }

    fn render_node(&self, number: u32, vendor: &str, driver: &str, bus: &str) -> &Self {
        let uevent = format!("DRIVER={driver}\nPCI_SLOT_NAME={bus}\n");
        for node in [format!("renderD{}", number + 128), format!("card{number}")] {
            let device = format!("sys/class/drm/{node}/device");
            self.write(&format!("{device}/vendor"), vendor)
                .write(&format!("{device}/uevent"), &uevent);
        }
        self
    }

    fn amd(&self, number: u32, bus: &str, total: u64, used: u64) -> &Self {
        let device = format!("sys/class/drm/renderD{}/device", number + 128);
        self.render_node(number, "0x1002\n", "amdgpu", bus)
            .write(&format!("{device}/mem_info_vram_total"), &format!("{total}\n"))
            .write(&format!("{device}/mem_info_vram_used"), &format!("{used}\n"))
    }

    fn open(&self, pid: u32, fd: u32, device: &str, info: &str) -> &Self {
        self.link(&format!("proc/{pid}/fd/{fd}"), device)
            .write(&format!("proc/{pid}/fdinfo/{fd}"), &format!("pos:\t0\nflags:\t02\n{info}"))
    }
}

fn client(bus: &str, id: u32, rest: &str) -> String {
    format!("drm-driver:\tx\ndrm-pdev:\t{bus}\ndrm-client-id:\t{id}\n{rest}\n")
}

/// Two cards in the driver's list, a node of each device, and `nvidia-uvm`; none where nodes cannot be made here.
fn nvidia() -> Option<Folder> {
    let folder = Folder::new();
    for (minor, bus) in [(0, "0000:3b:00.0"), (1, "0000:3c:00.0")] {
        let text = format!(
            "Model: \t\t NVIDIA H200\nIRQ:   \t\t 1\nGPU UUID: \t {UUID}\nBus Location: \t {bus}\nDevice Minor: \t {minor}\n"
        );
        folder.write(&format!("proc/driver/nvidia/gpus/{bus}/information"), &text);
    }
    folder.write(
        "proc/devices",
        "Character devices:\n  1 mem\n195 nvidia\n510 nvidia-uvm\n\nBlock devices:\n  7 loop\n",
    );
    fs::create_dir(folder.path("dev")).unwrap();
    for (name, major, minor) in [
        ("nvidia0", 195, 0),
        ("nvidia1", 195, 1),
        ("nvidiactl", 195, 255),
        ("nvidia-uvm", 510, 0),
        ("nvidia7", 1, 3),
    ] {
        let file = folder.path("dev").join(name);
        let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::RUSR);
        let device = rustix::fs::makedev(major, minor);
        if let Err(error) = rustix::fs::mknodat(rustix::fs::CWD, &file, kind, mode, device) {
            skip(&format!("device nodes cannot be made here: {error}"));
            return None;
        }
    }
    Some(folder)
}

#[test]
fn without_any_library_who_has_a_card_and_uvm_open_computes_there_and_nobody_knows_how_much() {
    let Some(folder) = nvidia() else { return };
    let dev = |name: &str| folder.path("dev").join(name).to_str().unwrap().to_owned();
    let open = |pid, fd, name: &str| {
        folder.open(pid, fd, &dev(name), "");
    };
    open(10, 3, "nvidiactl");
    open(10, 4, "nvidia-uvm");
    open(10, 5, "nvidia1");
    // A monitor, a display, and a file that only has the name.
    open(11, 3, "nvidia0");
    open(11, 4, "nvidiactl");
    open(12, 4, "nvidia-uvm");
    open(12, 5, "nvidia7");
    let gpus = folder.gpus();
    assert_eq!((gpus.trouble.len(), &gpus.may_miss), (0, &None), "{gpus:?}");
    let [first, second] = &gpus.all[..] else { panic!("{gpus:?}") };
    assert_eq!((first.index, &first.holdings[..], &first.may_miss), (0, &[][..], &None));
    assert_eq!((second.index, second.bus.as_deref()), (1, Some("0000:3c:00.0")));
    assert_eq!((second.uuid.as_deref(), second.name.as_str()), (Some(UUID), "NVIDIA H200"));
    assert_eq!(second.holdings, [held(Pid(10), GpuUse::Compute, None)]);
    assert_eq!(second.source, GpuSource::Devices);
    assert!(matches!(second.memory, Seen::Unreadable(_)));
}

#[test]
fn device_numbers_are_read_through_the_descriptors_of_a_real_process() {
    let Some(folder) = nvidia() else { return };
    let open = |name: &str| {
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags(libc::O_PATH).open(folder.path("dev").join(name)).unwrap()
    };
    let files = ["nvidia0", "nvidia-uvm"].map(open);
    // The nodes that it has open are in no folder any more, as those of another mount namespace are in none of ours.
    fs::remove_dir_all(folder.path("dev")).unwrap();
    let own = std::process::id();
    symlink(format!("/proc/{own}"), folder.path(&format!("proc/{own}"))).unwrap();
    let gpus = folder.gpus().all;
    assert_eq!(gpus[0].holdings, [held(Pid(own), GpuUse::Compute, None)]);
    assert_eq!(gpus[1].holdings, []);
    drop(files);
}

#[test]
fn a_process_whose_files_are_refused_may_hold_what_is_seen_by_open_files_alone() {
    let Some(folder) = nvidia() else { return };
    folder.write("proc/10/fd", "no folder, so that it cannot be listed");
    for gpu in folder.gpus().all {
        assert_eq!(
            gpu.may_miss.as_deref(),
            Some("the open files of 1 processes could not be read")
        );
    }
    let unlisted = Folder::new();
    unlisted
        .write("proc/driver/nvidia/gpus/0000:3b:00.0/information", "Model: x\nDevice Minor: 0\n");
    assert!(unlisted.gpus().all[0].may_miss.is_some(), "no '/proc/devices'");
}

#[test]
fn a_gpu_without_a_driver_and_hidden_folders_are_said() {
    let folder = Folder::new();
    let device = "sys/bus/pci/devices/0000:3b:00.0";
    folder
        .write(&format!("{device}/vendor"), "0x10de\n")
        .write(&format!("{device}/class"), "0x030200\n");
    let undriven = folder.gpus();
    assert!(undriven.all.is_empty());
    assert!(undriven.may_miss.is_some_and(|why| why.contains("0000:3b:00.0")), "'all' is not none");
    // No other GPU is meant by its number.
    let beside = amd();
    beside
        .write(&format!("{device}/vendor"), "0x10de\n")
        .write(&format!("{device}/class"), "0x030200\n");
    assert_eq!((beside.gpus().all[0].index, amd().gpus().all[0].index), (1, 0));
    folder.link(&format!("{device}/driver"), "../../../bus/pci/drivers/vfio-pci");
    assert_eq!(folder.gpus(), Gpus::default(), "a virtual machine has it");
    fs::remove_file(folder.path(&format!("{device}/driver"))).unwrap();
    folder.link(&format!("{device}/driver"), "../../../bus/pci/drivers/nvidia");
    let gpus = folder.gpus().all;
    assert_eq!(gpus[0].bus.as_deref(), Some("0000:3b:00.0"));
    assert!(gpus[0].may_miss.is_some(), "no list of the driver's says which device it is");
    let bare = tempfile::tempdir().unwrap();
    let sources = Sources { nvml: Way::Off, nvidia_smi: Way::Off, timeout: TIMEOUT };
    let gpus = Reader::new(sources).look(&Host::fixture(bare.path()));
    assert!(gpus.may_miss.is_some(), "{gpus:?}");
}

#[test]
fn a_gpu_that_the_kernel_drives_and_the_library_does_not_show_is_said() {
    let folder = Folder::new();
    for bus in ["0000:3b:00.0", "0000:3c:00.0"] {
        fs::create_dir_all(folder.path(&format!("proc/driver/nvidia/gpus/{bus}"))).unwrap();
    }
    let mut asked = Asked::says(ONE);
    let gpus = asked.reader.look(&Host::fixture(folder.0.path()));
    assert_eq!(gpus.all.len(), 1);
    let why = gpus.may_miss.unwrap();
    assert!(why.contains("0000:3c:00.0") && !why.contains("0000:3b:00.0"), "{why}");
}

const CARD: &str = "0000:03:00.0";

/// A card of AMD's with 16 GiB, 4 of them in use, and its compute driver.
fn amd() -> Folder {
    let folder = Folder::new();
    folder
        .amd(0, CARD, 16 << 30, 4 << 30)
        .write("sys/class/kfd/kfd/topology/nodes/0/gpu_id", "0\n")
        .write("sys/class/kfd/kfd/topology/nodes/0/properties", "cpu_cores_count 16\n")
        .write("sys/class/kfd/kfd/topology/nodes/1/gpu_id", "38924\n")
        .write(
            "sys/class/kfd/kfd/topology/nodes/1/properties",
            "vendor_id 4098\nlocation_id 768\ndomain 0\n",
        );
    fs::create_dir_all(folder.path("sys/class/kfd/kfd/proc")).unwrap();
    folder
}

fn only(gpus: Gpus) -> Gpu {
    assert_eq!((gpus.all.len(), gpus.trouble.len(), &gpus.may_miss), (1, 0, &None), "{gpus:?}");
    gpus.all.into_iter().next().unwrap()
}

#[test]
fn amds_compute_driver_tells_who_has_how_much_and_who_only_has_it_open() {
    let folder = amd();
    let kfd = "sys/class/kfd/kfd/proc";
    folder
        .write(&format!("{kfd}/10/vram_38924"), &format!("{}\n", 3 * MIB))
        .write(&format!("{kfd}/11/vram_38924"), "0\n")
        .write(&format!("{kfd}/12/vram_38924"), "0\n")
        .write(&format!("{kfd}/12/queues/1/gpuid"), "38924\n")
        .write(&format!("{kfd}/13/vram_1"), "5\n");
    // The same process as a client of the render node is not held to hold twice.
    folder.open(10, 4, "/dev/dri/renderD128", &client(CARD, 7, "drm-resident-vram:\t3072 KiB"));
    let gpu = only(folder.gpus());
    assert_eq!(
        (gpu.vendor, gpu.bus.as_deref(), gpu.source),
        (GpuVendor::Amd, Some(CARD), GpuSource::Kernel)
    );
    assert_eq!((gpu.memory, gpu.is_integrated), (memory(16 << 10, 12 << 10), false));
    assert_eq!(
        gpu.holdings,
        [held(Pid(10), GpuUse::Compute, Some(3)), held(Pid(12), GpuUse::Compute, Some(0))]
    );
    assert_eq!(gpu.may_miss, None);
}

#[test]
fn a_drm_client_with_memory_holds_the_gpu_and_one_that_only_has_it_open_does_not() {
    let folder = amd();
    let memory = |id, text: &str| client(CARD, id, text);
    folder
        .open(20, 3, "/dev/dri/renderD128", &memory(1, "drm-resident-vram:\t2 MiB"))
        // The same client by another descriptor, and another client.
        .open(20, 4, "/dev/dri/renderD128", &memory(1, "drm-resident-vram:\t2 MiB"))
        .open(20, 5, "/dev/dri/renderD128", &memory(2, "drm-memory-vram:\t1024 KiB"))
        .open(21, 3, "/dev/dri/card0", &memory(3, "drm-total-vram:\t1 MiB"))
        .open(
            22,
            3,
            "/dev/dri/renderD128",
            &memory(4, "drm-resident-vram:\t0\ndrm-engine-gfx:\t9 ns"),
        )
        .open(23, 3, "/dev/dri/renderD128", &client("0000:04:00.0", 5, "drm-resident-vram:\t2 MiB"))
        .open(24, 3, "/home/dri/notes", "");
    let gpu = only(folder.gpus());
    assert_eq!(
        gpu.holdings,
        [held(Pid(20), GpuUse::Compute, Some(3)), held(Pid(21), GpuUse::Graphics, Some(1))]
    );
    assert_eq!(gpu.may_miss, None);
}

#[test]
fn a_kernel_that_does_not_tell_what_clients_do_leaves_more_holders_possible() {
    let folder = amd();
    folder.open(20, 3, "/dev/dri/renderD128", "");
    let gpu = only(folder.gpus());
    assert_eq!(gpu.holdings, []);
    assert!(gpu.may_miss.unwrap().contains("does not tell"));
}

#[test]
fn pids_of_amds_compute_driver_mean_nothing_in_another_pid_namespace() {
    let folder = amd();
    folder.write("sys/class/kfd/kfd/proc/10/vram_38924", "9\n");
    fs::remove_file(folder.path("proc/self/ns/pid")).unwrap();
    folder.link("proc/self/ns/pid", "pid:[4026532000]");
    let gpu = only(folder.gpus());
    assert_eq!(gpu.holdings, []);
    assert!(gpu.may_miss.unwrap().contains("pid namespace of its own"));
}

#[test]
fn integrated_graphics_are_told_apart_and_gpus_are_counted_vendor_by_vendor_and_by_bus() {
    let folder = Folder::new();
    folder
        .render_node(0, "0x8086\n", "i915", "0000:00:02.0")
        .render_node(1, "0x8086\n", "xe", "0000:03:00.0")
        .amd(2, "0000:0b:00.0", 512 << 20, 1)
        .amd(3, "0000:0a:00.0", 8 << 30, 0)
        .render_node(4, "0x10de\n", "nouveau", "0000:0c:00.0")
        .write("sys/class/drm/card0-HDMI-A-1/status", "connected\n")
        .write("sys/class/drm/version", "drm 1.1.0\n")
        .open(
            30,
            3,
            "/dev/dri/renderD129",
            &client("0000:03:00.0", 1, "drm-resident-vram0:\t5 MiB"),
        )
        // i915 before it told memory.
        .open(31, 3, "/dev/dri/renderD128", &client("0000:00:02.0", 2, "drm-engine-render:\t7 ns"))
        .open(32, 3, "/dev/dri/renderD128", &client("0000:00:02.0", 3, "drm-engine-render:\t0 ns"));
    let gpus = folder.gpus().all;
    let shown: Vec<_> = gpus
        .iter()
        .map(|g| (g.index, g.vendor, g.bus.as_deref().unwrap(), g.is_integrated))
        .collect();
    assert_eq!(
        shown,
        [
            (0, GpuVendor::Amd, "0000:0a:00.0", false),
            (1, GpuVendor::Amd, "0000:0b:00.0", true),
            (2, GpuVendor::Intel, "0000:00:02.0", true),
            (3, GpuVendor::Intel, "0000:03:00.0", false),
        ]
    );
    assert_eq!(gpus[1].memory, Seen::Known(None));
    assert_eq!(gpus[2].memory, Seen::Known(None));
    assert_eq!(gpus[2].holdings, [held(Pid(31), GpuUse::Compute, None)]);
    assert!(matches!(&gpus[3].memory, Seen::Unreadable(why) if why.contains("'xe'")));
    assert_eq!(gpus[3].holdings, [held(Pid(30), GpuUse::Compute, Some(5))]);
}
