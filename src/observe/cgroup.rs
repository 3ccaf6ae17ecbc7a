//! `/proc/PID/cgroup` → what its paths say: unit, session, container claim. By path component and id, never
//! by substring. Covers v1, hybrid and v2 hosts (cgroups(7)), cgroup namespaces (`/../..`) and ` (deleted)`.

use crate::{
    ident::{ContainerId, Manager, UnitName, UnitRef},
    snapshot::{Cgroup, ClaimKind, ContainerClaim},
};

/// Reads the text. None: it has no line of the expected form `hierarchy:controllers:path`.
pub fn parse(text: &str) -> Option<Cgroup> {
    let mut managed: Option<(u8, &str)> = None;
    let mut claims: Vec<(usize, ContainerClaim)> = Vec::new();
    // A group's name may end in a carriage return, which `lines` would take off.
    for line in text.split_terminator('\n') {
        let (hierarchy, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        // systemd keeps its tree in the unified hierarchy; where that says nothing, in its named one.
        let rank = match (hierarchy, controllers) {
            (_, "name=systemd") if path != "/" => 3,
            ("0", "") if path != "/" => 2,
            ("0", "") => 1,
            _ => 0,
        };
        if managed.is_none_or(|(best, _)| rank > best) {
            managed = Some((rank, path));
        }
        claims.extend(claim(path));
    }
    let (_, path) = managed?;
    let claim = claims.into_iter().min_by_key(|(depth, _)| *depth).map(|(_, claim)| claim);
    let is_above_us = components(path).any(|c| c == "..");
    if is_above_us && claim.is_none() {
        return None; // seen from a cgroup namespace: the part that names the manager is missing
    }
    let unit = unit(path).filter(|_| !is_above_us);
    let session = unit.as_ref().and_then(|u| session(path, u));
    let (session, session_user) = session.unzip();
    Some(Cgroup { path: path.to_owned(), claim, unit, session, session_user })
}

fn components(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|c| !c.is_empty())
}

/// The first .service or .scope below the slices; below `user@UID.service` the first below that user's slices.
fn unit(path: &str) -> Option<UnitRef> {
    let mut manager = Manager::System;
    let mut below = components(path).peekable();
    loop {
        let component = below.by_ref().find(|c| !is_unit(c, ".slice"))?;
        if !is_unit(component, ".service") && !is_unit(component, ".scope") {
            return None;
        }
        let name = UnitName::from(component);
        let uid = component.strip_prefix("user@").and_then(|c| c.strip_suffix(".service"));
        match uid.and_then(|u| u.parse().ok()) {
            Some(uid) if manager == Manager::System && below.peek().is_some() => {
                manager = Manager::User(uid);
            }
            Some(_) | None => return Some(UnitRef { manager, name }),
        }
    }
}

fn is_unit(component: &str, suffix: &str) -> bool {
    component.strip_suffix(suffix).is_some_and(|name| !name.is_empty())
}

/// `…/user-1000.slice/session-3.scope` → `3` of user 1000 (pam_systemd(8)).
fn session(path: &str, unit: &UnitRef) -> Option<(String, u32)> {
    let id = unit.name.0.strip_prefix("session-")?.strip_suffix(".scope")?;
    let slice = components(path).rev().skip_while(|c| *c != unit.name.0).nth(1)?;
    let user = slice.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok()?;
    (unit.manager == Manager::System).then(|| (id.to_owned(), user))
}

/// The outermost container claim of a path and its depth.
fn claim(path: &str) -> Option<(usize, ContainerClaim)> {
    let parts: Vec<&str> = components(path).collect();
    parts.iter().enumerate().find_map(|(depth, part)| {
        let before = depth.checked_sub(1).and_then(|d| parts.get(d)).copied().unwrap_or_default();
        let is_kube = parts.iter().take(depth).any(|p| p.starts_with("kubepods"));
        Some((depth, one_claim(part, before, is_kube)?))
    })
}

