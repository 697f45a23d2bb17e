//! A virtual machine of one page and three bytes of program.
//!
//! A device that opens proves little: nested machines offer one on which nothing runs.

use nix::errno::Errno;

/// Runs the program, and sees that it ran.
#[cfg(target_arch = "x86_64")]
pub fn run() -> nix::Result<()> {
    use kvm_bindings::kvm_userspace_memory_region;
    use kvm_ioctls::{Kvm, VcpuExit};

    #[repr(align(4096))]
    struct Page([u8; 4096]);

    const ENTRY: u64 = 0x1000;
    /// `mov al, 42; hlt`
    const PROGRAM: [u8; 3] = [0xb0, 42, 0xf4];

    let error = |error: kvm_ioctls::Error| Errno::from_raw(error.errno());
    let kvm = Kvm::new().map_err(error)?;
    let machine = kvm.create_vm().map_err(error)?;
    let mut page = Page([0; 4096]);
    page.0[..PROGRAM.len()].copy_from_slice(&PROGRAM);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: ENTRY,
        memory_size: page.0.len() as u64,
        userspace_addr: page.0.as_mut_ptr() as u64,
    };
    // SAFETY: the page outlives the machine, and nothing else of ours is in it.
    unsafe { machine.set_user_memory_region(region) }.map_err(error)?;
    let mut cpu = machine.create_vcpu(0).map_err(error)?;
    let mut segments = cpu.get_sregs().map_err(error)?;
    segments.cs.base = 0;
    segments.cs.selector = 0;
    cpu.set_sregs(&segments).map_err(error)?;
    let mut registers = cpu.get_regs().map_err(error)?;
    registers.rip = ENTRY;
    registers.rflags = 2;
    cpu.set_regs(&registers).map_err(error)?;
    match cpu.run().map_err(error)? {
        VcpuExit::Hlt => {}
        _ => return Err(Errno::EIO),
    }
    let ran = cpu.get_regs().map_err(error)?.rax & 0xff == u64::from(PROGRAM[1]);
    if ran { Ok(()) } else { Err(Errno::EIO) }
}

/// Nobody has written the program for this machine.
#[cfg(not(target_arch = "x86_64"))]
pub fn run() -> nix::Result<()> {
    Err(Errno::EOPNOTSUPP)
}
