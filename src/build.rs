//! Builds the guest's PID 1 as a static program, so that the host program can carry it inside.
//!
//! The nested cargo has a target directory of its own (the outer one is locked) and names its
//! target explicitly, without which `+crt-static` would reach proc-macros, which cannot be static.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let target = env::var("TARGET").expect("set by cargo");
    for input in ["init/src", "init/Cargo.toml", "kernel", "Cargo.lock", "Cargo.toml", "src/build.rs"] {
        println!("cargo::rerun-if-changed={input}");
    }

    let target_dir = out.join("init");
    let status = Command::new(env::var_os("CARGO").expect("set by cargo"))
        .current_dir(&root)
        .args(["build", "--quiet", "--package", "sekexe-init", "--bin", "sekexe-init", "--profile", "init"])
        .arg("--target")
        .arg(&target)
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static")
        // These describe the outer build, down to its lints and wrappers.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "building sekexe-init failed");

    let init = target_dir.join(&target).join("init/sekexe-init");
    println!("cargo::rustc-env=SEKEXE_INIT={}", init.display());
}
