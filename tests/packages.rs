//! The packages (Cargo.toml, docs/install.md) on a machine with a real systemd: installed, upgraded and removed by dpkg and by
//! rpm, with what people call to see what came of it: systemctl, journalctl, man, and three shells at TAB.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use support::{
    TestBox,
    packaging::{folder, shipped},
    skip,
};

const PACKAGE: &str = "/root/portreeve-package";
/// What can be enabled, as the package's scripts know it, too.
const UNITS: [&str; 4] = [
    "portreeve-boot.service",
    "portreeve-models.service",
    "portreeve-shutdown.service",
    "portreeve-sweep.timer",
];
/// Written by an operator.
const SETTINGS: &str = "services: { web: { ports: [8508] } }\n";

/// The two forms of a package.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Deb,
    Rpm,
}

impl Form {
    /// Makes a package of the program under test, of this version; the reason where it cannot be made here.
    fn make(self, version: &str, folder: &Path) -> Result<PathBuf, String> {
        let built = Path::new(env!("CARGO_BIN_EXE_portreeve"));
        let tools = built.ancestors().nth(2).unwrap().join("tools/bin");
        let tool = tools.join(match self {
            Self::Deb => "cargo-deb",
            Self::Rpm => "cargo-generate-rpm",
        });
        if !tool.exists() {
            return Err(format!("'{}' is not there: tests/tools builds it", tool.display()));
        }
        // As after 'cargo build --release', which would take minutes.
        let release = folder.join("release");
        fs::create_dir_all(&release).unwrap();
        let mut strip = Command::new("strip");
        succeed(&strip.arg("-o").arg(release.join("portreeve")).arg(built).output().unwrap());
        let package = folder.join(match self {
            Self::Deb => "portreeve.deb",
            Self::Rpm => "portreeve.rpm",
        });
        let mut make = Command::new(tool);
        make.current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_TARGET_DIR", folder);
        make.arg("--output").arg(&package);
        match self {
            Self::Deb => make.args(["--no-build", "--no-strip", "--no-dbgsym", "--fast"]),
            Self::Rpm => make.args(["--payload-compress", "none"]),
        };
        match self {
            Self::Deb => make.args(["--deb-version", version]),
            Self::Rpm => make.args(["--set-metadata", &format!("version = \"{version}\"")]),
        };
        succeed(&make.output().unwrap());
        Ok(package)
    }

    /// The command that installs or upgrades.
    fn install(self) -> &'static str {
        match self {
            Self::Deb => "dpkg --install",
            // Debian's rpm knows nothing of what dpkg installed.
            Self::Rpm => "rpm --upgrade --nodeps",
        }
    }

    fn remove(self) -> &'static str {
        match self {
            Self::Deb => "dpkg --remove portreeve",
            Self::Rpm => "rpm --erase portreeve",
        }
    }

    /// Where a file of the repository's tree lies once it is installed.
    fn place(self, file: &str) -> String {
        match self {
            Self::Deb if file.contains("/man/") => format!("{file}.gz"),
            Self::Deb => file.replace("/site-functions/", "/vendor-completions/"),
            Self::Rpm => file.to_owned(),
        }
    }
}

