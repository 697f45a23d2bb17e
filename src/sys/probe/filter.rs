//! A seccomp filter of one instruction.

use nix::errno::Errno;
use nix::libc;

/// Installs a filter that allows everything; with a listener it is another process that may be
/// asked for decisions.
pub fn install(listen: bool) -> nix::Result<()> {
    let mut instruction = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    };
    let program = libc::sock_fprog { len: 1, filter: &mut instruction };
    let flags = if listen { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    // SAFETY: the program and its one instruction live until the calls return.
    unsafe {
        Errno::result(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        Errno::result(libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program))
            .map(drop)
    }
}
