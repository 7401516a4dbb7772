//! Gives `libpodshm.so` the name under which programs ask for it, and keeps it where it is once it is loaded.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The number is the ABI's: docs/c-abi.md says when it changes.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libpodshm.so.0");
    // A client has a thread, and fork handlers once set can't be taken back: dlclose() must leave their code where it is.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
