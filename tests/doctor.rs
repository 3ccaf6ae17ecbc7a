//! `portreeve doctor` on this machine: with and without rights, in namespaces, under seccomp filters, before engines that
//! answer, refuse, hang or talk nonsense; and the file that it writes for `/etc/sysctl.d`, read by the kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]
#![allow(unsafe_code, reason = "a seccomp filter is put on before the program is run")]

mod support;

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    process::{Command, Output},
    time::{Duration, Instant},
};

use portreeve::report::doctor as report;
use serde_json::Value;
use support::{Report, TestBox, skip, stage::Stage};

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema/doctor-v1.json");
/// Nothing guarded in any range.
const QUIET: &str = "services: { mindsdb: { enabled: false } }\n";
const SEE: &str = "see processes and holders";
const END: &str = "end processes";
const WHOLE: &str = "see the whole machine";
const HANDLE: &str = "cgroups by handle";
const OUTGOING: &str = "outgoing connections off guarded ports";
const NOBODY: &str =
    "exec setpriv --reuid 65534 --clear-groups --bounding-set=-all --inh-caps=-all";

fn stage() -> Option<Stage> {
    Stage::set().map_err(|reason| skip(&reason)).ok()
}

/// The same where root has all rights on the machine: elsewhere something is always off.
fn full_stage() -> Option<Stage> {
    Stage::set_on_the_host().map_err(|reason| skip(&reason)).ok()
}

/// A report, checked against the published schema.
fn read(output: &Output) -> Report {
    let report = Report::read(output);
    let schema = serde_json::from_str(&fs::read_to_string(SCHEMA).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(&report.json).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(report.json["exit_code"], report.code);
    report
}

/// The report of a run by this script with these settings.
fn doctor(stage: &Stage, script: &str, settings: &str) -> Report {
    let config = stage.write("config.yaml", settings);
    let words = ["doctor", "--config", &config, "--format", "json"];
    read(&stage.portreeve_by(script, &words).output().unwrap())
}

fn finding<'r>(report: &'r Report, name: &str) -> &'r Value {
    let all = report.json["checks"].as_array().unwrap();
    all.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no '{name}' in {report:?}"))
}

fn state<'r>(report: &'r Report, name: &str) -> &'r str {
    finding(report, name)["state"].as_str().unwrap()
}

fn text<'r>(report: &'r Report, name: &str, field: &str) -> &'r str {
    finding(report, name)[field].as_str().unwrap_or_else(|| panic!("{:?}", finding(report, name)))
}

/// The names of what is off.
fn off(report: &Report) -> Vec<&str> {
    let all = report.json["checks"].as_array().unwrap().iter();
    all.filter(|c| c["state"] == "off").map(|c| c["name"].as_str().unwrap()).collect()
}

// ---- the document

#[test]
fn the_published_schema_is_the_one_that_the_code_generates() {
    let generated = format!("{}\n", serde_json::to_string_pretty(&report::schema()).unwrap());
    if std::env::var_os("BLESS").is_some() {
        fs::write(SCHEMA, &generated).unwrap();
    }
    let published = fs::read_to_string(SCHEMA).unwrap_or_default();
    assert_eq!(
        published, generated,
        "BLESS=1 writes {SCHEMA} anew; docs/doctor.md says what may change"
    );
}