fn succeed(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A box with nothing of ours in it but a package that is not installed yet.
struct Clean {
    form: Form,
    test_box: TestBox,
}

impl Clean {
    fn boot(form: Form, name: &str) -> Option<Self> {
        let test_box = TestBox::boot(name).map_err(|reason| skip(&reason)).ok()?;
        // The box was built without manuals and documents.
        test_box.sh("rm /etc/dpkg/dpkg.cfg.d/*");
        test_box.unit(
            "witness.service",
            "[Service]\nType=oneshot\nExecStart=true\nRemainAfterExit=yes\n",
        );
        test_box.sh("systemctl start witness.service");
        Some(Self { form, test_box })
    }

    /// Installs this version; none, said aloud, where no package can be made.
    fn install(&self, version: &str) -> Option<()> {
        let folder = tempfile::tempdir().unwrap();
        let package =
            self.form.make(version, folder.path()).map_err(|reason| skip(&reason)).ok()?;
        fs::copy(package, self.test_box.inside(PACKAGE)).unwrap();
        self.without_reload(&format!("{} {PACKAGE}", self.form.install()));
        Some(())
    }

    fn remove(&self) {
        self.without_reload(self.form.remove());
    }

    /// Runs a command that has nothing to complain of, and has systemd read no unit anew: one that was changed before is still
    /// not the one that it knows.
    fn without_reload(&self, command: &str) {
        let needs_reload = "systemctl show --property=NeedDaemonReload --value witness.service";
        let armed = format!("touch /run/systemd/system/witness.service; {needs_reload}");
        assert_eq!(self.test_box.sh(&armed), "yes");
        let said = self.test_box.sh(&format!("{command} 2>&1")).to_lowercase();
        // Of changed settings rpm says where it keeps them.
        let mut said = said.lines().filter(|line| !line.ends_with(".rpmsave"));
        let complaint = said.find(|line| line.contains("warn") || line.contains("error"));
        assert_eq!(complaint, None);
        assert_eq!(self.test_box.sh(needs_reload), "yes", "systemd was reloaded");
    }

    /// Each unit that can be enabled, with whether it is.
    fn enabled(&self) -> Vec<(&'static str, String)> {
        let is_enabled = |unit| self.test_box.sh(&format!("systemctl is-enabled {unit} || true"));
        UNITS.into_iter().map(|unit| (unit, is_enabled(unit))).collect()
    }

    fn settings(&self) -> String {
        fs::read_to_string(self.test_box.inside("/etc/portreeve/config.yaml")).unwrap()
    }

    /// Everything of ours that is to be seen by its name, links that lead nowhere included.
    fn traces(&self) -> BTreeSet<String> {
        let found = self.test_box.sh(
            "find /etc /usr /var /run -xdev -iname '*portreeve*' -not -path '/var/lib/dpkg/*' \
             -not -path '/var/lib/rpm/*' -not -path '/run/systemd/*'",
        );
        found.lines().map(str::to_owned).collect()
    }

    fn everything_is_in_its_place(&self) {
        for file in shipped() {
            let place = self.form.place(&file);
            self.test_box.sh(&format!("test -f '{place}'"));
        }
        let changed = self.test_box.sh(&match self.form {
            Form::Deb => "dpkg --verify portreeve".to_owned(),
            Form::Rpm => "rpm --verify --nodeps portreeve".to_owned(),
        });
        assert_eq!(changed, "", "nothing differs from what was packed");
    }

    fn nothing_is_enabled_or_runs(&self) {
        assert!(
            self.enabled().iter().all(|(_, state)| state == "disabled"),
            "{:?}",
            self.enabled()
        );
        let global = "systemctl --global is-enabled portreeve-models.service || true";
        assert_eq!(self.test_box.sh(global), "disabled");
        let loaded = "systemctl show --property=LoadState --value portreeve-gate@web.service";
        assert_eq!(self.test_box.sh(loaded), "loaded", "it is found without a reload");
        let runs = "systemctl list-units --no-legend --plain 'portreeve*'";
        assert_eq!(self.test_box.sh(runs), "");
    }

    /// The settings that are shipped change nothing.
    fn the_default_is_in_effect(&self) {
        let with = self.test_box.sh("portreeve config check >&2; portreeve config show");
        let without = self.test_box.sh(
            "mv /etc/portreeve/config.yaml /run; portreeve config show; mv /run/config.yaml /etc/portreeve",
        );
        assert_eq!(with, without);
    }

    fn the_manual_is_found(&self) {
        for page in ["1 portreeve", "1 portreeve-model-start", "5 portreeve.yaml"] {
            self.test_box.sh(&format!("man --where {page}"));
        }
        let page = self.test_box.sh("man portreeve-scan");
        assert!(page.contains("SYNOPSIS") && page.contains("EXIT STATUS"), "{page}");
    }

    /// What each shell that looks for its completions where it always does has to say of 'portreeve doc'.
    fn three_shells_complete(&self) {
        let bash = "source /usr/share/bash-completion/completions/portreeve
             COMP_WORDS=(portreeve doc) COMP_CWORD=1 COMP_TYPE=9
             _clap_complete_portreeve portreeve doc portreeve; echo \"${COMPREPLY[*]}\"";
        assert_eq!(self.test_box.sh(bash), "doctor");
        let fish = self.test_box.sh("fish --command 'complete --do-complete \"portreeve doc\"'");
        assert!(fish.starts_with("doctor\t"), "{fish}");
        // Debian's zsh has no site-functions in its path; Fedora's has.
        let path = self.form.place("/usr/share/zsh/site-functions/_portreeve");
        let path = Path::new(&path).parent().unwrap().display().to_string();
        let zsh = format!(
            "timeout 20 zsh -fc '
                zmodload zsh/zpty
                zpty shell zsh -fi
                zpty -w shell \"fpath=({path} \\$fpath); autoload -U compinit; compinit -D; PS1=; echo be\"gun
                zpty -r -m shell said \"*begun*begun*\"
                zpty -w -n shell \"portreeve doc\t\"
                zpty -r -m shell said \"*doctor*\"
                print found'"
        );
        assert_eq!(self.test_box.sh(&zsh), "found");
    }

    /// dpkg's trigger, or a person, has journalctl read the catalog.
    fn the_journal_explains_events(&self) {
        if self.form == Form::Rpm {
            // Fedora's systemd has a trigger for it, too; Debian's rpm knows it not.
            self.test_box.sh("journalctl --update-catalog");
        }
        let listed = self.test_box.sh("journalctl --list-catalog");
        assert!(listed.contains("portreeve: A start is blocked"), "{listed}");
        self.test_box.sh(
            "printf 'MESSAGE_ID=7edc8846343a4982a1d1017cfb306e1e\\nMESSAGE=blocked\\n' | logger --journald
             journalctl --sync",
        );
        let explained =
            self.test_box.sh("journalctl -x MESSAGE_ID=7edc8846343a4982a1d1017cfb306e1e");
        assert!(explained.contains("A gate found a port or a GPU taken"), "{explained}");
    }

    /// What is enabled, what was changed and what runs stays as it was.
    fn an_upgrade_keeps(&self, version: &str) -> Option<()> {
        self.test_box.sh("systemctl enable portreeve-boot.service portreeve-shutdown.service
             systemctl enable --now portreeve-sweep.timer portreeve-shutdown.service
             systemctl --global enable portreeve-models.service");
        self.test_box.write("/etc/portreeve/config.yaml", SETTINGS);
        let before = (self.enabled(), self.started());
        self.install(version)?;
        assert_eq!((self.enabled(), self.started()), before);
        assert_eq!(self.settings(), SETTINGS);
        let left = self.test_box.sh("find /etc/portreeve -mindepth 1");
        assert_eq!(left, "/etc/portreeve/config.yaml", "no second file to compare");
        Some(())
    }

    /// What was up, and since when.
    fn started(&self) -> String {
        let properties = "--property=ActiveState --property=ActiveEnterTimestampMonotonic";
        let started = self.test_box.sh(&format!(
            "systemctl show {properties} portreeve-sweep.timer portreeve-shutdown.service"
        ));
        assert_eq!(started.matches("ActiveState=active").count(), 2, "{started}");
        started
    }

    /// What portreeve itself writes.
    fn use_it(&self) {
        self.test_box.sh("portreeve model register qwen --backend vllm --model m --port 8509
             portreeve model enable qwen
             install -D /dev/null /var/cache/private/portreeve/qwen/weights
             install -d /var/cache/portreeve; ln -s ../private/portreeve/qwen /var/cache/portreeve/qwen
             test -f /var/lib/portreeve/models.db -a -f /etc/systemd/system/portreeve-model-qwen.service");
    }

    fn nothing_is_enabled_or_due(&self) {
        let links = self
            .test_box
            .sh("find /etc/systemd -type l -name 'portreeve-*' -not -name 'portreeve-model-*'");
        assert_eq!(links, "");
        let due = self.test_box.sh("systemctl list-timers --no-legend 'portreeve*'");
        assert_eq!(due, "");
    }
}

#[test]
fn the_debian_package_installs_what_is_shipped_and_starts_nothing() {
    let Some(clean) = Clean::boot(Form::Deb, "deb-new") else { return };
    if clean.install("1.0.0-1").is_none() {
        return;
    }
    clean.everything_is_in_its_place();
    clean.nothing_is_enabled_or_runs();
    clean.the_default_is_in_effect();
    clean.the_manual_is_found();
    clean.three_shells_complete();
    clean.the_journal_explains_events();
}

#[test]
fn the_debian_package_leaves_alone_what_is_the_operators_and_takes_the_rest_with_it() {
    let Some(clean) = Clean::boot(Form::Deb, "deb-gone") else { return };
    if clean.install("1.0.0-1").is_none() {
        return;
    }
    clean.an_upgrade_keeps("1.1.0-1").unwrap();
    clean.use_it();
    clean.remove();
    clean.nothing_is_enabled_or_due();
    assert_eq!(clean.settings(), SETTINGS);
    clean.test_box.sh("test -f /var/lib/portreeve/models.db");

    clean.test_box.write("/etc/portreeve/conf.d/mine.yaml", SETTINGS);
    let cache = "/var/cache/private/portreeve";
    clean.test_box.sh(&format!(
        "mkdir {cache}/mounted; mount -t tmpfs tmpfs {cache}/mounted; touch {cache}/mounted/weights"
    ));
    clean.test_box.sh("dpkg --purge portreeve 2>/dev/null");
    // Of a disk that was mounted there, nothing.
    assert_eq!(clean.test_box.sh(&format!("cd {cache}; find . -type f")), "./mounted/weights");
    clean.test_box.sh(&format!("umount {cache}/mounted; rmdir {cache}/mounted {cache}"));
    // What no package brought is nobody's to take away.
    assert_eq!(clean.traces(), BTreeSet::from(["/etc/portreeve".to_owned()]));
}

#[test]
fn the_rpm_installs_the_same_and_goes_the_same_way() {
    let Some(clean) = Clean::boot(Form::Rpm, "rpm") else { return };
    if clean.install("1.0.0").is_none() {
        return;
    }
    clean.everything_is_in_its_place();
    clean.nothing_is_enabled_or_runs();
    clean.the_default_is_in_effect();
    clean.the_manual_is_found();
    clean.three_shells_complete();
    clean.the_journal_explains_events();
    clean.an_upgrade_keeps("1.1.0").unwrap();
    clean.use_it();
    clean.remove();
    clean.nothing_is_enabled_or_due();
    // rpm knows no purge; changed settings stay beside.
    clean.test_box.sh("test -f /var/lib/portreeve/models.db");
    let kept = fs::read_to_string(clean.test_box.inside("/etc/portreeve/config.yaml.rpmsave"));
    assert_eq!(kept.unwrap(), SETTINGS);
}

/// What a script disables is what there is to enable.
#[test]
fn the_packages_script_knows_every_unit_that_can_be_enabled() {
    let script = fs::read_to_string(folder().join("scripts/prerm")).unwrap();
    let mut known = BTreeSet::new();
    for file in shipped().iter().filter(|file| file.starts_with("/usr/lib/systemd/system/")) {
        let text = fs::read_to_string(folder().join(&file[1..])).unwrap();
        let unit = Path::new(file).file_name().unwrap().to_str().unwrap().to_owned();
        if text.contains("\n[Install]\n") {
            assert!(script.contains(&unit), "{unit}");
            known.insert(unit);
        }
    }
    assert_eq!(known, UNITS.into_iter().map(str::to_owned).collect());
}
