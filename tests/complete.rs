//! What a shell gets at TAB, asked as the scripts for bash, zsh and fish ask; and once by a real bash.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, not their helpers"
)]

mod support;

use std::{fs, process::Output};

use support::{skip, stage::Stage};

/// A service beside those of the default, and models; one value is wrong, which no TAB complains of.
const CONFIG: &str = "
services: { web: { ports: [7400], grace: soon }, redis: { enabled: false } }
models: { declared: { backend: vllm, model: m, port: 7401 }, dropped: { enabled: false, backend: vllm } }
compose: /nowhere/compose.yaml
";

/// A stage with an `/etc` and a `/var/lib` of its own.
struct Place(Stage);

impl Place {
    fn set() -> Option<Self> {
        let stage = Stage::set().map_err(|reason| skip(&reason)).ok()?;
        for folder in ["etc", "etc/portreeve", "lib"] {
            fs::create_dir(stage.path(folder)).unwrap();
        }
        stage.write("etc/portreeve/config.yaml", CONFIG);
        Some(Self(stage))
    }

    /// The program by a script that ends in words before it.
    fn by(&self, script: &str, words: &[&str]) -> Output {
        let [etc, lib] = ["etc", "lib"].map(|folder| self.0.path(folder));
        let (etc, lib) = (etc.display(), lib.display());
        let script = format!("mount --bind {etc} /etc; mount --bind {lib} /var/lib; {script}");
        self.0.portreeve_by(&script, words).output().unwrap()
    }

    fn register(&self, name: &str, port: &str) {
        let config = self.0.write("empty.yaml", "");
        self.0.write("etc/portreeve/config.yaml", "");
        let words = ["model", "--config", &config, "register", name, "--backend", "vllm"];
        let words = [&words[..], &["--path", "m", "--port", port]].concat();
        let output = self.by("exec", &words);
        assert!(output.status.success(), "{output:?}");
        self.0.write("etc/portreeve/config.yaml", CONFIG);
    }

    /// What the shell is told for the last of these words, options left out.
    fn complete(&self, shell: &str, words: &[&str]) -> Vec<String> {
        let index = words.len();
        let variables = format!("COMPLETE={shell} _CLAP_COMPLETE_INDEX={index} _CLAP_IFS='\n'");
        let words = [&["--", "portreeve"], words].concat();
        let output = self.by(&format!("exec env {variables}"), &words);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        // What stands behind a value tells a person what it is.
        let value = |line: &str| line.split(['\t', ':']).next().unwrap().to_owned();
        said.lines().map(value).filter(|name| !name.is_empty() && !name.starts_with('-')).collect()
    }

    /// Every file below `/var/lib`, with when it was changed.
    fn written(&self) -> Vec<(String, std::time::SystemTime)> {
        let mut all = Vec::new();
        let mut folders = vec![self.0.path("lib")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let changed = fs::metadata(&path).unwrap().modified().unwrap();
                all.push((path.display().to_string(), changed));
                folders.extend(path.is_dir().then_some(path));
            }
        }
        all.sort();
        all
    }
}

#[test]
fn every_shell_is_told_the_models_and_services_that_there_are_and_nothing_is_written() {
    let Some(place) = Place::set() else { return };
    assert_eq!(place.complete("bash", &["model", "show", ""]), ["declared"]);
    assert!(place.written().is_empty(), "no registry is made");
    place.register("llama-70b", "7402");
    place.register("llama-8b", "7403");
    let before = place.written();
    for shell in ["bash", "zsh", "fish"] {
        let models = ["declared", "llama-70b", "llama-8b"];
        for verb in ["start", "stop", "restart", "status", "health", "logs", "show", "events"] {
            let found = place.complete(shell, &["model", verb, ""]);
            assert!(models.iter().all(|name| found.contains(&(*name).to_owned())), "{found:?}");
            assert!(!found.contains(&"dropped".to_owned()), "{found:?}");
        }
        let found = place.complete(shell, &["model", "unregister", "llama-7"]);
        assert_eq!(found, ["llama-70b"]);
        // One that is not there yet cannot be known.
        assert_eq!(place.complete(shell, &["model", "register", "llama-7"]), [""; 0]);
        for verb in ["scan", "reap", "gate"] {
            let found = place.complete(shell, &[verb, ""]);
            for name in models.iter().chain(&["aidb", "web"]) {
                assert!(found.contains(&(*name).to_owned()), "{shell} {verb}: {found:?}");
            }
            assert!(!found.contains(&"redis".to_owned()), "{found:?}");
            assert_eq!(place.complete(shell, &[verb, "web", "mind"]), ["mindsdb"]);
        }
        let backends = place.complete(shell, &["model", "register", "x", "--backend", ""]);
        assert_eq!(backends, ["llamacpp", "ollama", "sglang", "tgi", "vllm"]);
        assert!(place.complete(shell, &["sc"]).contains(&"scan".to_owned()));
    }
    assert_eq!(place.written(), before);
}

#[test]
fn what_cannot_be_read_completes_nothing_and_says_nothing() {
    let Some(place) = Place::set() else { return };
    fs::create_dir(place.0.path("lib/portreeve")).unwrap();
    place.0.write("lib/portreeve/models.db", "no database");
    place.0.write("etc/portreeve/config.yaml", "models: [");
    assert_eq!(place.complete("bash", &["model", "show", ""]), [""; 0]);
    assert_eq!(place.complete("bash", &["scan", "mind"]), ["mindsdb"], "the default's");
}

#[test]
fn a_variable_that_was_left_behind_keeps_no_verb_from_its_work() {
    let Some(place) = Place::set() else { return };
    place.0.write("etc/portreeve/config.yaml", "gate: { timeout: 0s }");
    let holder = place.0.plant(&["--listen", "7404"]);
    let gate = ["gate", "--port", "7404", "--", "true"];
    for shell in ["bash", "0", "", "pwsh"] {
        let output = place.by(&format!("exec env COMPLETE={shell}"), &gate);
        assert_ne!(output.status.code(), Some(0), "COMPLETE={shell}: {output:?}");
    }
    drop(holder);
    let output = place.by("exec env COMPLETE=bash", &["--version"]);
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("portreeve "));
}

#[test]
fn a_shell_that_is_not_known_is_told_of_at_the_script_and_not_at_a_tab() {
    let Some(place) = Place::set() else { return };
    let script = place.by("exec env COMPLETE=tcsh", &[]);
    assert_eq!((script.status.code(), script.stdout.len()), (Some(2), 0), "{script:?}");
    assert!(String::from_utf8(script.stderr).unwrap().contains("tcsh"));
    let tab = place.by("exec env COMPLETE=tcsh", &["--", "portreeve", "model", "show", ""]);
    assert_eq!(tab.status.code(), Some(2));
    assert!(tab.stdout.is_empty() && tab.stderr.is_empty(), "{tab:?}");
}

#[test]
fn a_real_bash_completes_a_model_by_the_script() {
    let Some(place) = Place::set() else { return };
    place.register("llama-70b", "7402");
    let script = r#"
exec bash --norc -euc '
source <(COMPLETE=bash "$1")
complete -p portreeve >/dev/null
COMP_WORDS=("$1" model show llama) COMP_CWORD=3 COMP_TYPE=9
_clap_complete_portreeve "$1" llama show
echo "${COMPREPLY[@]}"' bash"#;
    let output = place.by(script.trim(), &[]);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        "llama-70b",
        "{:?}",
        output.stderr
    );
}
