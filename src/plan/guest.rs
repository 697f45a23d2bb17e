//! What a guest gets: memory, CPUs, swap, limits. Pure.

use super::{GIB, MAX_TASKS, MIB, MIN_MEMORY, Refusal, Request, check_memory};
use crate::detect::Limits;
use crate::kernel::Features;

/// Guest memory where nothing else is asked for. Every GiB costs 16 MiB of host memory at once,
/// for the guest's page descriptors; more can be had from swap.
pub const DEFAULT_MEMORY: u64 = 768 * MIB;
/// Most swap that a guest gets by default.
const DEFAULT_SWAP: u64 = 8 * GIB;
/// Descriptors that the guest's kernel needs for itself, idle hostfs files included.
const KERNEL_FILES: u64 = 600;
/// Descriptors of the guest's kernel for each guest process.
const FILES_PER_TASK: u64 = 2;
/// What the guest's kernel needs for each task and cannot swap out, with room to spare: stack and
/// page tables. Without this bound a fork bomb leaves no memory to kill it with.
const TASK_MEMORY: u64 = 128 << 10;
/// Processes of the guest's kernel itself, and some of the user's that run anyway.
const SPARE_PROCESSES: u64 = 32;

/// What the machine gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Guest memory in bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Host CPUs that the guest is kept on; empty where its kernel sees to that itself.
    pub pin: Vec<usize>,
    /// Whether the guest's kernel catches system calls by seccomp rather than by ptrace.
    pub seccomp: bool,
    /// Size of the swap file in bytes, 0 for none.
    pub swap: u64,
    /// Size of everything writable that is thrown away, in bytes.
    pub writable: u64,
    /// Most tasks in the guest.
    pub max_tasks: u32,
}

/// Refuses what no kernel could give, before one is built for it.
pub fn check(request: &Request, limits: &Limits) -> Result<(), Refusal> {
    let most = Features { seccomp: true, smp: true, ..Features::default() };
    plan(request, limits, &most, 0, 0).map(drop)
}

/// Decides. `disk_free` is what the temporary directory's file system has free, in bytes, 0 where
/// it is memory itself; `lottery` is any number that differs between machines started together.
pub fn plan(
    request: &Request,
    limits: &Limits,
    features: &Features,
    disk_free: u64,
    lottery: u32,
) -> Result<Plan, Refusal> {
    let memory = memory(request, limits)?;
    let seccomp = features.seccomp && !request.untrusted;
    let cpus = cpus(request, limits, features, seccomp)?;
    // A quarter of what is free: other programs write there too.
    let swap = DEFAULT_SWAP.min(disk_free / 4) / MIB * MIB;
    let max_tasks = max_tasks(limits)?.min(u32::try_from(memory / TASK_MEMORY).unwrap_or(u32::MAX));
    let pin = match limits.cpus.as_slice() {
        [] => Vec::new(),
        // One virtual CPU hands each system call to another host process and back. On one host
        // CPU that is a switch, on two an interrupt and an idle wake-up.
        some if cpus == 1 => vec![some[lottery as usize % some.len()]],
        _ => Vec::new(),
    };
    // Below memory plus swap by as much as programs and the kernel need: a tmpfs that fills
    // memory leaves nothing to kill, and the guest panics.
    let writable = memory / 2 + swap / 4 * 3;
    Ok(Plan { memory, cpus, pin, seccomp, swap, writable, max_tasks })
}

fn memory(request: &Request, limits: &Limits) -> Result<u64, Refusal> {
    let Some(asked) = request.memory else {
        let half = (limits.available_bytes / 2 / MIB * MIB).max(MIN_MEMORY);
        return Ok(DEFAULT_MEMORY.min(half));
    };
    check_memory(Some(asked), limits)?;
    Ok(asked / MIB * MIB)
}

fn cpus(request: &Request, limits: &Limits, features: &Features, seccomp: bool) -> Result<u32, Refusal> {
    let smp = features.smp && seccomp;
    let allowed = u32::try_from(limits.cpus.len()).unwrap_or(u32::MAX).max(1);
    let most = if smp { allowed.min(64) } else { 1 };
    match request.cpus {
        None => Ok(most),
        Some(0) => Err(Refusal::new(
            "--cpus 0: a guest needs at least one CPU",
            format!("leave --cpus out for {most}"),
        )),
        Some(n) if n > 1 && !smp => Err(Refusal::new(
            format!("--cpus {n}: this guest kernel has one CPU in this mode"),
            "leave --cpus and --untrusted out, or choose --kernel 7.3",
        )),
        Some(n) if n > most => {
            Err(Refusal::new(format!("--cpus {n}: {most} may be used here"), format!("try --cpus {most}")))
        }
        Some(n) => Ok(n),
    }
}

