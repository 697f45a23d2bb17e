//! PID 1 of a machine, as a program of its own: what a guest's kernel starts.

fn main() {
    sekexe_init::main();
}
