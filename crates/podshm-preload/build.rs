//! Builds `libpodshm-preload.so` with the compiler that builds everything else, but under rules that no cargo profile of
//! the workspace has: no std, no libc, panics abort, nothing exported but what is interposed.

use std::env::var_os;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(podshm_cdylib)");
    println!("cargo::rerun-if-changed=src");
    let out = PathBuf::from(var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("libpodshm-preload.so");
    let target = var_os("TARGET").expect("cargo sets TARGET");
    let mut rustc = Command::new(var_os("RUSTC").expect("cargo sets RUSTC"));
    rustc.args(["--edition=2024", "--crate-name=podshm_preload", "--crate-type=cdylib", "--cfg=podshm_cdylib"]);
    rustc.args(["-Cpanic=abort", "-Copt-level=2", "-Ccodegen-units=1", "-Coverflow-checks=off", "-Cstrip=debuginfo"]);
    // musl's target would link statically and refuse a cdylib; the library has no libc, so that gnu's serves for both.
    rustc.arg("--target").arg(target.to_string_lossy().replace("-musl", "-gnu"));
    let link = "-nostdlib -nostartfiles -Wl,-soname,libpodshm-preload.so,-z,now,-z,relro,-z,noexecstack,-Bsymbolic,\
                --hash-style=both,--as-needed,--no-undefined-version";
    rustc.arg(format!("-Clink-args={link}")).arg("-Cdefault-linker-libraries=no");
    if let Some(linker) = var_os("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={}", linker.to_string_lossy()));
    }
    let status = rustc.arg("-o").arg(&out).arg("src/cdylib.rs").status().expect("rustc runs");
    assert!(status.success(), "libpodshm-preload.so was not built: {status}");
}
