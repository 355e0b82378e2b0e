//! Turns the shim in `src/sync.rs` to loom's types, here and in no dependency.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rerun-if-changed=build.rs");
}