fn one_claim(part: &str, before: &str, is_kube: bool) -> Option<ContainerClaim> {
    let made = |kind, id: &str| Some(ContainerClaim { kind, id: ContainerId::from(id) });
    let scope = part.strip_suffix(".scope").unwrap_or(part);
    for (prefix, kind) in [
        ("docker-", ClaimKind::Docker),
        ("libpod-", ClaimKind::Podman),
        // `--cgroups=split`, as Quadlet has it: below the unit's own.
        ("libpod-payload-", ClaimKind::Podman),
        ("cri-containerd-", ClaimKind::Cri),
        ("crio-", ClaimKind::Cri),
    ] {
        // `libpod-conmon-<id>.scope` holds the monitor and is refused here: no hexadecimal digits.
        if let Some(id) = scope.strip_prefix(prefix).filter(|id| is_id(id)) {
            return made(kind, id);
        }
    }
    match before {
        "docker" if is_id(part) => return made(ClaimKind::Docker, part),
        "lxc" if !part.is_empty() => return made(ClaimKind::Lxc, part),
        _ if is_kube && is_id(part) => return made(ClaimKind::Cri, part),
        // Some other parent (--cgroup-parent=, buildkit): a container's all the same, of an engine that we cannot name.
        _ if is_id(part) => return made(ClaimKind::Other, part),
        _ => {}
    }
    if let Some(name) = part.strip_prefix("lxc.payload.").filter(|n| !n.is_empty()) {
        return made(ClaimKind::Lxc, name);
    }
    if before == "machine.slice" {
        let nspawn = part.strip_prefix("systemd-nspawn@").and_then(|p| p.strip_suffix(".service"));
        let machine = part.strip_prefix("machine-").and_then(|p| p.strip_suffix(".scope"));
        if let Some(name) = nspawn.or(machine).filter(|n| !n.is_empty()) {
            return made(ClaimKind::Nspawn, name);
        }
    }
    None
}

