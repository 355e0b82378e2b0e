//! The binary: everything is in the library.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tiercel::allocator::Allocator = tiercel::allocator::Allocator;

fn main() -> ExitCode {
    tiercel::cli::main()
}
