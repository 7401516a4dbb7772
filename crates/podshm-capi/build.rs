//! Gives `libpodshm.so` the name under which programs ask for it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The number is the ABI's: docs/c-abi.md says when it changes.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libpodshm.so.0");
}
