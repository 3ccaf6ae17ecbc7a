//! A scene under construction: what is planted, and what is true of it. Plantings add to it (`plantings`, `contained`, `races`); `set`
//! carries all of it out in few steps, for a step into the box costs more than a process.

use std::{
    fmt::Write as _,
    fs,
    process::{Child, Stdio},
    time::Duration,
};

use crate::{
    Lane,
    dice::Dice,
    receipts::Note,
    support::{DEADLINE, Login, Terminal, engines::Container, wait_until},
};

pub(crate) const PLANT: &str = "/build/examples/plant";

/// What is true of a planted process. It follows from how it was planted and from what was declared, never from a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Intent {
    /// Somebody wants it: it works in a session, a unit, a container, or has a living parent.
    Living,
    /// Nobody who looks at the machine could tell whether it is wanted.
    Ambiguous,
    /// Who wanted it was ended by us, and it is of a kind that the documents promise to convict.
    Orphan,
    /// An orphan that changes while `reap` looks: it may go or stay.
    Racing,
    /// A living one that we end ourselves during the reap.
    Fleeting,
}

/// A guarded service. Its ports are 40 in a row.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) runs_in: &'static str,
    pub(crate) first_port: u16,
    pub(crate) is_portless: bool,
}

impl Service {
    fn is_declared(&self) -> bool {
        !self.runs_in.is_empty()
    }
}

/// The unit in which service `llm` is declared to run.
pub(crate) const DECLARED_UNIT: &str = "u-llm.service";

/// The same in every scene. `aidb` and `llm` have neighbours in name and port.
pub(crate) const SERVICES: [Service; 5] = [
    Service { name: "aidb", runs_in: "container", first_port: 21000, is_portless: false },
    Service { name: "aidb-ui", runs_in: "", first_port: 21040, is_portless: false },
    Service {
        name: "llm",
        runs_in: "{ unit: u-llm.service }",
        first_port: 21080,
        is_portless: false,
    },
    Service { name: "web", runs_in: "{ container: web-1 }", first_port: 21120, is_portless: false },
    Service { name: "daemon", runs_in: "container", first_port: 21160, is_portless: true },
];

/// The settings of every scene.
pub(crate) fn settings() -> String {
    let mut text = "defaults: { min_age: 100ms, grace: 300ms, respawn_watch: 0s }\n\
                    engines: { timeout: 2s }\nservices:\n"
        .to_owned();
    for Service { name, runs_in, first_port, is_portless } in &SERVICES {
        let runs_in =
            if runs_in.is_empty() { String::new() } else { format!("runs_in: {runs_in}, ") };
        let ports: Vec<String> =
            (*first_port..first_port + 40).map(|port| port.to_string()).collect();
        let pattern = format!("/app/{name}\\.py --config");
        let pattern = if *is_portless {
            format!("{{ match: '{pattern}', portless: true }}")
        } else {
            format!("'{pattern}'")
        };
        let ports = ports.join(", ");
        writeln!(text, "  {name}: {{ {runs_in}ports: [{ports}], patterns: [{pattern}] }}")
            .expect("text");
    }
    text
}

/// A process that is to be planted, or is.
#[derive(Debug, Clone)]
pub(crate) struct Planted {
    /// Of its file in `/run/planted`.
    pub(crate) name: String,
    /// How it was planted.
    pub(crate) kind: &'static str,
    pub(crate) intent: Intent,
    /// Known before the scene is set for what is in a container.
    pub(crate) pid: Option<u32>,
    pub(crate) start: u64,
}

/// A command that plants a server.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) service: usize,
    pub(crate) has_port: bool,
    pub(crate) port: u16,
    /// Its command line.
    pub(crate) line: String,
    /// What plants it, without the program.
    pub(crate) words: String,
}

impl Server {
    pub(crate) fn command(&self) -> String {
        format!("{PLANT} {}", self.words)
    }

    pub(crate) fn daemonised(&self) -> String {
        format!("{PLANT} --daemonise {}", self.words)
    }

    pub(crate) fn with(mut self, words: &str) -> Self {
        self.words = format!("{} {words}", self.words);
        self
    }

    /// What is true of it once its login is over and nobody looks after it: its service was declared to run elsewhere, or nobody can
    /// tell.
    pub(crate) fn once_left(&self) -> Intent {
        let service = &SERVICES[self.service];
        if service.is_declared() && (self.has_port || service.is_portless) {
            Intent::Orphan
        } else {
            Intent::Ambiguous
        }
    }
}