/// 64 lower-case hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn read(text: &str) -> Cgroup {
        parse(&text.replace("ID", ID)).unwrap()
    }

    fn claim_of(text: &str) -> Option<(ClaimKind, String)> {
        read(text).claim.map(|c| (c.kind, c.id.0))
    }

    #[test]
    fn a_name_that_ends_in_a_carriage_return_is_no_units() {
        assert_eq!(parse("0::/system.slice/db.service\r\n").unwrap().unit, None);
        assert!(parse("0::/system.slice/db.service\n").unwrap().unit.is_some());
    }

    #[test]
    fn every_form_of_a_container_claim_is_recognised() {
        let id = || ID.to_owned();
        for (text, kind, name) in [
            // v2, cgroupfs and systemd drivers
            ("0::/docker/ID", ClaimKind::Docker, id()),
            ("0::/system.slice/docker-ID.scope", ClaimKind::Docker, id()),
            ("0::/machine.slice/libpod-ID.scope", ClaimKind::Podman, id()),
            ("0::/machine.slice/libpod-ID.scope/container", ClaimKind::Podman, id()),
            ("0::/libpod_parent/libpod-ID", ClaimKind::Podman, id()),
            ("0::/system.slice/quad.service/libpod-payload-ID", ClaimKind::Podman, id()),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
                ClaimKind::Podman,
                id(),
            ),
            (
                "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope",
                ClaimKind::Cri,
                id(),
            ),
            ("0::/kubepods/besteffort/pod0e2c/ID", ClaimKind::Cri, id()),
            ("0::/kubepods.slice/kubepods-podx.slice/crio-ID.scope", ClaimKind::Cri, id()),
            ("0::/lxc/web", ClaimKind::Lxc, "web".into()),
            ("0::/lxc.payload.web", ClaimKind::Lxc, "web".into()),
            (
                "0::/machine.slice/systemd-nspawn@box.service/payload",
                ClaimKind::Nspawn,
                "box".into(),
            ),
            ("0::/machine.slice/machine-box.scope", ClaimKind::Nspawn, "box".into()),
            ("0::/my-parent/ID", ClaimKind::Other, id()),
            // v1: one line a controller
            ("5:devices:/docker/ID\n1:name=systemd:/docker/ID\n", ClaimKind::Docker, id()),
            // hybrid: the unified line is empty
            ("4:memory:/docker/ID\n1:name=systemd:/docker/ID\n0::/\n", ClaimKind::Docker, id()),
            // our own cgroup namespace lies deeper, and the group is gone
            ("0::/../../docker/ID (deleted)", ClaimKind::Docker, id()),
        ] {
            assert_eq!(claim_of(text), Some((kind, name)), "{text}");
        }
    }

    #[test]
    fn what_only_resembles_a_claim_is_none() {
        for text in [
            "0::/",
            "0::/system.slice/docker.service",
            "0::/system.slice/docker-compose.service",
            "0::/docker/0123",
            // As 'docker ps' shows it, one digit too few, one too many, and digits that no engine writes.
            "0::/docker/0123456789ab",
            "0::/system.slice/docker-0123456789ab.scope",
            "0::/docker/123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "0::/docker/00123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "0::/docker/0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF",
            "0::/system.slice/docker-IDx.scope",
            "0::/machine.slice/libpod-conmon-ID.scope",
            "0::/user.slice/machine-box.scope",
        ] {
            assert_eq!(claim_of(text), None, "{text}");
        }
    }

    #[test]
    fn the_outermost_claim_decides() {
        let inner = "f".repeat(64);
        let text = format!("0::/docker/{ID}/docker/{inner}");
        assert_eq!(claim_of(&text).unwrap().1, ID);
    }

    #[test]
    fn the_unit_is_the_first_service_or_scope_below_the_slices() {
        for (text, manager, name) in [
            ("0::/system.slice/a.service", Manager::System, "a.service"),
            ("0::/system.slice/a.service/sub/b.service", Manager::System, "a.service"),
            ("0::/system.slice/system-a.slice/a@1.service", Manager::System, "a@1.service"),
            ("0::/user.slice/user-7.slice/session-3.scope", Manager::System, "session-3.scope"),
            (
                "0::/user.slice/user-7.slice/user@7.service/app.slice/b.service",
                Manager::User(7),
                "b.service",
            ),
            (
                "0::/user.slice/user-7.slice/user@7.service/init.scope",
                Manager::User(7),
                "init.scope",
            ),
            ("0::/user.slice/user-7.slice/user@7.service", Manager::System, "user@7.service"),
            ("0::/init.scope", Manager::System, "init.scope"),
            (
                "4:memory:/x\n1:name=systemd:/system.slice/a.service\n0::/\n",
                Manager::System,
                "a.service",
            ),
            ("1:name=systemd:/\n0::/system.slice/a.service\n", Manager::System, "a.service"),
        ] {
            let unit = read(text).unit.unwrap();
            assert_eq!((unit.manager, unit.name.0.as_str()), (manager, name), "{text}");
        }
        for text in ["0::/", "0::/process_api/x", "0::/user.slice", "4:memory:/a.service\n0::/\n"] {
            assert_eq!(read(text).unit, None, "{text}");
        }
    }

    #[test]
    fn a_session_is_a_session_scope_in_a_users_slice_only() {
        let of = |text| read(text).session;
        assert_eq!(of("0::/user.slice/user-7.slice/session-c3.scope"), Some("c3".into()));
        assert_eq!(of("0::/system.slice/session-c3.scope"), None);
        assert_eq!(
            of("0::/user.slice/user-7.slice/user@7.service/app.slice/session-1.scope"),
            None
        );
    }

    #[test]
    fn text_of_another_form_is_refused() {
        for text in ["", "garbage", "0:", "\n", "0::/../../system.slice/a.service"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
