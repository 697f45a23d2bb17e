"""Opens the kernel's own files for writing, as they are and after every trick with mounts."""

import os
import subprocess

NAMES = """
sys/kernel/core_pattern sys/kernel/modprobe sys/kernel/hotplug sys/kernel/sysrq sys/kernel/panic
sys/vm/drop_caches sys/vm/overcommit_memory sys/fs/binfmt_misc/register sysrq-trigger mem kcore
irq/default_smp_affinity fs/ext4 bus/pci acpi/wakeup
""".split()
SYSFS = """
kernel/uevent_helper kernel/mm/transparent_hugepage/enabled kernel/rcu_expedited power/state
kernel/kexec_crash_size module/apparmor/parameters/enabled fs/cgroup/release_agent
kernel/security/apparmor/.load kernel/debug/sched_features firmware/efi/vars
""".split()


def look(proc, sysfs, when):
    for directory, names in ((proc, NAMES), (sysfs, SYSFS)):
        for name in names:
            try:
                os.close(os.open(f"{directory}/{name}", os.O_WRONLY))
            except OSError:
                continue
            print(f"{when}: {directory}/{name} can be written")


look("/proc", "/sys", "at first")
for at in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc", "/sys"]:
    for command in (["umount"], ["umount", "-l"], ["mount", "-o", "remount,rw"], ["mount", "-o", "remount,rw,bind"]):
        subprocess.run([*command, at], capture_output=True)
        look("/proc", "/sys", " ".join([*command, at]))
os.makedirs("/mnt/proc", exist_ok=True)
os.makedirs("/mnt/sys", exist_ok=True)
for command in (
    ["mount", "-t", "proc", "proc", "/mnt/proc"],
    ["mount", "-t", "sysfs", "sysfs", "/mnt/sys"],
    ["mount", "-t", "securityfs", "none", "/mnt/sys"],
    ["mount", "-t", "debugfs", "none", "/mnt/sys"],
    ["mount", "--bind", "/proc", "/mnt/proc"],
    ["mount", "--rbind", "/sys", "/mnt/sys"],
    ["mount", "-o", "remount,rw,bind", "/mnt/sys"],
    ["mount", "-o", "remount,rw", "/mnt/sys"],
):
    subprocess.run(command, capture_output=True)
    look("/mnt/proc", "/mnt/sys", " ".join(command))

# Once more as root of namespaces that are younger still.
if os.environ.get("YOUNGER") is None:
    again = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--cgroup"]
    younger = dict(os.environ, YOUNGER="1")
    ran = subprocess.run([*again, "python3", "-B", __file__], capture_output=True, text=True, env=younger)
    print(ran.stdout.replace("tried everything\n", ""), end="")
print("tried everything")
