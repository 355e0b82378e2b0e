//! Leaves out what of the modules needs the rest of the program.

fn main() {
    println!("cargo::rustc-cfg=simulation");
    println!("cargo::rerun-if-changed=build.rs");
}
