//! A `/proc` that errs at the nth read, over the fixture hosts: for every n and every fault.

use std::{collections::BTreeSet, fs, path::Path};

use portreeve::{
    config::settings::Settings,
    host::Host,
    ident::{Manager, Pid, ProcessKey, UnitRef},
    judge::{Also, gpu::GpuState, port::PortState},
    pipeline::{self, Findings, Receipts, Scope},
    snapshot::{Owner, Receipt, Seen},
};

use super::door::{self, Door, Fault, Plan};
use super::is_long;
use super::support::{
    fixtures::{hosts, settings},
    skip,
};

/// What the kernel may say of a file, and what no kernel says but a bad day might.
const FAULTS: [(&str, Fault); 11] = [
    ("EACCES", Fault::Errno(libc::EACCES)),
    ("EIO", Fault::Errno(libc::EIO)),
    ("ENOENT", Fault::Errno(libc::ENOENT)),
    ("EINTR", Fault::Errno(libc::EINTR)),
    ("short", Fault::Short),
    ("cut", Fault::Cut(7)),
    ("cut later", Fault::Cut(40)),
    ("ESRCH", Fault::Errno(libc::ESRCH)),
    ("ENOMEM", Fault::Errno(libc::ENOMEM)),
    ("EMFILE", Fault::Errno(libc::EMFILE)),
    ("EAGAIN", Fault::Errno(libc::EAGAIN)),
];

/// What matters of a scan: who would be ended without a word, who by any flag, and which ports and GPUs are not free.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    orphans: BTreeSet<Pid>,
    ended_by_some_flag: BTreeSet<Pid>,
    not_free: BTreeSet<String>,
    /// Ports of which it is said that all was read and nobody has them.
    nobodys: BTreeSet<String>,
}

fn said(findings: &Findings) -> Said {
    let convicted = findings.verdicts.iter().filter(|v| v.is_convicted);
    let of = |is: fn(&str) -> bool| {
        convicted.clone().filter(|v| is(&v.title())).map(|v| v.key().pid).collect()
    };
    let ports = findings.ports.iter().filter(|p| is_taken(&p.state));
    let nobodys = findings.ports.iter().filter(|p| p.state == PortState::KernelOwned);
    let gpus = findings.gpus.iter().filter(|gpu| gpu.state != GpuState::Free);
    let not_free = ports.map(|p| p.endpoint.to_string()).chain(gpus.map(|gpu| gpu.label.clone()));
    Said {
        orphans: of(|title| title.starts_with("orphan")),
        ended_by_some_flag: of(|_| true),
        not_free: not_free.collect(),
        nobodys: nobodys.map(|p| p.endpoint.to_string()).collect(),
    }
}

fn is_taken(state: &PortState) -> bool {
    !matches!(state, PortState::Free | PortState::NoListener)
}

struct Case {
    name: String,
    host: Host,
    settings: Settings,
    scope: Scope,
    /// Where it was written for us.
    _folder: Option<tempfile::TempDir>,
}

impl Case {
    fn of(folder: &Path) -> Self {
        Self {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            host: Host::fixture(folder),
            settings: settings(folder),
            scope: Scope::default(),
            _folder: None,
        }
    }

    fn scan(&self) -> Findings {
        let all = Also { abandoned: true, session: true, foreign: true, unsupervised: true };
        pipeline::scan(&self.host, &self.settings, &self.scope, all).unwrap()
    }
}

/// Every fault at every call of one look, each once, and most of them from there on; says what broke the law, and of how many.
fn sweep(case: &Case, door: &Door, faults: &[(&str, Fault)]) -> (usize, Vec<String>) {
    let (plain, told) = door.run(None, || said(&case.scan()));
    let (mut runs, mut broken) = (0, Vec::new());
    // Otherwise each call meets some of the faults.
    let every = if is_long() { 1 } else { 6 };
    for (turn, &(word, fault)) in faults.iter().enumerate() {
        for stays in [false, true] {
            // std asks again after EINTR, as it should: for ever. A file that is read for ever in small pieces has an end.
            if stays && fault == Fault::Errno(libc::EINTR) {
                continue;
            }
            for first in (1..=told.calls).filter(|call| (call + turn).is_multiple_of(every)) {
                let (now, told) =
                    door.run(Some(Plan { fault, first, stays }), || said(&case.scan()));
                runs += 1;
                let is_wrong = is_no_fault(fault, &told.struck) && now != plain;
                if is_wrong || !now.is_gentler_than(&plain, fault) {
                    let often = if stays { "from there on" } else { "once" };
                    let at = told.struck.first().map_or("?", String::as_str);
                    broken.push(format!(
                        "{}: {word} at call {first} ({at}), {often}:\n  {now:?}\n  undisturbed {plain:?}",
                        case.name
                    ));
                }
            }
        }
    }
    (runs, broken)
}

