//! What a kernel can do, asked of the kernel itself.
//!
//! A UML kernel is a program: `--help` lists the options that its drivers
//! registered, `--showconfig` prints its configuration. Both answers come
//! before it boots, so asking takes milliseconds. No version is ever compared.

use serde::{Deserialize, Serialize};

/// What matters to whoever starts the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Features {
    /// `seccomp=on`: system calls reach the kernel without ptrace.
    pub seccomp: bool,
    /// `ncpus=N`: several CPUs, in seccomp mode only.
    pub smp: bool,
    /// `/dev/hostfd0`: our byte channel over an inherited descriptor.
    pub hostfd: bool,
    /// `vecN:transport=fd`: Ethernet frames over an inherited descriptor.
    pub vector: bool,
    /// `virtio_uml.device=fd:N:1`: Ethernet frames in the guest's memory, whose size is sealed.
    pub virtio_net: bool,
    /// Serial lines (`ssl0=fd:N`), the channel of kernels without hostfd.
    pub ssl: bool,
    /// The overlay file system is built in.
    pub overlay: bool,
    /// hostfs is built in.
    pub hostfs: bool,
    /// tmpfs is built in.
    pub tmpfs: bool,
    /// devtmpfs is built in.
    pub devtmpfs: bool,
    /// An initramfs can be given with `initrd=`.
    pub initrd: bool,
    /// Block devices backed by host files (`ubd0=FILE`).
    pub ubd: bool,
    /// Swap space can be used.
    pub swap: bool,
    /// Things that exist only as modules, as `OVERLAY_FS`.
    pub modules: Vec<String>,
}

impl Features {
    /// Whether a guest can have a network card.
    #[must_use]
    pub fn has_card(&self) -> bool {
        self.vector || self.virtio_net
    }

    /// Reads them from the output of `--help` and of `--showconfig`.
    #[must_use]
    pub fn parse(help: &str, config: &str) -> Self {
        let option = |name: &str| help.lines().any(|line| line.starts_with(name));
        let value = |name: &str| {
            config
                .lines()
                .find_map(|line| line.strip_prefix("CONFIG_")?.strip_prefix(name)?.strip_prefix('='))
        };
        let built_in = |name: &str| value(name) == Some("y");
        let modules = ["OVERLAY_FS", "HOSTFS", "UML_NET_VECTOR", "TMPFS", "VETH", "EXT4_FS", "UML_RANDOM"]
            .into_iter()
            .filter(|name| value(name) == Some("m"))
            .map(str::to_owned)
            .collect();
        Self {
            seccomp: option("seccomp="),
            smp: option("ncpus="),
            hostfd: option("hostfd") || built_in("UML_HOSTFD"),
            vector: built_in("UML_NET_VECTOR"),
            // A patch of ours lets it inherit its socket, and comes with the one that seals the memory.
            virtio_net: built_in("VIRTIO_NET") && help.contains("fd:<number> for one that is inherited"),
            ssl: built_in("SSL"),
            overlay: built_in("OVERLAY_FS"),
            hostfs: built_in("HOSTFS"),
            tmpfs: built_in("TMPFS"),
            devtmpfs: built_in("DEVTMPFS"),
            initrd: built_in("BLK_DEV_INITRD"),
            ubd: built_in("BLK_DEV_UBD"),
            swap: built_in("SWAP"),
            modules,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "\
User Mode Linux v6.1.174
\tavailable at http://user-mode-linux.sourceforge.net/

mem=<Amount of desired ram>
    This controls how much \"physical\" memory the kernel allocates

seccomp=<on/auto/off>
    Configure whether or not SECCOMP is used.
    ncpus=4 is not an option here... text that only mentions it

";

    #[test]
    fn options_count_where_they_are_listed_and_config_where_it_is_set() {
        let features = Features::parse(
            HELP,
            "CONFIG_HOSTFS=y\n# CONFIG_SSL is not set\nCONFIG_OVERLAY_FS=m\nCONFIG_TMPFS_XATTR=y\n",
        );
        assert!(features.seccomp);
        assert!(features.hostfs);
        assert!(!features.tmpfs);
        assert!(!features.ssl);
        assert!(!features.overlay);
        assert_eq!(features.modules, ["OVERLAY_FS"]);
    }

    #[test]
    fn a_card_in_memory_takes_the_driver_and_a_socket_that_can_be_inherited() {
        let help = "virtio_uml.device=<socket>:<virtio_id>[:<platform_id>]\n    Configure a virtio device";
        let ours =
            format!("{help}: its path,\n    or fd:<number> for one that is inherited, and connected.\n");
        let has = |help: &str, config: &str| Features::parse(help, config).virtio_net;
        assert!(has(&ours, "CONFIG_VIRTIO_NET=y\n"));
        assert!(!has(help, "CONFIG_VIRTIO_NET=y\n") && !has(&ours, "CONFIG_VIRTIO_NET=m\n"));
    }
}
