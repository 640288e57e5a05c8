//! The emulator notices a fault in any kernel: every barrier and every wait is left out in turn, fragments
//! of tensor cores are loaded in the wrong layout, and some case must go wrong.

use crate::emulator;
use crate::operations::{Known, attention, rounded_products};
use simmim_cases::cases;
use simmim_cuda::Products;
use std::collections::BTreeSet;

const SEEDS: u64 = 4;

#[test]
fn every_barrier_wait_and_layout_is_needed() {
    let (_guard, emulator) = emulator();
    let mut known: Vec<(String, Known)> = cases()
        .iter()
        .flat_map(|case| (0..SEEDS).map(|seed| (case.variant.to_lowercase(), Known::of_case(case, seed))))
        .collect();
    // Tiles follow one another only where there are more tokens than the cases have.
    known.extend([false, true].map(|split| ("attention".to_owned(), attention(20, split, [70, 45], 0))));
    // Of bfloat16 the products alone have kernels of their own. Four tiles of terms in pieces: both stages are filled twice.
    known.push(("linearrounded".to_owned(), rounded_products([144, 104, 104], 0)));
    for (name, known) in &known {
        known.check(Products::Own).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let waits = |kind: &str| matches!(kind, "barrier" | "warp barrier" | "copy wait" | "ldmatrix");
    let sites: BTreeSet<String> =
        emulator.sites().into_iter().filter(|(kind, _)| waits(kind)).map(|(_, name)| name).collect();
    assert!(sites.len() > 20, "{sites:?}");
    assert_eq!(emulator.sites().iter().filter(|(kind, _)| kind == "ldmatrix").count(), 2);
    let mut unnoticed = Vec::new();
    for site in &sites {
        assert!(emulator.skip(site) > 0);
        // The cases of the file first: they notice soonest.
        let stem: String = site.split('.').next().unwrap_or_default().replace('_', "");
        let (own, others): (Vec<_>, Vec<_>) =
            known.iter().partition(|(name, _)| stem.starts_with(name.as_str()) || name.starts_with(&stem));
        let noticed = own.into_iter().chain(others).any(|(_, known)| {
            let wrong = known.check(Products::Own).is_err();
            emulator.take_fault().is_some() || wrong
        });
        if !noticed {
            unnoticed.push(site);
        }
        emulator.skip("");
    }
    assert!(unnoticed.is_empty(), "nothing went wrong without {unnoticed:?}");
}