impl Said {
    /// Nobody new is ended, nothing that was not free is, and nothing unseen is called nobody's. What the kernel calls gone is
    /// gone: a card, a family of addresses, a descriptor.
    fn is_gentler_than(&self, plain: &Self, fault: Fault) -> bool {
        let is_gone = matches!(fault, Fault::Errno(libc::ENOENT | libc::ESRCH));
        let is_shorter = is_gone || matches!(fault, Fault::Cut(_));
        let is_kept = |one: &String| {
            let may_go = one.starts_with('[');
            let is_unsaid = one.starts_with("GPU") && self.not_free.contains("GPUs");
            // A listing, or a file of one line, that ends before its time looks like any other.
            let is_shorter = one.starts_with("GPU") && is_shorter;
            self.not_free.contains(one) || is_unsaid || is_shorter || (is_gone && may_go)
        };
        self.orphans.is_subset(&plain.orphans)
            && self.ended_by_some_flag.is_subset(&plain.ended_by_some_flag)
            && plain.not_free.iter().all(is_kept)
            && (is_shorter || self.nobodys.is_subset(&plain.nobodys))
    }
}

/// Whether it has to make no difference: to read less than was asked for, and to be asked to try again (where that may be:
/// open(2), read(2)), is no fault.
fn is_no_fault(fault: Fault, struck: &[String]) -> bool {
    // In one piece, since the kernel gives no other.
    let is_one_piece = |call: &String| call.ends_with("ip_local_reserved_ports");
    match fault {
        Fault::Short => !struck.iter().any(is_one_piece),
        Fault::Errno(libc::EINTR) => struck.iter().all(|call| {
            let call = call.split(' ').next().and_then(|number| number.parse().ok());
            matches!(call, Some(libc::SYS_openat | libc::SYS_read))
        }),
        Fault::Errno(_) | Fault::Cut(_) => false,
    }
}

fn assert_gentler(cases: fn() -> Vec<Case>, faults: &'static [(&str, Fault)]) {
    let swept = door::through(move |door| {
        let mut all = (0, Vec::new());
        for case in cases() {
            let (runs, broken) = sweep(&case, door, faults);
            all.0 += runs;
            all.1.extend(broken);
        }
        all
    });
    match swept {
        Ok((runs, broken)) => {
            println!("{runs} looks");
            assert!(broken.is_empty(), "{} of {runs}:\n{}", broken.len(), broken.join("\n"));
        }
        Err(why) => skip(&why),
    }
}

#[test]
fn a_read_that_fails_on_a_fixture_host_convicts_nobody_and_frees_nothing() {
    let hosts = || {
        let every = if is_long() { 1 } else { 4 };
        hosts().iter().step_by(every).map(|folder| Case::of(folder)).collect()
    };
    assert_gentler(hosts, if is_long() { &FAULTS } else { &FAULTS[..7] });
}

#[test]
fn a_read_that_fails_on_a_full_host_convicts_nobody_and_frees_nothing() {
    assert_gentler(|| vec![full::case()], if is_long() { &FAULTS } else { &FAULTS[..7] });
}

/// A host of everything at once: orphans of three rows beside their living look-alikes, threads with descriptors of their own,
/// a ring, containers, a card of AMD's.
mod full {
    use std::os::unix::fs::symlink;

    use super::{
        BTreeSet, Case, Host, Manager, Owner, Path, Pid, ProcessKey, Receipt, Receipts, Scope,
        Seen, UnitRef, fs, settings,
    };

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const CONFIG: &str = "\
gate: { settle: 0s, timeout: 0s }
services:
  mine: { runs_in: container, ports: [8091, 8092, 9000, 9001], patterns: ['mine\\.py'] }
  other: { ports: [9100/udp, '[::1]:9101'], patterns: ['other\\.py'] }
  cards: { gpus: all }
protect: [{ exe: '/srv/keep/*' }]
";

