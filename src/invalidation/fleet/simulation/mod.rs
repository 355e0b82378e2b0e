//! The deterministic simulation that tries to break the journal: whole fleets in virtual time, from seeds.
//!
//! P2 as it is promised is what must hold at every response ([`world::World::serve`]). A seed that breaks it is printed:
//! `SEED=n cargo test --lib fleet::simulation` plays it again. `SEEDS=n` sets how many are played.

mod chance;
mod redis;
mod stepped;
mod world;

use world::{Fault, Outcome, Tally, World};

const STEPS: usize = 200;

fn play(seed: u64, fault: Fault) -> (Outcome, Tally) {
    let mut world = World::new(seed, fault);
    let mut outcome = (0..STEPS).try_for_each(|_| world.step());
    if outcome.is_ok() && seed.is_multiple_of(4) {
        outcome = world.calm_down();
    }
    (outcome, world.seen)
}

/// What was seen, and the seeds that broke something.
fn play_all(seeds: impl Iterator<Item = u64>) -> (Tally, Vec<String>) {
    let (mut sum, mut broken) = (Tally::default(), Vec::new());
    for seed in seeds {
        let (outcome, seen) = play(seed, Fault::None);
        broken.extend(outcome.err().map(|why| format!("seed {seed}: {why}")));
        sum.add(&seen);
    }
    (sum, broken)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn no_node_serves_what_a_complete_purge_took() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(500),
    };
    let (start, threads) = (std::time::Instant::now(), 2);
    let count = seeds.end - seeds.start;
    let sums: Vec<(Tally, Vec<String>)> = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|part| {
                let seeds = seeds.clone().filter(move |seed| seed % threads == part);
                scope.spawn(move || play_all(seeds))
            })
            .collect();
        parts.into_iter().map(|part| part.join().expect("a part panicked")).collect()
    });
    let (mut sum, mut broken) = (Tally::default(), Vec::new());
    for (part, of_part) in sums {
        sum.add(&part);
        broken.extend(of_part);
    }
    println!("{count} seeds of {STEPS} steps in {:?}: {sum:?}", start.elapsed());
    assert!(broken.is_empty(), "{} broken; again: SEED=n cargo test --lib fleet::simulation\n{}", broken.len(), broken.join("\n"));
    if count >= 100 {
        // What is not done cannot break.
        assert!(sum.purges > 10 * count && sum.served > 100 * count, "{sum:?}");
        assert!(2 * sum.complete > sum.purges / 2 && sum.promoted > count, "{sum:?}");
        assert!(sum.epochs > count && sum.kept > count / 10 && sum.trims > count / 10 && sum.servers > count, "{sum:?}");
        assert!(sum.holes > count / 50 && sum.foreign > count / 10 && sum.names_taken > count / 50, "{sum:?}");
        assert!(sum.alone > count && sum.recovering > count && sum.damaged > count, "{sum:?}");
    }
}

#[test]
fn planted_faults_are_found() {
    for fault in [
        Fault::StampAtFetchEnd,
        Fault::OwnEntryOutOfOrder,
        Fault::AcknowledgedBeforeApply,
        Fault::SoftOverwritesHard,
        Fault::PromotedUnchecked,
        Fault::PreviousIgnored,
        Fault::ResumedUntrusted,
    ] {
        let found = (0..2000).find(|&seed| play(seed, fault).0.is_err());
        println!("{fault:?}: seed {found:?}");
        assert!(found.is_some(), "{fault:?} is not found");
    }
}
