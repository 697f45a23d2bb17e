//! What a step may need by name, and which machine has it.
//!
//! A need is more than what every machine gives: a property of root, or a feature of the kernel.
//! Namespaces have the host's kernel, and what that offers to root of a user namespace differs from
//! host to host; so a feature of the kernel means a guest, whose kernel we know.

use std::fmt;

/// A need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// What it is called.
    pub name: &'static str,
    /// What has it.
    pub of: Of,
}

/// What a need is a property of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// Root: over the system's own files.
    SystemRoot,
    /// Root: over users other than itself.
    Users,
    /// Root: to mount file systems that need no device.
    Mounts,
    /// Root: over network devices of the machine's own.
    Network,
    /// The kernel: built with these options.
    Kernel(&'static [&'static str]),
}

const ALL: &[Need] = &[
    Need { name: "system-root", of: Of::SystemRoot },
    Need { name: "users", of: Of::Users },
    Need { name: "mounts", of: Of::Mounts },
    Need { name: "network-devices", of: Of::Network },
    kernel("docker", &["OVERLAY_FS", "VETH", "BRIDGE", "NF_NAT", "CGROUP_BPF", "NFT_COMPAT"]),
    kernel("containerd", &["OVERLAY_FS", "VETH", "BRIDGE", "NF_NAT", "CGROUP_BPF"]),
    kernel("podman", &["OVERLAY_FS", "VETH", "BRIDGE", "NF_TABLES", "CGROUP_BPF"]),
    kernel("cgroups", &["MEMCG", "CGROUP_PIDS", "CPUSETS", "CFS_BANDWIDTH"]),
    kernel("keyrings", &["KEYS"]),
    kernel("bpf", &["BPF_SYSCALL"]),
    kernel("io-uring", &["IO_URING"]),
    kernel("loop", &["BLK_DEV_LOOP"]),
    kernel("nbd", &["BLK_DEV_NBD"]),
    kernel("zram", &["ZRAM"]),
    kernel("device-mapper", &["BLK_DEV_DM"]),
    kernel("raid", &["BLK_DEV_MD"]),
    kernel("overlay", &["OVERLAY_FS"]),
    kernel("ext4", &["EXT4_FS", "BLK_DEV_LOOP"]),
    kernel("btrfs", &["BTRFS_FS", "BLK_DEV_LOOP"]),
    kernel("xfs", &["XFS_FS", "BLK_DEV_LOOP"]),
    kernel("f2fs", &["F2FS_FS", "BLK_DEV_LOOP"]),
    kernel("vfat", &["VFAT_FS", "BLK_DEV_LOOP"]),
    kernel("exfat", &["EXFAT_FS", "BLK_DEV_LOOP"]),
    kernel("squashfs", &["SQUASHFS", "BLK_DEV_LOOP"]),
    kernel("iso9660", &["ISO9660_FS", "BLK_DEV_LOOP"]),
    kernel("fuse", &["FUSE_FS"]),
    kernel("nfs", &["NFS_FS", "NFSD"]),
    kernel("9p", &["9P_FS"]),
    kernel("quota", &["QUOTA"]),
    kernel("tun", &["TUN"]),
    kernel("bridge", &["BRIDGE", "VETH"]),
    kernel("vlan", &["VLAN_8021Q"]),
    kernel("vxlan", &["VXLAN"]),
    kernel("macvlan", &["MACVLAN"]),
    kernel("ipvlan", &["IPVLAN"]),
    kernel("bonding", &["BONDING"]),
    kernel("vrf", &["NET_VRF"]),
    kernel("netem", &["NET_SCH_NETEM"]),
    kernel("nftables", &["NF_TABLES", "NF_TABLES_INET", "NFT_NAT"]),
    kernel("iptables", &["NFT_COMPAT", "NETFILTER_XTABLES"]),
    kernel("iptables-legacy", &["IP_NF_IPTABLES"]),
    kernel("ipset", &["IP_SET"]),
    kernel("ipvs", &["IP_VS"]),
    kernel("wireguard", &["WIREGUARD"]),
    kernel("ipsec", &["XFRM_USER", "INET_ESP"]),
    kernel("vsock", &["VSOCKETS_LOOPBACK"]),
    kernel("mptcp", &["MPTCP"]),
    kernel("audit", &["AUDIT"]),
    kernel("debugfs", &["DEBUG_FS"]),
];

const fn kernel(name: &'static str, options: &'static [&'static str]) -> Need {
    Need { name, of: Of::Kernel(options) }
}

impl Need {
    /// The need of this name.
    ///
    /// # Errors
    ///
    /// A text that lists those there are.
    pub fn find(name: &str) -> Result<Self, String> {
        let found = ALL.iter().find(|need| need.name == name).copied();
        found.ok_or_else(|| {
            let names: Vec<&str> = ALL.iter().map(|need| need.name).collect();
            format!("there is no need {name:?}; there are {}", names.join(", "))
        })
    }

    /// Options that the guest's kernel must have been built with.
    pub fn kernel_options(&self) -> &'static [&'static str] {
        match self.of {
            Of::Kernel(options) => options,
            _ => &[],
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::catalogue::Catalogue;

    #[test]
    fn every_need_is_met_by_a_kernel_that_can_be_built() {
        let catalogue = Catalogue::embedded().unwrap();
        for need in ALL {
            let profile = catalogue.profile_with(need.kernel_options());
            assert!(profile.is_some(), "no profile has {need}: {:?}", need.kernel_options());
        }
        assert_eq!(catalogue.profile_with(&["VETH"]), Some("default"));
        assert_eq!(catalogue.profile_with(&["BTRFS_FS"]), Some("full"));
        assert_eq!(catalogue.profile_with(&["NO_SUCH_OPTION"]), None);
    }

    #[test]
    fn an_unknown_need_is_answered_with_those_there_are() {
        let why = Need::find("btfrs").unwrap_err();
        assert!(why.contains("btfrs") && why.contains("btrfs"), "{why}");
    }
}
