//! What is planted without an engine: logins, units, cron, trees of processes. Each planting writes down what is true of what it plants.

use crate::{
    receipts,
    scene::{DECLARED_UNIT, Intent, PLANT, SERVICES, Scene, Server, Visit},
    support::Terminal,
};
use Intent::{Ambiguous, Living, Orphan};

const QUIET: &str = ">/dev/null 2>&1 </dev/null";

type Planting = fn(&mut Scene<'_>);

/// Each with its weight.
const ALL: [(usize, Planting); 24] = [
    (3, present),
    (5, left),
    (2, left_with_child),
    (1, lingering),
    (1, pane),
    (1, traced),
    (2, dead_script),
    (2, worker),
    (3, unit),
    (2, forking_unit),
    (2, runner),
    (2, dead_unit),
    (2, restarted_unit),
    (1, survivor),
    (1, unknown_unit),
    (2, users_unit),
    (1, scope),
    (1, cron),
    (1, by_hand),
    (1, subreaper),
    (1, sandbox),
    (1, others_in_a_session),
    (1, shared_port),
    (3, receipts::plant),
];

/// Plants something.
pub(crate) fn any(scene: &mut Scene<'_>) {
    let total = ALL.iter().map(|(weight, _)| weight).sum();
    let mut at = scene.dice.below(total);
    for (weight, plant) in ALL {
        if at < weight {
            return plant(scene);
        }
        at -= weight;
    }
}

fn visit(
    scene: &mut Scene<'_>,
    user: &'static str,
    terminal: Terminal,
    line: String,
    names: Vec<String>,
    leaves: bool,
) {
    scene.visits.push(Visit { user, terminal, line, names, kills: Vec::new(), leaves });
}

/// Somebody is logged in and has a server there: in the foreground, in the background, in a session of its own.
fn present(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    let user = scene.dice.pick(&["alice", "bob"]);
    let (terminal, line) = match scene.dice.below(4) {
        0 => (Terminal::Yes, server.command()),
        1 => (Terminal::Yes, format!("{} &", server.command())),
        2 => (Terminal::No, format!("(setsid {} {QUIET} &)", server.command())),
        _ => (Terminal::No, format!("nohup {} {QUIET} &", server.command())),
    };
    scene.truth(&server.name, "in an open session", Living);
    visit(scene, user, terminal, line, vec![server.name], false);
}

/// How a server is started so that it outlives the login.
fn to_be_left(scene: &mut Scene<'_>, command: &str) -> (Terminal, String) {
    match scene.dice.below(3) {
        0 => (Terminal::Yes, format!("nohup {command} {QUIET} &")),
        1 => (Terminal::No, format!("nohup {command} {QUIET} &")),
        _ => (Terminal::No, format!("(setsid {command} {QUIET} &)")),
    }
}

/// Left behind by a login that is over, of a user whose processes may not stay.
fn left(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    let intent = server.once_left();
    leave(scene, &server, intent, "left by a login");
}

pub(crate) fn leave(scene: &mut Scene<'_>, server: &Server, intent: Intent, kind: &'static str) {
    let (terminal, line) = to_be_left(scene, &server.command());
    scene.truth(&server.name, kind, intent);
    visit(scene, "alice", terminal, line, vec![server.name.clone()], true);
}

/// The same with a child, which is judged by itself.
fn left_with_child(scene: &mut Scene<'_>) {
    let mut server = scene.any_server();
    let parent = server.once_left();
    let is_session_leader = scene.dice.one_in(3);
    let setsid = if is_session_leader { "--setsid " } else { "" };
    let (name, words, intent) = match scene.dice.below(5) {
        // A fellow goes with its server; another's child is judged once its parent is gone.
        0 => {
            let has_port = !scene.dice.one_in(4);
            let child = scene.server(server.service, has_port);
            let intent =
                if is_session_leader && parent != Orphan { Ambiguous } else { child.once_left() };
            (child.name, child.words, intent)
        }
        1 => {
            let child = scene.any_server();
            let is_fellow = child.service == server.service && !is_session_leader;
            let intent = if parent == Orphan || is_fellow { child.once_left() } else { Ambiguous };
            (child.name, child.words, intent)
        }
        2 => {
            let (name, words) = scene.stranger();
            (name, words, Ambiguous)
        }
        // It has its parent's socket, and nothing else of it.
        3 => {
            let name = scene.name();
            server = server.with("--inherit");
            let words = format!("--as 'node server.js' --ready /run/planted/{name}");
            (name, words, Ambiguous)
        }
        _ => {
            let name = scene.name();
            let words = format!("--title VLLM::EngineCore --ready /run/planted/{name}");
            (name, words, if parent == Orphan { Orphan } else { Ambiguous })
        }
    };
    server = server.with(&format!("--child {setsid}{words}"));
    scene.truth(&name, "child of what a login left", intent);
    leave(scene, &server, parent, "left by a login, with a child");
}

/// bob's processes may stay when he logs out.
fn lingering(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    let (terminal, line) = to_be_left(scene, &server.command());
    scene.truth(&server.name, "left by a user who lingers", Ambiguous);
    visit(scene, "bob", terminal, line, vec![server.name], true);
}

fn pane(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    scene.truth(&server.name, "in a tmux pane, its owner gone", Living);
    let line = format!("tmux -L {} new-session -d \"{}\"", server.name, server.command());
    visit(scene, "alice", Terminal::Yes, line, vec![server.name], true);
}

/// Somebody looks into what would be an orphan.
fn traced(scene: &mut Scene<'_>) {
    let server = scene.declared_server();
    leave(scene, &server, Living, "traced by somebody");
    scene.at_last(format!(
        "pid=$(pid {}); setsid strace -qq -p $pid -o /dev/null {QUIET} & \
         until_so is_traced $pid\n",
        server.name
    ));
}

/// A script without job control started server, database and sleep in one process group, and died.
fn dead_script(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    let (other, words) = scene.stranger();
    let leader = scene.name();
    let script = format!("/app/{leader}.sh");
    scene.lane.test_box.write(
        &script,
        &format!(
            "{} &\n{PLANT} {words} &\necho $$ >/run/planted/{leader}; wait\n",
            server.command()
        ),
    );
    let intent = server.once_left();
    scene.truth(&server.name, "in a dead script's group", intent);
    scene.truth(&other, "a stranger in a dead script's group", Ambiguous);
    let line = format!("nohup sh {script} {QUIET} &");
    let names = vec![leader.clone(), server.name, other];
    scene.visits.push(Visit {
        user: "alice",
        terminal: Terminal::No,
        line,
        names,
        kills: vec![leader],
        leaves: true,
    });
}

/// An inference server and its worker; the server is killed, or is not.
fn worker(scene: &mut Scene<'_>) {
    let (server, worker) = (scene.name(), scene.name());
    let setsid = if scene.dice.one_in(2) { "--setsid " } else { "" };
    let command = format!(
        "{PLANT} --as 'python3 -m vllm serve some/model' --ready /run/planted/{server} \
         --child {setsid}--title VLLM::EngineCore --ready /run/planted/{worker}"
    );
    let is_killed = scene.dice.one_in(2);
    let user = scene.dice.pick(&["alice", "bob"]);
    let terminal = scene.dice.pick(&[Terminal::Yes, Terminal::No]);
    let intent = if is_killed { Orphan } else { Living };
    let kind = if is_killed { "worker of a dead server" } else { "worker of a living server" };
    scene.truth(&worker, kind, intent);
    let mut names = vec![worker];
    let mut kills = Vec::new();
    if is_killed {
        kills.push(server.clone());
        names.push(server);
    } else {
        scene.truth(&server, "inference server in an open session", Living);
        names.push(server);
    }
    let line = format!("{command} {}", if terminal == Terminal::No { "&" } else { "" });
    scene.visits.push(Visit { user, terminal, line, names, kills, leaves: false });
}

/// Writes a unit of the scene and what starts it.
fn write_unit(scene: &mut Scene<'_>, unit: &str, text: &str, script: Option<&str>) {
    let test_box = &scene.lane.test_box;
    if let Some(script) = script {
        test_box.write(&format!("/app/{unit}.sh"), script);
    }
    test_box.write(&format!("/run/systemd/system/{unit}"), &format!("[Service]\n{text}\n"));
    scene.at_first(format!("systemctl start {unit}\n"));
}

/// A living unit: its main process, a child of that, a helper that its script daemonised.
fn unit(scene: &mut Scene<'_>) {
    let (main, child, helper) = (scene.any_server(), scene.any_server(), scene.any_server());
    let unit = format!("t-{}.service", main.name);
    let kind = scene.dice.pick(&["simple", "exec", "oneshot"]);
    let mode = scene.dice.pick(&["control-group", "mixed", "process", "none"]);
    let user = scene.dice.pick(&["", "User=alice\n", "Delegate=yes\n"]);
    scene.truth(&helper.name, "a living unit's daemonised helper", Living);
    let script = format!("/app/{unit}.sh");
    let head = format!("Type={kind}\nKillMode={mode}\n{user}ExecStart=/bin/sh {script}");
    if kind == "oneshot" {
        let text = format!("{head}\nRemainAfterExit=yes");
        write_unit(scene, &unit, &text, Some(&format!("{} {QUIET}\n", helper.daemonised())));
    } else {
        scene.truth(&main.name, "main process of a living unit", Living);
        scene.truth(&child.name, "child of a unit's main process", Living);
        let (main, words) = (main.command(), child.words);
        let text = format!("{} {QUIET}\nexec {main} --child {words}\n", helper.daemonised());
        write_unit(scene, &unit, &head, Some(&text));
    }
}

/// Type=forking without PIDFile=: with two processes systemd cannot tell which is the main one; with one it guesses.
fn forking_unit(scene: &mut Scene<'_>) {
    let count = scene.dice.pick(&[1, 2, 2]);
    let servers: Vec<Server> = (0..count).map(|_| scene.any_server()).collect();
    let start = |server: &Server| {
        let ready = format!("/run/planted/{}", server.name);
        format!("{} {QUIET}\nuntil [ -e {ready} ]; do sleep 0.02; done\n", server.daemonised())
    };
    let script: String = servers.iter().map(start).collect();
    for server in &servers {
        scene.truth(&server.name, "in a forking unit", Living);
    }
    let unit = format!("t-{}.service", servers[0].name);
    let text = format!("Type=forking\nExecStart=/bin/sh /app/{unit}.sh");
    write_unit(scene, &unit, &text, Some(&script));
}

/// What a CI runner's job left, while the runner's unit lives.
fn runner(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    let unit = format!("t-{}.service", server.name);
    scene.truth(&server.name, "left by a job of a living runner", Living);
    let script = format!("(setsid {} &)\nexec sleep infinity\n", server.command());
    let text = format!("ExecStart=/bin/sh /app/{unit}.sh\nKillMode=process");
    write_unit(scene, &unit, &text, Some(&script));
    scene.at_first(format!("await {}\n", server.name));
}

/// The unit in which a service is declared to run is there once in a scene.
fn own_unit(scene: &mut Scene<'_>, name: &str) -> (String, Option<usize>) {
    let is_taken = scene.script.contains(DECLARED_UNIT);
    if is_taken || scene.dice.one_in(2) {
        return (format!("t-{name}.service"), None);
    }
    let declared = SERVICES.iter().position(|service| service.runs_in.contains(DECLARED_UNIT));
    (DECLARED_UNIT.to_owned(), declared)
}

/// A oneshot that leaves a server on purpose, or a service that failed: nobody can tell, unless the service is declared to live and
/// die with it.
fn dead_unit(scene: &mut Scene<'_>) {
    let name = scene.name();
    let (unit, declared) = own_unit(scene, &name);
    let server = match declared {
        Some(service) if !scene.dice.one_in(3) => scene.server(service, true),
        Some(_) | None => scene.any_server(),
    };
    let is_its = declared == Some(server.service);
    let intent = if is_its { Orphan } else { Ambiguous };
    scene.truth(&server.name, "left by a dead unit with KillMode=process", intent);
    let (kind, end) = scene.dice.pick(&[("oneshot", ""), ("simple", "\nexit 3")]);
    let script = format!(
        "setsid {} &\nuntil [ -e /run/planted/{} ]; do sleep 0.02; done{end}\n",
        server.command(),
        server.name
    );
    let text = format!("Type={kind}\nExecStart=/bin/sh /app/{unit}.sh\nKillMode=process");
    write_unit(scene, &unit, &text, Some(&script));
    scene.at_first(format!("is_over() {{ ! systemctl is-active -q {unit}; }}; until_so is_over\n"));
}

/// A unit with KillMode=process was started anew: what its earlier run left is known by a declaration alone.
fn restarted_unit(scene: &mut Scene<'_>) {
    let name = scene.name();
    let (unit, declared) = own_unit(scene, &name);
    let service = declared.unwrap_or_else(|| scene.dice.below(SERVICES.len()));
    let (old, new) = (scene.server(service, true), scene.server(service, true));
    let intent = if declared.is_some() { Orphan } else { Ambiguous };
    scene.truth(&old.name, "left by a unit's earlier run", intent);
    scene.truth(&new.name, "main process of a unit's second run", Living);
    let script = format!(
        "[ -e /run/planted/{0} ] && exec {1}\n(setsid {2} &)\nexec sleep infinity\n",
        old.name,
        new.command(),
        old.command()
    );
    let text = format!("ExecStart=/bin/sh /app/{unit}.sh\nKillMode=process");
    write_unit(scene, &unit, &text, Some(&script));
    scene.at_first(format!("await {0}\nsystemctl restart {unit}\n", old.name));
}

/// In the control group of a service that systemd has ended whole.
fn survivor(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    let name = &server.name;
    let unit = format!("t-{name}.service");
    scene.truth(name, "survived the end of its unit", Orphan);
    scene.lane.test_box.write(
        &format!("/run/systemd/system/{unit}"),
        "[Service]\nExecStart=/bin/sleep infinity\n",
    );
    scene.at_first(format!(
        "systemctl start {unit}; systemctl stop {unit}\n{}\ninto {name} system.slice/{unit}\n",
        server.daemonised()
    ));
}

fn unknown_unit(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    let name = &server.name;
    scene.truth(name, "in a unit that systemd does not know", Ambiguous);
    scene.at_first(format!(
        "{}\ninto {name} system.slice/nobodys-{name}.service\n",
        server.daemonised()
    ));
}

/// A unit of bob's manager: its main process, what it left while it lives, what it left when it died.
fn users_unit(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    let name = server.name.clone();
    let (kind, intent, script) = match scene.dice.below(3) {
        0 => ("main process of a user's unit", Living, format!("exec {}\n", server.command())),
        1 => (
            "left by a job of a user's living unit",
            Living,
            format!("setsid {} &\nexec sleep infinity\n", server.command()),
        ),
        _ => (
            "left by a user's dead unit",
            Ambiguous,
            format!(
                "setsid {} &\nuntil [ -e /run/planted/{name} ]; do sleep 0.02; done\n",
                server.command()
            ),
        ),
    };
    scene.truth(&name, kind, intent);
    scene.lane.test_box.write(&format!("/app/{name}.sh"), &script);
    scene.at_first(format!(
        "runuser -u bob -- env XDG_RUNTIME_DIR=/run/user/1001 systemd-run --user --quiet --unit=t-{name} \
         -p KillMode=process sh /app/{name}.sh\n"
    ));
}

/// A scope names no main process.
fn scope(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    scene.truth(&server.name, "in a scope", Living);
    let command = scene.dice.pick(&[true, false]);
    let command =
        if command { server.daemonised() } else { format!("setsid {} &", server.command()) };
    scene.lane.test_box.write(&format!("/app/{}.sh", server.name), &format!("{command}\n"));
    scene.at_first(format!(
        "systemd-run --quiet --scope --unit=t-{0} sh /app/{0}.sh {QUIET}\n",
        server.name
    ));
}

/// A job of cron's, and what a job left.
fn cron(scene: &mut Scene<'_>) {
    let (running, left) = (scene.any_server(), scene.any_server());
    let name = &running.name;
    scene.truth(name, "a job of cron's", Living);
    scene.truth(&left.name, "left by a job of cron's", Living);
    let (script, table) = (format!("/app/{name}.sh"), format!("/etc/cron.d/t-{name}"));
    scene
        .lane
        .test_box
        .write(&script, &format!("(setsid {} {QUIET} &)\n{}\n", left.command(), running.command()));
    scene.lane.test_box.write(&table, &format!("@reboot alice sh {script}\n"));
    // Another's table would run a second time.
    scene.at_first(format!(
        "rm -f /run/crond.reboot; systemctl restart cron; await {name} {}; rm {table}\n",
        left.name
    ));
}

/// By root, outside of any session: below a living parent, or daemonised.
fn by_hand(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    if scene.dice.one_in(2) {
        scene.truth(&server.name, "below a living parent", Living);
        scene.at_first(format!("setsid bash -c \"{} & wait\" {QUIET} &\n", server.command()));
    } else {
        scene.truth(&server.name, "daemonised by root", Ambiguous);
        scene.at_first(format!("{}\n", server.daemonised()));
    }
}

/// A supervisor that adopts what its children leave looks after it, though the login is over.
fn subreaper(scene: &mut Scene<'_>) {
    let (server, supervisor) = (scene.any_server(), scene.name());
    let command = format!(
        "{PLANT} --as supervisord --subreaper --ready /run/planted/{supervisor} --child --daemonise {}",
        server.words
    );
    scene.truth(&server.name, "adopted by a living supervisor", Living);
    scene.truth(&supervisor, "a supervisor, its login over", Ambiguous);
    let (terminal, line) = to_be_left(scene, &command);
    visit(scene, "alice", terminal, line, vec![server.name, supervisor], true);
}

/// In a pid namespace that no engine made; whoever made it is killed, or is not.
fn sandbox(scene: &mut Scene<'_>) {
    let (name, server) = (scene.name(), scene.declared_server());
    // Inside it has another pid, and its file is not waited for.
    let words = server.words.replace(&server.line, &format!("{} --of {name}", server.line));
    scene.at_first(format!(
        "setsid unshare --pid --fork --mount-proc {PLANT} {words} {QUIET} & maker=$!\n\
         await {}; pgrep -o -f -- '^python3.*--of {name}' >/run/planted/{name}\n",
        server.name
    ));
    if scene.dice.one_in(2) {
        scene.at_first("kill -KILL $maker\n");
        scene.truth(&name, "in a sandbox whose maker is dead", Ambiguous);
    } else {
        scene.truth(&name, "in a sandbox", Living);
    }
}

/// In the scope of a session that is over, but of another user. Who lingers on either side may have meant it.
fn others_in_a_session(scene: &mut Scene<'_>) {
    let (place, server) = (scene.server(1, true), scene.any_server());
    let (host, user) = scene.dice.pick(&[("alice", "bob"), ("bob", "alice"), ("alice", "daemon")]);
    let (terminal, line) = to_be_left(scene, &place.command());
    scene.truth(&place.name, "left by a login", Ambiguous);
    visit(scene, host, terminal, line, vec![place.name.clone()], true);
    let may_stay = [host, user].contains(&"bob");
    let intent = if may_stay { Ambiguous } else { server.once_left() };
    scene.truth(&server.name, "another user's in a session that is over", intent);
    scene.at_last(format!(
        "setpriv --reuid {user} --regid {user} --clear-groups {} {QUIET}; beside {1} {2}\n",
        server.daemonised(),
        server.name,
        place.name
    ));
}

/// Somebody at a terminal and what an earlier login left share one port.
fn shared_port(scene: &mut Scene<'_>) {
    let (old, new) = (scene.declared_server(), scene.name());
    let share = |words: &str| words.replace("--listen", "--reuse-port --listen");
    let old = Server { words: share(&old.words), ..old };
    let words = old.words.replace(&format!("planted/{}", old.name), &format!("planted/{new}"));
    leave(scene, &old, Orphan, "left by a login, its port shared with a living one");
    scene.truth(&new, "in an open session, its port shared with an orphan", Living);
    visit(scene, "alice", Terminal::Yes, format!("{PLANT} {words}"), vec![new], false);
}