#[test]
fn the_published_schema_refuses_another_version_and_a_missing_field() {
    let schema = serde_json::from_str(&fs::read_to_string(SCHEMA).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut out = Vec::new();
    report::render_json(&[], &mut out).unwrap();
    let document: Value = serde_json::from_slice(&out).unwrap();
    assert!(validator.is_valid(&document));
    let mut newer = document.clone();
    newer["version"] = 2.into();
    assert!(!validator.is_valid(&newer));
    for field in document.as_object().unwrap().keys() {
        let mut less = document.clone();
        less.as_object_mut().unwrap().remove(field);
        assert!(!validator.is_valid(&less), "{field}");
    }
}

#[test]
fn the_table_and_the_document_tell_of_the_same_checks_with_the_same_exit_code() {
    let Some(stage) = stage() else { return };
    let report = doctor(&stage, "exec", "{}\n");
    let output = stage.run(&["doctor"]);
    let table = String::from_utf8(output.stdout).unwrap();
    for check in report.json["checks"].as_array().unwrap() {
        let [name, word] = ["name", "state"].map(|field| check[field].as_str().unwrap());
        // Here a file of settings was laid over the others.
        if name.ends_with("/config.yaml") {
            continue;
        }
        let line = format!("  {word:<10}{name}: ");
        assert!(table.contains(&line), "no '{line}' in\n{table}");
    }
    assert_eq!(output.status.code(), Some(report.code));
    assert!(!table.contains('\x1b'), "no colour in a pipe");
}

#[test]
fn the_help_explains_the_exit_codes() {
    let output = Command::new(env!("CARGO_BIN_EXE_portreeve")).args(["doctor", "--help"]).output();
    let help = String::from_utf8(output.unwrap().stdout).unwrap();
    for code in ["  0  nothing", "  1  something is off", "  2  something could not be learnt"] {
        assert!(help.contains(code), "{help}");
    }
}

// ---- rights

#[test]
fn root_on_the_host_lacks_nothing() {
    let Some(stage) = full_stage() else { return };
    let report = doctor(&stage, "exec", QUIET);
    assert_eq!(off(&report), [""; 0]);
    assert_eq!(report.code, 0, "{report:?}");
    for name in [SEE, END, WHOLE, "pidfd", "socket diagnostics", "kcmp", HANDLE] {
        assert_eq!(state(&report, name), "good", "{name}");
    }
}

#[test]
fn without_capabilities_each_feature_is_off_with_its_fix_for_root_as_for_others() {
    let Some(stage) = stage() else { return };
    for script in [NOBODY, "exec setpriv --bounding-set=-all --inh-caps=-all"] {
        let report = doctor(&stage, script, QUIET);
        assert_eq!(report.code, 1);
        for (name, fix) in [
            (SEE, "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"),
            (END, "CAP_KILL"),
            (HANDLE, "CAP_DAC_READ_SEARCH"),
        ] {
            assert_eq!(state(&report, name), "off", "{script}: {name}");
            assert!(text(&report, name, "fix").contains(fix), "{report:?}");
        }
        // These need no right.
        for name in ["pidfd", "socket diagnostics", "kcmp"] {
            assert_eq!(state(&report, name), "good", "{script}: {name}");
        }
    }
}

#[test]
fn only_what_needs_the_missing_capability_is_off() {
    let Some(stage) = full_stage() else { return };
    let script = "exec setpriv --bounding-set=-kill --inh-caps=-all";
    assert_eq!(off(&doctor(&stage, script, QUIET)), [END]);
    let script = "exec setpriv --bounding-set=-sys_ptrace --inh-caps=-all";
    assert_eq!(off(&doctor(&stage, script, QUIET)), [SEE]);
}

#[test]
fn capabilities_of_a_user_namespace_of_its_own_are_no_rights_on_the_machine() {
    let Some(stage) = stage() else { return };
    let report = doctor(&stage, "exec unshare --user --map-root-user", "{}\n");
    for name in [SEE, END] {
        assert_eq!(state(&report, name), "off", "{name}");
        assert!(text(&report, name, "detail").contains("user namespace"), "{report:?}");
    }
    assert_eq!(state(&report, HANDLE), "off");
    assert_eq!(report.code, 1);
}

#[test]
fn a_proc_that_does_not_show_the_machine_is_off() {
    let Some(stage) = full_stage() else { return };
    let hidden = "mount -t proc -o hidepid=invisible none /proc; \
                  exec setpriv --bounding-set=-sys_ptrace --inh-caps=-all";
    for (script, fix) in [
        ("exec unshare --pid --fork --mount-proc", "--pid=host"),
        ("exec unshare --pid --fork", "mount -t proc proc /proc"),
        (hidden, "CAP_SYS_PTRACE"),
    ] {
        let report = doctor(&stage, script, QUIET);
        assert_eq!(state(&report, WHOLE), "off", "{script}");
        assert!(text(&report, WHOLE, "fix").contains(fix), "{report:?}");
        assert_eq!(report.code, 1);
    }
}

// ---- the kernel, as a seccomp filter lets us see it

/// A call, its first argument where only that one is meant, and the error that a filter answers it with.
type Refusal = (i64, Option<i32>, i32);

/// Lets a command run under such a filter.
fn filtered(command: &mut Command, (call, first, errno): Refusal) {
    let op = |code: u32, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf,
        k,
    };
    let load = |offset| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset);
    let answer = |what| op(libc::BPF_RET | libc::BPF_K, 0, what);
    let unless = |value, skip| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, skip, value);
    let mut program =
        vec![load(0), unless(u32::try_from(call).unwrap(), if first.is_some() { 3 } else { 1 })];
    if let Some(first) = first {
        // The lower half of the first argument, on little-endian machines.
        program.extend([load(16), unless(u32::try_from(first).unwrap(), 1)]);
    }
    program.push(answer(libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap()));
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    let restrict = move || {
        let filter = libc::sock_fprog {
            len: u16::try_from(program.len()).unwrap_or_default(),
            filter: program.as_mut_ptr(),
        };
        let (yes, nothing): (libc::c_ulong, libc::c_ulong) = (1, 0);
        // SAFETY: it takes five integers.
        let alone =
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, nothing, nothing, nothing) };
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        // SAFETY: the kernel only reads the filter, which this closure owns.
        let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) };
        if (alone, filtered) == (0, 0) { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(restrict) };
}

