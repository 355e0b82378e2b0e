//! Hits, many of them, for `benches/counts.py` to count the instructions of: `hit CASE COUNT`.

#[path = "../tests/it/support/hit.rs"]
mod hit;

use hit::{CASES, HitPath};
use std::process::ExitCode;

/// As in the product.
#[global_allocator]
static ALLOCATOR: tiercel::allocator::Allocator = tiercel::allocator::Allocator;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let case = arguments.next().and_then(|name| CASES.into_iter().find(|case| case.name == name));
    let count = arguments.next().and_then(|count| count.parse().ok());
    let (Some(case), Some(count)) = (case, count) else {
        eprintln!("usage: hit {} COUNT", CASES.map(|case| case.name).join("|"));
        return ExitCode::from(2);
    };
    HitPath::start(case.logged).hits(case, count, || {});
    ExitCode::SUCCESS
}
