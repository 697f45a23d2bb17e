//! System calls that no CI step needs and that reach beyond its machine: a filter that every
//! command inherits.
//!
//! It denies by list, as a step may be any program, and by number alone, so that the kernel can
//! remember its answers and a call that is allowed costs nothing. In a user namespace the kernel
//! refuses most of these anyway; the filter keeps their code out of reach as well.

use nix::libc;

use crate::sys;

/// A denied call: its number here, and as a 32-bit program knows it on the same machine.
type Denied = (libc::c_long, u32);

/// With 32-bit x86's numbers (`arch/x86/entry/syscalls/syscall_32.tbl`).
const DENIED: &[Denied] = &[
    // Another kernel, or other code in this one.
    (libc::SYS_kexec_load, 283),
    (libc::SYS_kexec_file_load, u32::MAX),
    (libc::SYS_init_module, 128),
    (libc::SYS_finit_module, 350),
    (libc::SYS_delete_module, 129),
    (libc::SYS_bpf, 357),
    // The keyrings know users, not namespaces.
    (libc::SYS_add_key, 286),
    (libc::SYS_request_key, 287),
    (libc::SYS_keyctl, 288),
    // The whole machine's state.
    (libc::SYS_reboot, 88),
    (libc::SYS_swapon, 87),
    (libc::SYS_swapoff, 115),
    (libc::SYS_acct, 51),
    (libc::SYS_quotactl, 131),
    (libc::SYS_settimeofday, 79),
    (libc::SYS_clock_settime, 264),
    (libc::SYS_adjtimex, 124),
    (libc::SYS_clock_adjtime, 343),
    (libc::SYS_syslog, 103),
    // Files by handle go around every mount; the other two watch or hold up the kernel.
    (libc::SYS_open_by_handle_at, 342),
    (libc::SYS_perf_event_open, 336),
    (libc::SYS_userfaultfd, 374),
];

/// Port access, which only x86 has.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[Denied] = &[(libc::SYS_iopl, 110), (libc::SYS_ioperm, 101)];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[Denied] = &[];

const IO_URING: &[Denied] =
    &[(libc::SYS_io_uring_setup, 425), (libc::SYS_io_uring_enter, 426), (libc::SYS_io_uring_register, 427)];

/// What `seccomp_data.arch` says (`include/uapi/linux/audit.h`).
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;
const I386: u32 = 0x4000_0003;
/// Marks the numbers of x86's third set of calls, which nothing in use needs.
const X32: u32 = 0x4000_0000;

/// Offsets in `seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// Installs the filter on this process and all that it starts from now on.
pub fn install(deny_io_uring: bool) -> nix::Result<()> {
    sys::install_filter(&filter(deny_io_uring))
}

fn filter(deny_io_uring: bool) -> Vec<libc::sock_filter> {
    let denied = || {
        let optional: &[Denied] = if deny_io_uring { IO_URING } else { &[] };
        DENIED.iter().chain(DENIED_HERE).chain(optional)
    };
    let native: Vec<u32> = denied().map(|(number, _)| *number as u32).collect();
    let old: Vec<u32> = denied().map(|(_, number)| *number).filter(|n| *n != u32::MAX).collect();
    let native = checks(&native, cfg!(target_arch = "x86_64"));
    let mut program = vec![load(ARCHITECTURE), jump(libc::BPF_JEQ, NATIVE, 0, native.len() as u8)];
    program.extend(native);
    if cfg!(target_arch = "x86_64") {
        let old = checks(&old, false);
        program.push(jump(libc::BPF_JEQ, I386, 0, old.len() as u8));
        program.extend(old);
    }
    program.push(end(libc::SECCOMP_RET_ALLOW));
    program
}

/// Ends with an answer for every number.
fn checks(denied: &[u32], has_x32: bool) -> Vec<libc::sock_filter> {
    let refuse = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
    let mut checks = vec![load(NUMBER)];
    if has_x32 {
        checks.extend([jump(libc::BPF_JSET, X32, 0, 1), end(refuse(libc::ENOSYS))]);
    }
    for (at, number) in denied.iter().enumerate() {
        // Over the checks that are left, and over the answer that allows.
        checks.push(jump(libc::BPF_JEQ, *number, (denied.len() - at) as u8, 0));
    }
    checks.extend([end(libc::SECCOMP_RET_ALLOW), end(refuse(libc::EPERM))]);
    checks
}

fn load(offset: u32) -> libc::sock_filter {
    let code = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    libc::sock_filter { code, jt: 0, jf: 0, k: offset }
}

fn jump(condition: u32, value: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    let code = (libc::BPF_JMP | condition | libc::BPF_K) as u16;
    libc::sock_filter { code, jt: if_true, jf: if_false, k: value }
}

fn end(answer: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the program, as far as this program goes.
    fn answer(program: &[libc::sock_filter], architecture: u32, number: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let step = program[at];
            let taken = match u32::from(step.code) & 0xf7 {
                code if code & 7 == libc::BPF_RET => return step.k,
                code if code & 7 == libc::BPF_LD => {
                    value = if step.k == NUMBER { number } else { architecture };
                    at += 1;
                    continue;
                }
                code if code & 0xf0 == libc::BPF_JEQ => value == step.k,
                _ => value & step.k != 0,
            };
            at += 1 + usize::from(if taken { step.jt } else { step.jf });
        }
    }

    #[test]
    fn listed_calls_are_refused_and_no_others() {
        let eperm = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for deny_io_uring in [false, true] {
            let program = filter(deny_io_uring);
            for number in 0..1000 {
                let listed = |list: &[Denied]| list.iter().any(|(n, _)| *n as u32 == number);
                let expected = listed(DENIED) || listed(DENIED_HERE) || (deny_io_uring && listed(IO_URING));
                let given = answer(&program, NATIVE, number);
                assert_eq!(given, if expected { eperm } else { libc::SECCOMP_RET_ALLOW }, "{number}");
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_32_bit_program_has_its_own_numbers_and_x32_has_none() {
        let program = filter(false);
        assert_eq!(answer(&program, I386, 128), libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
        assert_eq!(answer(&program, I386, libc::SYS_bpf as u32), libc::SECCOMP_RET_ALLOW);
        assert_eq!(answer(&program, NATIVE, X32 | 39), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        assert_eq!(answer(&program, 0x1234, 128), libc::SECCOMP_RET_ALLOW);
    }
}
