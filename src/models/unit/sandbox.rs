//! What a unit may not: as a process, with a container, and where a user's manager has no right to more.

use super::{
    Surroundings, Unit,
    page::{Page, unit_word},
};
use crate::models::plan;

/// Ports below are for those who have the right to.
const FIRST_FREE_PORT: u16 = 1024;

impl Unit<'_> {
    pub(super) fn sandbox(&self, page: &mut Page) {
        page.gap();
        if !self.is_systems() {
            return self.users(page);
        }
        if self.spec.is_container {
            self.beside_a_container(page);
        } else {
            self.around_a_server(page);
        }
        everybodys(page);
        file_system(page);
    }

    /// A server that reads what strangers write, with code that is made at run time.
    fn around_a_server(&self, page: &mut Page) {
        let spec = self.spec;
        if let Some(user) = &spec.run_as {
            page.set("User", user);
        } else {
            page.why("A user of its own while it runs, whose files and shared memory go with it, but for its cache.");
            page.why(
                "Weights must be readable for all; '--run-as' names a user for those that are not.",
            );
            page.set("DynamicUser", "yes");
        }
        self.caches(page);
        if spec.port().number() < FIRST_FREE_PORT {
            page.why(&format!("For port {}.", spec.port()));
            page.set("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE");
            page.set("AmbientCapabilities", "CAP_NET_BIND_SERVICE");
        } else {
            page.set("CapabilityBoundingSet", "");
        }
        if spec.gpus.is_empty() {
            page.why("It was given no GPU.");
            page.set("PrivateDevices", "yes");
        } else {
            page.why("Of NVIDIA, AMD and Intel; which of them it uses, its environment says. No device is made from in here (nvidia-modprobe).");
            page.set("DevicePolicy", "closed");
            for class in ["char-nvidia*", "char-kfd", "char-drm"] {
                page.set("DeviceAllow", &format!("{class} rw"));
            }
            let Surroundings { groups, .. } = self.surroundings;
            if !groups.is_empty() {
                page.set("SupplementaryGroups", &groups.join(" "));
            }
        }
        page.why(
            "Its own, and gone with it: a server that was killed leaves its shared memory behind.",
        );
        page.set("TemporaryFileSystem", "/dev/shm:mode=1777,nosuid,nodev,size=50%");
        page.set("PrivateIPC", "yes");
        page.why("Netlink is for the network's interfaces, and for whose its port is.");
        page.set("RestrictAddressFamilies", "AF_UNIX AF_NETLINK AF_INET AF_INET6");
        page.why("@resources places threads and memory near each other.");
        page.set("SystemCallFilter", "@system-service");
        page.set("SystemCallFilter", "~@privileged");
        page.why("Other users' processes are none of its.");
        page.set("ProtectProc", "invisible");
        page.why("Left out: MemoryDenyWriteExecute= (CUDA, ROCm and Triton make code at run time), ProcSubset= (/proc/meminfo, /proc/driver),");
        page.why("IPAddressDeny= (clients, and what it downloads), PrivateUsers= (devices by their groups).");
    }

    fn caches(&self, page: &mut Page) {
        let folder = format!("portreeve/{}", unit_word(&self.model.0));
        let at = |below: &str| format!("%C/{folder}{below}");
        page.why("What it downloads and makes is kept here; no home is written to. CUDA_VISIBLE_DEVICES and its like are set by 'model exec'.");
        page.set("CacheDirectory", &folder);
        page.set("CacheDirectoryMode", "0700");
        page.set("Environment", &format!("HOME={} XDG_CACHE_HOME={}", at(""), at("")));
        for (variable, below) in self.spec.backend.backend().caches {
            page.set("Environment", &format!("{variable}={}", at(&format!("/{below}"))));
        }
    }

    /// Root, for the engine's socket, with none of root's rights. Whoever has that socket has this host: this is against mistakes.
    fn beside_a_container(&self, page: &mut Page) {
        page.why("Root's user without any of root's rights: the engine's socket is root's, and that is all that it needs.");
        page.set("CapabilityBoundingSet", "");
        page.set("PrivateDevices", "yes");
        page.set("PrivateIPC", "yes");
        page.set("MemoryDenyWriteExecute", "yes");
        page.why("The engine is asked over AF_UNIX, the model for its health at its own address.");
        page.set("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6");
        page.set("IPAddressDeny", "any");
        page.why("Where a port is forwarded by a rule, the filter sees its container's address: those of private networks (RFC 1918, RFC 4193).");
        let address = plan::reach_of(self.spec).address.ip();
        let mut allowed = "localhost 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7".to_owned();
        if !address.is_loopback() {
            allowed = format!("{allowed} {address}");
        }
        page.set("IPAddressAllow", &allowed);
        page.set("SystemCallFilter", "@system-service");
        page.set("SystemCallFilter", "~@privileged @resources");
        page.why("Left out: ProtectProc= (it looks whether the container's main process lives), User= (the engine's socket), PrivateNetwork=.");
    }

    /// Only what needs no right.
    fn users(&self, page: &mut Page) {
        if self.spec.is_container {
            page.set("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6");
            page.set("MemoryDenyWriteExecute", "yes");
            page.set("SystemCallFilter", "@system-service");
            page.set("SystemCallFilter", "~@privileged @resources");
        } else {
            page.why("Netlink is for the network's interfaces, and for whose its port is.");
            page.set("RestrictAddressFamilies", "AF_UNIX AF_NETLINK AF_INET AF_INET6");
            page.why("@resources places threads and memory near each other.");
            page.set("SystemCallFilter", "@system-service");
            page.set("SystemCallFilter", "~@privileged");
        }
        everybodys(page);
        page.why("Left out, since a user's manager has no right to it: mounts (Protect…=, Private…=, TemporaryFileSystem=), DeviceAllow=, IPAddressDeny=,");
        page.why("CapabilityBoundingSet=, IOWeight=. User= and caches of its own: it runs as you, and uses yours.");
    }
}

fn everybodys(page: &mut Page) {
    page.why("What is refused fails there, and ends nobody.");
    page.set("SystemCallErrorNumber", "EPERM");
    page.set("SystemCallArchitectures", "native");
    for key in [
        "NoNewPrivileges",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LockPersonality",
    ] {
        page.set(key, "yes");
    }
    page.set("UMask", "0077");
}

fn file_system(page: &mut Page) {
    page.why("All that it may write to is named above. Homes may have weights.");
    page.set("ProtectSystem", "strict");
    page.why("systemd 252 leaves it out beside ProtectKernelTunables=.");
    page.set("ReadOnlyPaths", "/run");
    page.set("ProtectHome", "read-only");
    for key in [
        "PrivateTmp",
        "PrivateMounts",
        "ProtectControlGroups",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectClock",
        "ProtectHostname",
    ] {
        page.set(key, "yes");
    }
}