#[test]
fn a_call_that_a_filter_refuses_is_off_or_has_a_fallback_whatever_rights_there_are() {
    let Some(stage) = full_stage() else { return };
    let netlink = Some(libc::AF_NETLINK);
    let cases: [(Refusal, &str, &str, &str); 5] = [
        ((libc::SYS_open_by_handle_at, None, libc::EPERM), HANDLE, "off", "SystemCallFilter"),
        ((libc::SYS_pidfd_open, None, libc::ENOSYS), "pidfd", "off", "Linux 5.3"),
        ((libc::SYS_pidfd_open, None, libc::EPERM), "pidfd", "off", "allow pidfd_open"),
        ((libc::SYS_kcmp, None, libc::EPERM), "kcmp", "fallback", ""),
        (
            (libc::SYS_socket, netlink, libc::EAFNOSUPPORT),
            "socket diagnostics",
            "off",
            "RestrictAddressFamilies",
        ),
    ];
    for (call, name, expected, fix) in cases {
        let config = stage.write("config.yaml", QUIET);
        let words = ["doctor", "--config", &config, "--format", "json"];
        let mut command = stage.portreeve(&words);
        filtered(&mut command, call);
        let report = read(&command.output().unwrap());
        assert_eq!(state(&report, name), expected, "{report:?}");
        assert_eq!(report.code, i32::from(expected == "off"), "{report:?}");
        assert!(finding(&report, name)["fix"].as_str().unwrap_or_default().contains(fix));
        // The capabilities are all there, and these say so.
        assert_eq!(state(&report, SEE), "good");
    }
}

// ---- engines

/// A peer at a socket of the stage: each of its connections is for `talk`.
fn peer(
    stage: &Stage,
    name: &str,
    talk: impl Fn(&mut std::os::unix::net::UnixStream) + Send + 'static,
) {
    let listener = UnixListener::bind(stage.path(name)).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            talk(&mut stream);
        }
    });
}

/// What is said of docker's socket where this is in its place.
fn engine(stage: &Stage, name: &str) -> Report {
    let script = format!("ln -s {} /run/docker.sock; exec", stage.path(name).display());
    let began = Instant::now();
    let report = doctor(stage, &script, QUIET);
    assert!(began.elapsed() < Duration::from_secs(8), "it waited {:?}", began.elapsed());
    report
}

const SOCKET: &str = "/run/docker.sock";
const VERSION: &str = "HTTP/1.0 200 OK\r\n\r\n{\"Version\": \"26.1\", \"ApiVersion\": \"1.45\"}";

#[test]
fn an_engine_that_answers_is_good_and_is_asked_for_nothing_but_its_version() {
    let Some(stage) = full_stage() else { return };
    let (send, receive) = std::sync::mpsc::channel();
    peer(&stage, "sound", move |stream| {
        let mut asked = [0; 256];
        let length = stream.read(&mut asked).unwrap();
        send.send(String::from_utf8_lossy(&asked[..length]).into_owned()).unwrap();
        let _ = stream.write_all(VERSION.as_bytes());
    });
    let report = engine(&stage, "sound");
    assert_eq!(state(&report, SOCKET), "good");
    assert_eq!(text(&report, SOCKET, "detail"), "answers: docker 26.1");
    assert_eq!(report.code, 0);
    assert!(receive.recv().unwrap().starts_with("GET /version HTTP/1.1\r\n"));
}