/// Somebody logs in, types, and stays or leaves.
pub(crate) struct Visit {
    pub(crate) user: &'static str,
    pub(crate) terminal: Terminal,
    pub(crate) line: String,
    /// What of it is waited for.
    pub(crate) names: Vec<String>,
    /// What is killed once all are in place.
    pub(crate) kills: Vec<String>,
    pub(crate) leaves: bool,
}

/// A scene under construction.
pub(crate) struct Scene<'a> {
    pub(crate) lane: &'a Lane<'a>,
    pub(crate) dice: Dice,
    pub(crate) planted: Vec<Planted>,
    pub(crate) visits: Vec<Visit>,
    /// Run by root in the box before anybody logs in, behind `FUNCTIONS`.
    pub(crate) script: String,
    /// The same once everybody is in place or gone.
    pub(crate) last: String,
    /// Run beside `reap`.
    pub(crate) race: String,
    /// Who is planted by the race.
    pub(crate) planted_later: Vec<Planted>,
    pub(crate) notes: Vec<Note>,
    /// Somebody who is asked may not answer during the race: an orphan may stay, and nobody else may go.
    pub(crate) is_blinded: bool,
    /// Units of which systemd has to have started exactly so many new runs by itself.
    pub(crate) restarts: Vec<(String, u32)>,
    /// Command lines of which nobody may be left.
    pub(crate) extinct: Vec<String>,
    pub(crate) containers: Vec<Container>,
    present: Vec<Login>,
    names: usize,
    ports: [u16; SERVICES.len()],
}

/// What goes wrong in a race.
const RACE_SAID: &str = "/run/planted/race-said";

/// Where `FUNCTIONS` is in the box.
const TOOLS: &str = "/etc/truth.sh";

/// What the scripts of a scene use. A wait that takes too long fails, and the scene with it.
pub(crate) const FUNCTIONS: &str = r#"
until_so() { local t=0; until "$@" >/dev/null 2>&1; do sleep .02; t=$((t+1)); [ $t -lt 900 ] || { echo "still not so: $*" >&2; exit 1; }; done; }
await() { local n; for n; do until_so test -e /run/planted/$n; done; }
pid() { local pid; pid=$(cat /run/planted/$1); [ "$pid" -gt 1 ] && echo $pid; }
is_gone() { ! readlink /proc/$1/exe; }
is_state() { [ "$(systemctl show -P SubState $2)" = $1 ]; }
is_traced() { grep -q 'TracerPid:.[1-9]' /proc/$1/status; }
into() { await $1; mkdir -p /sys/fs/cgroup/$2; echo $(pid $1) >/sys/fs/cgroup/$2/cgroup.procs; }
beside() { into $1 "$(sed -n 's/^0:://p' /proc/$(pid $2)/cgroup)"; }
"#;

impl Lane<'_> {
    /// Gives the scripts of scenes what they use.
    pub(crate) fn write_tools(&self) {
        self.test_box.write(TOOLS, FUNCTIONS);
    }
}

impl<'a> Scene<'a> {
    pub(crate) fn new(lane: &'a Lane<'a>, seed: u64) -> Self {
        Self {
            lane,
            dice: Dice::new(seed),
            planted: Vec::new(),
            visits: Vec::new(),
            script: String::new(),
            last: String::new(),
            race: String::new(),
            planted_later: Vec::new(),
            notes: Vec::new(),
            is_blinded: false,
            restarts: Vec::new(),
            extinct: Vec::new(),
            containers: Vec::new(),
            present: Vec::new(),
            names: 0,
            ports: SERVICES.map(|service| service.first_port),
        }
    }

    /// Writes down what is true of a process.
    pub(crate) fn truth(&mut self, name: &str, kind: &'static str, intent: Intent) {
        let name = name.to_owned();
        self.planted.push(Planted { name, kind, intent, pid: None, start: 0 });
    }

    /// Adds to what root runs before anybody leaves.
    pub(crate) fn at_first(&mut self, script: impl AsRef<str>) {
        self.script.push_str(script.as_ref());
    }

    /// Adds to what root runs once everybody is in place or gone.
    pub(crate) fn at_last(&mut self, script: impl AsRef<str>) {
        self.last.push_str(script.as_ref());
    }

    /// Adds to what runs beside `reap`.
    pub(crate) fn beside_reap(&mut self, script: impl AsRef<str>) {
        self.race.push_str(script.as_ref());
    }

    /// A name that nobody else has in this scene.
    pub(crate) fn name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    /// A server of any service, with or without a port of it.
    pub(crate) fn any_server(&mut self) -> Server {
        let service = self.dice.below(SERVICES.len());
        let has_port = !self.dice.one_in(6);
        self.server(service, has_port)
    }

