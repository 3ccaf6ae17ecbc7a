//! STUB
use crate::{
    backend::Spec,
    host::Host,
    ident::{Manager, ModelName},
};
use std::path::PathBuf;
/// m
pub const MARK: &str = "# Written by 'portreeve model register'";
/// g
#[derive(Debug, Clone)]
pub struct Groups;
impl Groups {
    /// g
    pub fn of(_: &Host) -> Self {
        Self
    }
}
/// s
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// m
    pub manager: Manager,
    /// p
    pub program: PathBuf,
    /// c
    pub config: Option<PathBuf>,
    /// g
    pub groups: Groups,
}
/// t
pub fn text(name: &ModelName, spec: &Spec, around: &Surroundings) -> String {
    let p = around.program.display();
    let c =
        around.config.as_ref().map(|c| format!(" --config {}", c.display())).unwrap_or_default();
    let native = !spec.is_container;
    let user = if native && around.manager == Manager::System { "DynamicUser=yes" } else { "" };
    let restart = if native { "on-failure" } else { "no" };
    format!(
        "{MARK}\n[Unit]\nDescription=m\nRequires=portreeve-gate@{name}.service\nAfter=portreeve-gate@{name}.service docker.service podman.service podman.socket\nStartLimitIntervalSec=600\nStartLimitBurst=3\n[Service]\nType=notify\nNotifyAccess=exec\nFileDescriptorStoreMax=4\nExecStartPre=+{p} model step begin {name}{c}\nExecStart={p} model exec {name}{c}\nExecStartPost=+{p} model step up {name}{c}\nExecStopPost=+{p} model step down {name}{c}\nKillMode=mixed\nWatchdogSec=60\nWatchdogSignal=SIGTERM\nRestart={restart}\nRestartSec=1\n{user}\n[Install]\nWantedBy=portreeve-models.target\n"
    )
}