#[test]
fn an_engine_that_refuses_hangs_drips_floods_or_talks_nonsense_is_off_and_does_not_hold_us_up() {
    let Some(stage) = full_stage() else { return };
    drop(UnixListener::bind(stage.path("left over")).unwrap());
    let silent = UnixListener::bind(stage.path("silent")).unwrap();
    peer(&stage, "dripping", |stream| {
        let _ = stream.read(&mut [0; 256]);
        while stream.write_all(b"H").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    peer(&stage, "flooding", |stream| while stream.write_all(&[b'x'; 4096]).is_ok() {});
    // Who answers before the question and leaves is only a broken pipe.
    peer(&stage, "garbage", |stream| {
        let _ = stream.read(&mut [0; 256]);
        let _ = stream.write_all(b"\x1b[2J\xff nonsense\r\n\r\n");
    });
    peer(&stage, "closing", |_| {});
    peer(&stage, "failing", |stream| {
        let _ = stream.read(&mut [0; 256]);
        let _ = stream.write_all(b"HTTP/1.1 500 Internal Server Error\r\n\r\n");
    });
    // A backlog that is full: another connection would wait for ever.
    let full = UnixListener::bind(stage.path("full")).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let _waiting = std::os::unix::net::UnixStream::connect(stage.path("full")).unwrap();

    for (name, says) in [
        ("left over", "nobody listens"),
        ("silent", "did not answer"),
        ("dripping", "did not answer"),
        ("full", "did not answer"),
        ("flooding", "not an engine's answer"),
        ("garbage", "not an engine's answer"),
        ("closing", "not an engine's answer"),
        ("failing", "500"),
    ] {
        fs::rename(stage.path(name), stage.path("peer")).unwrap();
        let report = engine(&stage, "peer");
        assert_eq!(off(&report), [SOCKET], "{name}");
        assert!(text(&report, SOCKET, "detail").contains(says), "{name}: {report:?}");
        assert_eq!(report.code, 1, "{name}");
        fs::remove_file(stage.path("peer")).unwrap();
    }
    drop((silent, full));
}

#[test]
fn a_socket_that_we_may_not_open_is_unknown_and_not_absent() {
    let Some(stage) = stage() else { return };
    let _listener = UnixListener::bind(stage.path("closed")).unwrap();
    fs::set_permissions(stage.path("closed"), fs::Permissions::from_mode(0o600)).unwrap();
    let script = format!("ln -s {} /run/docker.sock; {NOBODY}", stage.path("closed").display());
    assert_eq!(state(&doctor(&stage, &script, QUIET), SOCKET), "unknown");
}

#[test]
fn without_proc_an_engine_and_our_rights_are_unknown_and_not_absent() {
    let Some(stage) = full_stage() else { return };
    let _listener = UnixListener::bind(stage.path("there")).unwrap();
    let script = format!(
        "ln -s {} /run/docker.sock; mount -t tmpfs none /proc; exec",
        stage.path("there").display()
    );
    let report = doctor(&stage, &script, QUIET);
    for name in [SOCKET, SEE, END, OUTGOING] {
        assert_eq!(state(&report, name), "unknown", "{report:?}");
    }
    assert_eq!(state(&report, WHOLE), "off");
}

#[test]
fn a_users_engine_is_found_and_where_there_is_none_nothing_is_said() {
    let Some(stage) = full_stage() else { return };
    peer(&stage, "users", |stream| {
        let _ = stream.read(&mut [0; 256]);
        let _ = stream.write_all(VERSION.as_bytes());
    });
    let script = format!(
        "mkdir -p /run/user/1000/podman /run/user/1001; cd /run/user/1000/podman; touch podman.sock; \
         mount --bind {} podman.sock; exec",
        stage.path("users").display()
    );
    let report = doctor(&stage, &script, QUIET);
    assert_eq!(state(&report, "/run/user/1000/podman/podman.sock"), "good");
    assert!(!report.json.to_string().contains("/run/user/1001"));
    assert_eq!(state(&report, SOCKET), "absent");
}

#[test]
fn a_users_link_leads_root_to_nobody_elses_socket() {
    let Some(stage) = full_stage() else { return };
    let listener = UnixListener::bind(stage.path("another's")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let link = format!("ln -s \"{}\"", stage.path("another's").display());
    for script in [
        format!("mkdir -p /run/user/1000/podman; {link} /run/user/1000/podman/podman.sock; exec"),
        format!(
            "mkdir -p /run/user/1000 /run/x; {link} /run/x/podman.sock; ln -s /run/x /run/user/1000/podman; exec"
        ),
    ] {
        let report = doctor(&stage, &script, QUIET);
        assert_eq!(state(&report, "/run/user/1000/podman/podman.sock"), "unknown");
        assert!(listener.accept().is_err(), "nobody connected");
    }
}

// ---- systemd

#[test]
fn a_systemd_whose_managers_do_not_answer_is_off() {
    let Some(stage) = full_stage() else { return };
    let report = doctor(&stage, "mkdir -p /run/systemd/system; exec", QUIET);
    assert_eq!(state(&report, "systemd"), "good");
    assert_eq!(off(&report), ["system manager", "logind"]);
}

#[test]
fn in_a_box_with_systemd_its_managers_answer_and_a_sleeping_engine_is_not_woken() {
    let test_box = match TestBox::boot("doctor") {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    test_box.unit("docker.service", "[Service]\nExecStart=/usr/bin/touch /run/woken\n");
    test_box.unit("docker.socket", "[Socket]\nListenStream=/run/docker.sock\n");
    test_box.sh("systemctl start docker.socket");
    let doctor = || {
        let words = ["/build/portreeve", "doctor", "--format", "json"];
        read(&test_box.run(&words))
    };
    let report = doctor();
    for name in ["systemd", "system manager", "logind", SOCKET] {
        assert_eq!(state(&report, name), "good", "{report:?}");
    }
    assert!(text(&report, SOCKET, "detail").contains("not woken"), "{report:?}");
    // bob lingers: a manager of his runs.
    let bob = test_box.sh("id -u bob");
    assert_eq!(state(&report, &format!("manager of user {bob}")), "good");
    assert!(!test_box.inside("/run/woken").exists());
    assert_eq!(test_box.sh("systemctl show --property=NConnections --value docker.socket"), "0");
    assert_eq!(
        test_box.sh("systemctl show --property=ActiveState --value docker.service"),
        "inactive"
    );
    // Where systemd does not listen in its stead, it is asked.
    test_box.sh("systemctl stop docker.socket; rm -f /run/docker.sock");
    let _left = UnixListener::bind(test_box.inside("/run/docker.sock")).unwrap();
    let report = doctor();
    assert_eq!(state(&report, SOCKET), "off", "{report:?}");
}

// ---- configuration

#[test]
fn a_broken_configuration_is_a_finding_with_its_errors_and_all_else_is_still_told() {
    let Some(stage) = full_stage() else { return };
    let report = doctor(&stage, "exec", "services: { x: { prots: [1] } }\n");
    assert_eq!(report.code, 2);
    assert_eq!(state(&report, "configuration"), "unknown");
    assert!(text(&report, "configuration", "detail").contains("config.yaml:1:"), "{report:?}");
    assert_eq!(state(&report, OUTGOING), "unknown");
    assert_eq!(state(&report, SEE), "good");

    let config = stage.path("config.yaml");
    let output = stage.run(&["doctor", "--sysctl", "--config", config.to_str().unwrap()]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{output:?}");
}

#[test]
fn the_files_in_effect_and_the_ports_they_took_over_are_told() {
    let Some(stage) = stage() else { return };
    let report = doctor(&stage, "exec", "services: { mine: { ports: [8080] } }\n");
    let file = stage.path("config.yaml");
    assert_eq!(state(&report, file.to_str().unwrap()), "good");
    let detail = text(&report, "8080/tcp", "detail");
    assert!(detail.starts_with("taken over from llama-cpp by mine ("), "{detail}");
}

// ---- the kernel's own ports

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The file that is printed on this stage; its last line is checked for its form.
fn sysctl(stage: &Stage, settings: &str) -> String {
    let config = stage.write("config.yaml", settings);
    let output = stage.run(&["doctor", "--sysctl", "--config", &config]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (line, comments) = lines.split_last().unwrap();
    assert!(line.starts_with("net.ipv4.ip_local_reserved_ports = "), "{text}");
    assert!(comments.iter().all(|line| line.starts_with("# ")), "{text}");
    text
}

/// The kernel's list of reserved ports on this stage, in one read.
fn reserved(stage: &Stage) -> String {
    stage.within(|| {
        let mut bytes = vec![0; 1 << 18];
        let length = fs::File::open(RESERVED).unwrap().read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    })
}

/// Has the kernel take the list of a printed file.
fn apply(stage: &Stage, text: &str) -> String {
    let value = text.lines().last().unwrap().split_once(" = ").unwrap().1.to_owned();
    stage.within(|| fs::write(RESERVED, format!("{value}\n")).unwrap());
    value
}

#[test]
fn the_printed_file_is_taken_by_the_kernel_reads_back_equal_and_settles_the_finding() {
    let Some(stage) = full_stage() else { return };
    let report = doctor(&stage, "exec", "{}\n");
    assert_eq!((off(&report), report.code), (vec![OUTGOING], 1));
    assert!(text(&report, OUTGOING, "detail").contains("47334 (mindsdb)"), "{report:?}");
    for (before, after) in [
        ("", "47334"),
        ("8080,9148-9155", "8080,9148-9155,47334"),
        ("47333,47335-47400", "47333-47400"),
        ("47334", "47334"),
        ("40000-50000", "40000-50000"),
        ("65535", "47334,65535"),
    ] {
        stage.within(|| fs::write(RESERVED, format!("{before}\n")).unwrap());
        let printed = sysctl(&stage, "{}\n");
        assert_eq!(apply(&stage, &printed), after);
        assert_eq!(reserved(&stage), after);
        assert_eq!(sysctl(&stage, "{}\n"), printed, "a second time changes nothing");
        assert_eq!(state(&doctor(&stage, "exec", "{}\n"), OUTGOING), "good");
    }
}

#[test]
fn with_nothing_to_reserve_the_line_is_complete_all_the_same() {
    let Some(stage) = stage() else { return };
    for before in ["", "8080,9148-9155"] {
        stage.within(|| fs::write(RESERVED, format!("{before}\n")).unwrap());
        let printed = sysctl(&stage, QUIET);
        assert_eq!(apply(&stage, &printed), before);
        assert_eq!(reserved(&stage), before);
    }
}

#[test]
fn a_list_longer_than_a_kibibyte_is_kept_to_its_last_port() {
    let Some(stage) = stage() else { return };
    let many: Vec<String> = (10_000..14_000).step_by(4).map(|port| port.to_string()).collect();
    stage.within(|| fs::write(RESERVED, many.join(",")).unwrap());
    let expected = format!("{},47334", many.join(","));
    assert_eq!(apply(&stage, &sysctl(&stage, "{}\n")), expected);
    assert_eq!(reserved(&stage), expected);
}

#[test]
fn the_sysctl_program_takes_the_printed_file() {
    let Some(stage) = stage() else { return };
    if Command::new("sysctl").arg("--version").output().is_err() {
        return skip("no sysctl program here");
    }
    for settings in ["{}\n", QUIET] {
        stage.within(|| fs::write(RESERVED, "\n").unwrap());
        let file = stage.write("60-portreeve.conf", &sysctl(&stage, settings));
        let output = stage.command(&["sysctl", "-p", &file]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(reserved(&stage), if settings == QUIET { "" } else { "47334" });
    }
}

#[test]
fn a_list_that_cannot_be_read_is_an_error_and_nothing_is_printed() {
    let Some(stage) = stage() else { return };
    let garbage = stage.write("garbage", "80,,\n");
    for script in [
        "mount -t tmpfs none /proc/sys/net/ipv4; exec".to_owned(),
        format!("mount --bind {garbage} {RESERVED}; exec"),
    ] {
        let output = stage.portreeve_by(&script, &["doctor", "--sysctl"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
        assert!(said.contains(RESERVED) && said.contains("hint: "), "{said}");
        assert_eq!(state(&doctor(&stage, &script, "{}\n"), OUTGOING), "unknown");
    }
}

#[test]
fn the_file_goes_with_no_format() {
    let output = Command::new(env!("CARGO_BIN_EXE_portreeve"))
        .args(["doctor", "--sysctl", "--format=json"])
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{output:?}");
}