    /// A server of a service that is declared to run in a container, with a port.
    pub(crate) fn declared_server(&mut self) -> Server {
        let service = self.dice.pick(&[0, 3, 4]);
        self.server(service, true)
    }

    pub(crate) fn server(&mut self, service: usize, has_port: bool) -> Server {
        let name = self.name();
        let port = self.ports[service];
        self.ports[service] += 1;
        let of = SERVICES[service].name;
        let line = format!("python3 -u /app/{of}.py --config /etc/{of}.yaml");
        let listen = if has_port { format!("--listen {port} ") } else { String::new() };
        let stubborn = if self.dice.one_in(4) { "--ignore-term " } else { "" };
        let how = if self.dice.one_in(10) { "--how own-table " } else { "" };
        let words = format!("--as '{line}' {how}{listen}{stubborn}--ready /run/planted/{name}");
        Server { name, service, has_port, port, line, words }
    }

    /// A program that no pattern matches, on a guarded port or on none.
    pub(crate) fn stranger(&mut self) -> (String, String) {
        let mut server = self.any_server();
        let line = self.dice.pick(&["postgres: checkpointer", "node server.js --config", "sleep"]);
        server.words = server.words.replace(&server.line, line);
        (server.name, server.words)
    }

    /// Carries it all out and waits until everything is in place.
    pub(crate) fn set(&mut self) {
        let script = std::mem::take(&mut self.script);
        let visits = std::mem::take(&mut self.visits);
        // Those who only stay are let in first, for their shells start while the units do.
        let logins: Vec<Login> = visits
            .iter()
            .map(|visit| {
                let mut login = self.lane.test_box.login(visit.user, visit.terminal);
                login.types(&visit.line);
                login
            })
            .collect();
        self.lane.test_box.sh(&format!(". {TOOLS}\nsystemctl daemon-reload\n{script}"));
        let mut left = Vec::new();
        for (visit, login) in visits.into_iter().zip(logins) {
            let pids: Vec<u32> = visit.names.iter().map(|name| self.pid(name)).collect();
            let doomed: Vec<String> =
                visit.kills.iter().map(|name| self.pid(name).to_string()).collect();
            if !doomed.is_empty() {
                self.lane.test_box.sh(&format!("kill -KILL {}", doomed.join(" ")));
            }
            if visit.leaves {
                left.push((login, pids));
            } else {
                self.present.push(login);
            }
        }
        let mut scopes = Vec::new();
        for (login, pids) in left {
            login.leaves();
            // All of a visit are in one scope, but for those that were killed.
            let alive = pids.into_iter().find(|pid| self.lane.test_box.stat(*pid).is_some());
            scopes.push(self.lane.test_box.session_scope(alive.expect("somebody is left")));
        }
        if !scopes.is_empty() {
            self.lane.test_box.sh(&format!(
                ". {TOOLS}; for scope in {}; do until_so is_state abandoned $scope; done",
                scopes.join(" ")
            ));
        }
        if !self.notes.is_empty() {
            crate::receipts::write_all(self);
        }
        // Whoever keeps the books begins anew, and nothing is true that was not before.
        if self.dice.one_in(5) {
            let books = ["systemctl restart systemd-logind", "systemctl daemon-reexec"];
            self.last.push_str(self.dice.pick(&books));
        }
        if !self.last.is_empty() {
            self.lane.test_box.sh(&format!(". {TOOLS}\n{}", self.last));
        }
        self.collect();
        let youngest = self.planted.iter().filter(|p| p.pid.is_some()).max_by_key(|p| p.start);
        if let Some(pid) = youngest.and_then(|planted| planted.pid) {
            self.lane.test_box.wait_for_age(pid, Duration::from_millis(200));
        }
    }

    pub(crate) fn pid(&self, name: &str) -> u32 {
        let known = self.planted.iter().find(|planted| planted.name == name);
        known.and_then(|planted| planted.pid).unwrap_or_else(|| self.lane.test_box.planted(name))
    }

    /// Reads pids and starts of all that are in place.
    fn collect(&mut self) {
        let test_box = &self.lane.test_box;
        for planted in &mut self.planted {
            if planted.pid.is_none() {
                planted.pid = Some(test_box.planted(&planted.name));
            }
            let pid = planted.pid.expect("just set");
            if planted.start == 0 {
                let stat = test_box.stat(pid);
                let what = || panic!("{} '{}' (pid {pid}) lives", planted.kind, planted.name);
                planted.start = stat.unwrap_or_else(what).start;
            }
        }
    }