    struct Folder(std::path::PathBuf);

    impl Folder {
        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn link(&self, path: &str, to: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(to, path).unwrap();
        }

        fn process(&self, pid: u32, parent: u32, line: &str, more: More) {
            let own = pid.to_string();
            let More { terminal, cgroup, pids, exe } = more;
            let pids = pids.unwrap_or(&own);
            let start = pid + 1000;
            let name = line.split(' ').next().unwrap();
            let name = name.rsplit('/').next().unwrap();
            let process = format!("proc/{pid}");
            let rest = "-1 4194304 0 0 0 0 0 0 0 0 20 0 1 0";
            let last = "1000000 100 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0";
            self.write(
                &format!("{process}/stat"),
                &format!(
                    "{pid} ({name}) S {parent} {pid} {pid} {terminal} {rest} {start} {last}\n"
                ),
            );
            self.write(
                &format!("{process}/status"),
                &format!(
                    "Name:\t{name}\nTracerPid:\t0\nUid:\t1000\t1000\t1000\t1000\nNSpid:\t{pids}\n"
                ),
            );
            self.write(&format!("{process}/cmdline"), &format!("{}\0", line.replace(' ', "\0")));
            self.write(&format!("{process}/cgroup"), &format!("0::{}\n", cgroup.unwrap_or("/")));
            self.write(&format!("{process}/mountinfo"), "1 0 8:1 / / rw - ext4 /dev/vda rw\n");
            self.link(&format!("{process}/exe"), exe.unwrap_or("/usr/bin/python3.13"));
            self.link(&format!("{process}/root"), "/");
            self.link(&format!("{process}/ns/mnt"), "mnt:[1]");
            let namespace = if pids.contains('\t') { "pid:[7]" } else { "pid:[4026531836]" };
            self.link(&format!("{process}/ns/pid"), namespace);
            fs::create_dir_all(self.0.join(format!("{process}/fd"))).unwrap();
            fs::create_dir_all(self.0.join(format!("{process}/task/{pid}/fd"))).unwrap();
        }
    }

    #[derive(Default, Clone, Copy)]
    struct More {
        terminal: u32,
        cgroup: Option<&'static str>,
        pids: Option<&'static str>,
        exe: Option<&'static str>,
    }

    fn sockets(folder: &Folder) {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let line = |local: &str, peer: &str, state: &str, inode: u32| {
            format!(
                "   0: {local} {peer} {state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0 100 0\n"
            )
        };
        let any = "00000000:0000";
        let mut tcp = head.to_owned();
        for (port, inode) in [(8091, 100), (8092, 101), (9000, 102), (9001, 103), (5432, 104)] {
            tcp += &line(&format!("00000000:{port:04X}"), any, "0A", inode);
        }
        folder.write("proc/net/tcp", &tcp);
        let one = "00000000000000000000000001000000";
        let none = "00000000000000000000000000000000:0000";
        folder.write(
            "proc/net/tcp6",
            &(head.to_owned() + &line(&format!("{one}:{:04X}", 9101), none, "0A", 105)),
        );
        folder.write(
            "proc/net/udp",
            &(head.to_owned() + &line(&format!("00000000:{:04X}", 9100), any, "07", 106)),
        );
        folder.write("proc/net/udp6", head);
        folder.link("proc/4242/fd/3", "socket:[100]");
        folder.link("proc/4243/fd/3", "socket:[101]");
        // A thread with descriptors of its own, and a ring.
        folder.link("proc/800/task/801/fd/4", "socket:[102]");
        folder.link("proc/810/fd/5", "anon_inode:[io_uring]");
        folder.write("proc/810/fdinfo/5", "pos:\t0\nUserFiles:\t1\n    0: socket:[103]\n");
        folder.link("proc/600/fd/6", "socket:[104]");
        folder.link("proc/910/fd/7", "socket:[105]");
        folder.link("proc/920/fd/8", "socket:[106]");
    }

