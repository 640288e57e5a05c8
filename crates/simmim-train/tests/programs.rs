//! The compiled program of a small recipe in mixed precision, as `simmim inspect --plan` prints it: a change of what is stored in
//! bfloat16, of casts or of places shows here, to be looked at. With `UPDATE=1` in the environment the test writes the file anew.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use simmim_engine::Program;
use simmim_train::{Recipe, training_graph};
use std::path::Path;

#[test]
fn the_mixed_program_of_the_demo_is_the_reviewed_one() {
    let set = ["model.depth=2", "train.precision=\"bfloat16\""].map(str::to_owned);
    let recipe = Recipe::resolve("demo", &set).unwrap();
    let graph = training_graph(&recipe.simmim_config().unwrap(), 4, 1).unwrap();
    let program = Program::compile(&recipe.train.precision.lower(&graph).unwrap()).unwrap().to_string();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/demo-bfloat16.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &program).unwrap();
    }
    let reviewed = std::fs::read_to_string(&path).unwrap();
    let differs = program.lines().zip(reviewed.lines()).find(|(found, known)| found != known);
    assert!(differs.is_none() && program.len() == reviewed.len(), "{differs:?}: if that is meant, run with UPDATE=1");
}