    /// Lets everybody go and ends whatever was planted, so that the next scene starts where this one did.
    pub(crate) fn strike(mut self) {
        let lane = self.lane;
        lane.test_box.sh(
            r#"
            # In a group of 0 we would be ourselves, out of the box and all.
            race=$(cat /run/race); [ "$race" -gt 1 ] && kill -KILL -- "-$race" || true
            for round in 1 2 3 4 5 6 7 8; do
                for folder in $(find /proc -maxdepth 2 -name exe \( -lname '*/plant' -o -lname '*/strace' -o -lname '*/ssh' -o -lname '*/plant (deleted)' \) -printf '%h ' 2>/dev/null); do
                    kill -KILL ${folder#/proc/} 2>/dev/null || true
                done
                [ $round -gt 1 ] || systemctl stop 't-*' 'u-*' 'portreeve-model-*' 2>/dev/null || true
                [ $round -gt 1 ] || runuser -u bob -- env XDG_RUNTIME_DIR=/run/user/1001 systemctl --user stop 't-*' 2>/dev/null || true
                find /proc -maxdepth 2 -name exe -lname '*/plant' 2>/dev/null | grep -q . || break
            done
            cd /run/systemd/system; rm -rf t-* u-* portreeve-model-*
            rm -rf /run/race /run/planted/* /app/* /etc/cron.d/t-* /var/lib/portreeve
            find /sys/fs/cgroup/system.slice -maxdepth 1 \( -name 't-*' -o -name 'nobodys-*' \) -exec rmdir {} + 2>/dev/null || true
            systemctl reset-failed
            runuser -u bob -- env XDG_RUNTIME_DIR=/run/user/1001 systemctl --user reset-failed
            systemctl daemon-reload
            "#,
        );
        for login in self.present.drain(..) {
            login.was_cut();
        }
        crate::contained::strike(&self);
    }

    /// Who is alive of these, by their start: nobody who got the same pid since.
    pub(crate) fn lives(&self, planted: &Planted) -> bool {
        let stat = planted.pid.and_then(|pid| self.lane.test_box.stat(pid));
        stat.is_some_and(|stat| stat.start == planted.start)
    }

    /// The pids of all processes in the box with such a part in their command line.
    pub(crate) fn alike(&self, part: &str) -> Vec<u32> {
        let mut found = Vec::new();
        let proc = self.lane.test_box.inside("/proc");
        for entry in fs::read_dir(proc).expect("procfs").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(part) && self.lane.test_box.stat(pid).is_some() {
                found.push(pid);
            }
        }
        found
    }

    /// Whether the command line of a process begins like this.
    pub(crate) fn starts_with(&self, pid: u32, word: &str) -> bool {
        let file = self.lane.test_box.inside(&format!("/proc/{pid}/cmdline"));
        fs::read(file).is_ok_and(|line| line.starts_with(word.as_bytes()))
    }

    /// Starts what runs beside `reap`.
    pub(crate) fn begin_race(&self) -> Child {
        let script =
            format!("echo $$ >/run/race; . {TOOLS}; exec 2>{RACE_SAID}\n{}\nwait", self.race);
        // A group of its own, which ends with the scene.
        let mut command = self.lane.test_box.command(&["setsid", "--wait", "bash", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let race = command.spawn().expect("tests/box/box runs");
        let file = self.lane.test_box.inside("/run/race");
        wait_until(DEADLINE, "the race begins", || file.exists());
        race
    }

    /// Waits until all of the race are in place; they may be gone again.
    pub(crate) fn await_newcomers(&mut self) {
        for planted in &mut self.planted_later {
            planted.pid = Some(self.lane.test_box.planted(&planted.name));
        }
        for (unit, times) in &self.restarts {
            wait_until(DEADLINE, &format!("{unit} was started again"), || {
                self.runs(unit).is_some_and(|runs| runs >= *times)
            });
        }
    }

    /// What went wrong in the race: nothing.
    pub(crate) fn check_race(&self) {
        let file = self.lane.test_box.inside(RACE_SAID);
        let said = fs::read_to_string(file).unwrap_or_default();
        let said: Vec<&str> = said.lines().filter(|line| !line.contains("Killed")).collect();
        assert!(said.is_empty(), "the race: {}", said.join("; "));
    }

    /// How often systemd has started a unit anew by itself, where it is up; none also while systemd itself begins anew.
    pub(crate) fn runs(&self, unit: &str) -> Option<u32> {
        let ask = ["systemctl", "show", "-P", "SubState", "-P", "NRestarts", unit];
        let output = self.lane.test_box.run(&ask);
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words: Vec<&str> = shown.split_whitespace().collect();
        words.sort_unstable();
        match words[..] {
            [runs, "running"] => runs.parse().ok(),
            _ => None,
        }
    }
}