fn max_tasks(limits: &Limits) -> Result<u32, Refusal> {
    let by_files = limits.open_files.saturating_sub(KERNEL_FILES) / FILES_PER_TASK;
    // With few descriptors the kernel's idle ones give way, so some tasks are always possible.
    let by_files = by_files.max(limits.open_files / 8);
    let by_processes = limits.processes.saturating_sub(SPARE_PROCESSES);
    let most = by_files.min(by_processes).min(MAX_TASKS.into());
    if most < 16 {
        return Err(Refusal::new(
            format!(
                "a guest needs a host process and {FILES_PER_TASK} files for each of its own processes; the limits here \
                 are {} processes and {} open files",
                limits.processes, limits.open_files
            ),
            "raise them with `ulimit -u` and `ulimit -n`",
        ));
    }
    Ok(most as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            memory_bytes: 16 * GIB,
            available_bytes: 12 * GIB,
            cpus: vec![2, 3],
            open_files: 1 << 20,
            processes: 60_000,
        }
    }

    fn modern() -> Features {
        Features { seccomp: true, smp: true, ..Features::default() }
    }

    fn decide(request: &Request, limits: &Limits, features: &Features) -> Result<Plan, String> {
        plan(request, limits, features, 100 * GIB, 5).map_err(|r| r.to_string())
    }

    #[test]
    fn nothing_asked_gets_the_defaults() {
        let plan = decide(&Request::default(), &limits(), &modern()).unwrap();
        assert_eq!((plan.memory, plan.cpus, plan.seccomp), (768 * MIB, 2, true));
        assert_eq!((plan.swap, plan.pin.len(), plan.max_tasks), (8 * GIB, 0, 6144));
        assert!(plan.writable < plan.memory + plan.swap);
    }

    #[test]
    fn a_small_host_gets_a_small_guest() {
        let small = Limits { available_bytes: 700 * MIB, ..limits() };
        assert_eq!(decide(&Request::default(), &small, &modern()).unwrap().memory, 350 * MIB);
    }

    #[test]
    fn an_old_kernel_gets_one_cpu_and_is_kept_on_one() {
        let plan = decide(&Request::default(), &limits(), &Features::default()).unwrap();
        assert_eq!((plan.cpus, plan.seccomp, plan.pin), (1, false, vec![3]));
    }

    #[test]
    fn untrusted_means_ptrace_and_so_one_cpu() {
        let request = Request { untrusted: true, ..Request::default() };
        let plan = decide(&request, &limits(), &modern()).unwrap();
        assert_eq!((plan.cpus, plan.seccomp), (1, false));
    }

    #[test]
    fn without_disk_there_is_no_swap_and_less_to_write() {
        let plan = plan(&Request::default(), &limits(), &modern(), 0, 0).unwrap();
        assert_eq!((plan.swap, plan.writable), (0, 384 * MIB));
    }

    #[test]
    fn wishes_that_cannot_be_met_are_refused_with_a_remedy() {
        let ask = |memory, cpus, features: &Features| {
            decide(&Request { memory, cpus, ..Request::default() }, &limits(), features).unwrap_err()
        };
        insta::assert_snapshot!(ask(Some(1024), None, &modern()), @"--memory 1K: a machine needs at least 64M; try --memory 1G");
        insta::assert_snapshot!(ask(Some(64 * GIB), None, &modern()), @"--memory 64G: this host has 16G; try --memory 8G");
        insta::assert_snapshot!(ask(None, Some(0), &modern()), @"--cpus 0: a guest needs at least one CPU; leave --cpus out for 2");
        insta::assert_snapshot!(ask(None, Some(3), &modern()), @"--cpus 3: 2 may be used here; try --cpus 2");
        insta::assert_snapshot!(ask(None, Some(2), &Features::default()), @"--cpus 2: this guest kernel has one CPU in this mode; leave --cpus and --untrusted out, or choose --kernel 7.3");
    }

    #[test]
    fn few_descriptors_mean_few_tasks_and_too_few_are_refused() {
        let few = Limits { open_files: 256, ..limits() };
        assert_eq!(decide(&Request::default(), &few, &modern()).unwrap().max_tasks, 32);
        let none = Limits { processes: 40, ..limits() };
        assert!(decide(&Request::default(), &none, &modern()).unwrap_err().contains("ulimit -u"));
    }
}
