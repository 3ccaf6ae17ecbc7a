//! What happens while `reap` runs: exits, new runs, the same pid for somebody else, children, a new program in the same process.

use crate::{
    plantings::leave,
    scene::{Intent, PLANT, Planted, Scene, Visit},
    support::Terminal,
};
use Intent::{Ambiguous, Fleeting, Living, Orphan, Racing};

const ALL: [fn(&mut Scene<'_>); 11] = [
    restart,
    pid_reuse,
    re_exec,
    orphan_re_execs,
    brood,
    living_brood,
    newcomer,
    storm,
    logout,
    server_dies,
    blind,
];

/// Adds one.
pub(crate) fn any(scene: &mut Scene<'_>) {
    scene.dice.pick(&ALL)(scene);
}

/// A moment within a reap, in seconds: its second look comes a second after the first.
fn moment(scene: &mut Scene<'_>) -> String {
    let ms = scene.dice.below(1500);
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// A unit's main process dies, and systemd starts it again: on the same port, with the same command line.
fn restart(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    let name = &server.name;
    let unit = format!("t-{name}.service");
    scene.truth(name, "main process that dies and is started again", Fleeting);
    scene.lane.test_box.write(&format!("/app/{unit}.sh"), &format!("exec {}\n", server.command()));
    scene.lane.test_box.write(
        &format!("/run/systemd/system/{unit}"),
        &format!("[Service]\nExecStart=/bin/sh /app/{unit}.sh\nRestart=always\nRestartSec=10ms\n"),
    );
    scene.at_first(format!("systemctl start {unit}; await {name}\n"));
    let moment = moment(scene);
    scene.beside_reap(format!("(sleep {moment}; kill -KILL $(pid {name})) &\n"));
    scene.restarts.push((unit, 1));
}

/// An orphan ends, and who gets its pid is another server with the same command line and port, below a living parent.
fn pid_reuse(scene: &mut Scene<'_>) {
    let server = scene.declared_server();
    let (old, new) = (server.name.clone(), scene.name());
    leave(scene, &server, Racing, "orphan whose pid is used again");
    let words =
        server.words.replace(&format!("/run/planted/{old}"), &format!("/run/planted/{new}"));
    let moment = moment(scene);
    scene.beside_reap(format!(
        "(sleep {moment}; old=$(pid {old}); kill -KILL $old 2>/dev/null; until_so is_gone $old
          for try in $(seq 200); do
              echo $((old - 1)) >/proc/sys/kernel/ns_last_pid
              {PLANT} {words} 2>/dev/null & new=$!
              while [ $new = $old ] && kill -0 $new 2>/dev/null; do
                  [ -e /run/planted/{new} ] && break 2
                  sleep .01
              done
              kill -KILL $new 2>/dev/null; wait $new 2>/dev/null; rm -f /run/planted/{new}
          done; wait) &\n"
    ));
    let kind = "newcomer with an orphan's pid, port and command line";
    scene.planted_later.push(Planted { name: new, kind, intent: Living, pid: None, start: 0 });
}

/// A server in somebody's terminal runs itself anew.
fn re_exec(scene: &mut Scene<'_>) {
    let server = scene.any_server().with("--re-exec");
    scene.truth(&server.name, "runs itself anew in an open session", Living);
    let moment = moment(scene);
    scene.beside_reap(format!("(sleep {moment}; kill -USR1 $(pid {})) &\n", server.name));
    visit(scene, Terminal::Yes, server.command(), vec![server.name]);
}

fn orphan_re_execs(scene: &mut Scene<'_>) {
    let server = scene.declared_server().with("--re-exec");
    let moment = moment(scene);
    scene.beside_reap(format!(
        "(sleep {moment}; kill -USR1 $(pid {}) 2>/dev/null) &\n",
        server.name
    ));
    leave(scene, &server, Racing, "orphan that runs itself anew");
}

/// An orphan has children all the time, with its port and its command line.
fn brood(scene: &mut Scene<'_>) {
    let mut server = scene.declared_server();
    let marked = format!("{} --of {}", server.line, server.name);
    // What a thread has in a table of its own is not inherited.
    server.words = server.words.replace(&server.line, &marked).replace("--how own-table ", "");
    let server = server.with("--inherit --brood 40:70");
    leave(scene, &server, Orphan, "orphan with ever more children");
    scene.extinct.push(format!("--of {}", server.name));
}

/// Somebody starts another one of the ended in a session that is over, after the reap began: it is reported, and lives.
fn newcomer(scene: &mut Scene<'_>) {
    let host = scene.server(1, true);
    let (place, server) = (host.name.clone(), scene.declared_server());
    leave(scene, &host, Ambiguous, "left by a login");
    let new = server.name.clone();
    let ms = scene.dice.below(1000);
    scene.beside_reap(format!(
        "(await reap-began; sleep .3; sleep 0.{ms:03}; {}; beside {new} {place}) &\n",
        server.daemonised()
    ));
    let kind = "newcomer, started after the reap began";
    scene.planted_later.push(Planted { name: new, kind, intent: Living, pid: None, start: 0 });
}

/// Pids go by quickly.
fn storm(scene: &mut Scene<'_>) {
    scene.beside_reap("(for i in $(seq 400); do /bin/true; done) &\n");
}

/// A server in somebody's terminal has children all the time.
fn living_brood(scene: &mut Scene<'_>) {
    let server = scene.declared_server().with("--inherit --brood 40:70");
    scene.truth(&server.name, "in an open session, with ever more children", Living);
    visit(scene, Terminal::Yes, server.command(), vec![server.name]);
}

fn visit(scene: &mut Scene<'_>, terminal: Terminal, line: String, names: Vec<String>) {
    let kills = Vec::new();
    scene.visits.push(Visit { user: "alice", terminal, line, names, kills, leaves: false });
}

/// A session ends while it is looked at.
fn logout(scene: &mut Scene<'_>) {
    let server = scene.any_server();
    let intent = if server.once_left() == Orphan { Racing } else { Ambiguous };
    scene.truth(&server.name, "in a session that ends meanwhile", intent);
    let line = format!("nohup {} >/dev/null 2>&1 </dev/null &", server.command());
    let moment = moment(scene);
    scene.beside_reap(format!(
        "(sleep {moment}; shell=$(ps -o ppid= -p $(pid {})); [ $shell -gt 1 ] && kill -KILL $shell) &\n",
        server.name
    ));
    visit(scene, Terminal::No, line, vec![server.name]);
}

/// An inference server dies while its worker is looked at.
fn server_dies(scene: &mut Scene<'_>) {
    let (server, worker) = (scene.name(), scene.name());
    let line = format!(
        "{PLANT} --as 'python3 -m vllm serve some/model' --ready /run/planted/{server} \
         --child --title VLLM::EngineCore --ready /run/planted/{worker}"
    );
    scene.truth(&worker, "worker whose server dies meanwhile", Racing);
    let moment = moment(scene);
    scene.beside_reap(format!("(sleep {moment}; kill -KILL $(pid {server})) &\n"));
    visit(scene, Terminal::Yes, line, vec![worker, server]);
}

/// systemd or logind begin anew while they are asked.
fn blind(scene: &mut Scene<'_>) {
    let moment = moment(scene);
    let who = scene.dice.pick(&["daemon-reexec", "restart systemd-logind", "daemon-reload"]);
    scene.beside_reap(format!("(sleep {moment}; systemctl {who}) &\n"));
    scene.is_blinded = true;
}