    fn card(folder: &Folder) {
        let device = "sys/class/drm/renderD128/device";
        let uevent = "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\n";
        let kfd = "sys/class/kfd/kfd";
        for (path, text) in [
            (format!("{device}/vendor"), "0x1002\n"),
            (format!("{device}/uevent"), uevent),
            (format!("{device}/mem_info_vram_total"), "17179869184\n"),
            (format!("{device}/mem_info_vram_used"), "0\n"),
            (format!("{kfd}/topology/nodes/1/gpu_id"), "38924\n"),
            (format!("{kfd}/topology/nodes/1/properties"), "location_id 768\ndomain 0\n"),
            // By its queues alone, as of a process that has allocated nothing yet.
            (format!("{kfd}/proc/950/vram_38924"), "0\n"),
            (format!("{kfd}/proc/950/queues/1/gpuid"), "38924\n"),
        ] {
            folder.write(&path, text);
        }
        fs::create_dir_all(folder.0.join("sys/bus/pci/devices")).unwrap();
    }

    pub(super) fn case() -> Case {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().to_owned();
        let folder = Folder(path.clone());
        let of = |cgroup| More { cgroup: Some(cgroup), ..More::default() };
        let exe = |exe| More { exe: Some(exe), ..More::default() };
        folder.process(1, 0, "init", exe("/usr/sbin/init"));
        folder.process(500, 1, "bash", More { terminal: 34_816, ..exe("/usr/bin/bash") });
        folder.process(600, 500, "postgres -D /x", exe("/usr/bin/postgres"));
        folder.process(4242, 1, "python3 mine.py --port 8091", More::default());
        folder.process(
            4243,
            500,
            "python3 mine.py --port 8092",
            More { terminal: 34_816, ..More::default() },
        );
        folder.process(4250, 4242, "python3 helper", More::default());
        folder.process(800, 1, "python3 mine.py --threads", More::default());
        folder.process(810, 1, "python3 mine.py --ring", More::default());
        folder.process(300, 1, "containerd-shim", exe("/usr/bin/containerd-shim-runc-v2"));
        let docker = "/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let contained = |pids| More { pids: Some(pids), ..of(docker) };
        folder.process(4300, 300, "python3 mine.py --contained", contained("4300\t1"));
        folder.process(4310, 1, "python3 mine.py --left", contained("4310\t9"));
        folder.process(820, 1, "python3 mine.py --kept", exe("/srv/keep/x"));
        folder.process(910, 1, "python3 other.py", More::default());
        folder.process(920, 910, "python3 other.py --child", More::default());
        folder.process(950, 500, "python3 train.py", More::default());
        folder.process(960, 1, "llama-server", exe("/usr/bin/llama-server"));
        folder.process(961, 1, "llama-server --its-owner-lives", exe("/usr/bin/llama-server"));
        sockets(&folder);
        card(&folder);
        folder.write("proc/self/status", "Name:\tportreeve\nCapEff:\t000001ffffffffff\n");
        folder.write("proc/self/uid_map", "         0          0 4294967295\n");
        folder.write("proc/self/mountinfo", "1 0 0:5 / /proc rw - proc proc rw\n");
        folder.link("proc/self/ns/pid", "pid:[4026531836]");
        folder.write("proc/uptime", "100000.00 1.00\n");
        folder.write("proc/sys/kernel/random/boot_id", "this\n");
        folder.write("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n");
        folder.write("proc/sys/net/ipv4/ip_local_reserved_ports", "\n");
        folder.write("config.yaml", CONFIG);
        assert!(ID.len() == 64 && docker.ends_with(ID));
        let receipt = |pid: u32, lives: bool| Receipt {
            boot_id: "this".to_owned(),
            key: ProcessKey {
                pid: Pid(pid),
                start_ticks: u64::from(pid) + 1000,
                pidfd_inode: None,
            },
            exe: Some("/usr/bin/llama-server".into()),
            uid: Some(1000),
            model: "llama".into(),
            writer: 0,
            owner: Owner::Unit(UnitRef { manager: Manager::System, name: "m.service".into() }),
            is_owner_alive: Seen::Known(lives),
        };
        let receipts = vec![receipt(960, false), receipt(961, true)];
        let receipts = Receipts::told_by(move || receipts.clone());
        Case {
            name: "full".to_owned(),
            host: Host::fixture(&path),
            settings: settings(Path::new(&path)),
            scope: Scope { receipts, ..Scope::default() },
            _folder: Some(temporary),
        }
    }

    #[test]
    fn the_full_host_has_orphans_and_look_alikes() {
        let found = case().scan();
        let said = super::said(&found);
        let orphans: BTreeSet<u32> = said.orphans.iter().map(|pid| pid.0).collect();
        assert_eq!(orphans, [800, 810, 960, 4242].into());
    }
}
