//! The fuzz targets' bodies, on their seeds, on pieces of these, and on random bytes.

use std::{fs, path::Path};

use proptest::{prelude::*, test_runner::TestRunner};

#[path = "../../fuzz/bodies.rs"]
mod bodies;

fn run(target: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let seeds: Vec<_> = fs::read_dir(dir).unwrap().map(|seed| fs::read(seed.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty());
    for seed in &seeds {
        (0..=seed.len()).for_each(|end| body(&seed[..end]));
    }
    // A seed with some bytes replaced goes deeper than noise does.
    let changed = (0..seeds.len(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8));
    let input = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        changed.prop_map(move |(seed, changes)| {
            let mut bytes = seeds[seed].clone();
            changes.iter().for_each(|(at, byte)| bytes[at.index(seeds[seed].len())] = *byte);
            bytes
        }),
    ];
    let config = ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
    let check = |bytes: Vec<u8>| {
        body(&bytes);
        Ok(())
    };
    TestRunner::new(config).run(&input, check).unwrap();
}

#[test]
fn account_files_survive_any_bytes() {
    run("accounts", bodies::accounts);
}

#[test]
fn boot_files_survive_any_bytes() {
    run("boot", bodies::boot);
}

#[test]
fn plans_of_any_trees_hold_together() {
    run("plan", bodies::plan_of);
}

#[test]
fn environment_blocks_survive_any_bytes() {
    run("grubenv", bodies::grubenv);
}

#[test]
fn loader_confs_survive_any_bytes() {
    run("loader_conf", bodies::loader_conf);
}

#[test]
fn efi_variables_survive_any_bytes() {
    run("variable", bodies::variable);
}
