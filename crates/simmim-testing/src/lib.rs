//! Tolerances and fixture reading for the tests of simmim. Depends on no other crate of the workspace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Relative error by norm: `|a - b| / max(|b|, tiny)` over the whole tensor, in f64.
#[must_use]
pub fn relative_error(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len(), "tensors of different lengths");
    let (mut diff, mut norm) = (0.0f64, 0.0f64);
    for (&a, &b) in actual.iter().zip(expected) {
        diff += (f64::from(a) - f64::from(b)).powi(2);
        norm += f64::from(b).powi(2);
    }
    if diff == 0.0 { 0.0 } else { (diff / norm.max(1e-60)).sqrt() }
}

/// The folder of committed fixtures.
#[must_use]
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// A committed fixture: float tensors by name, integer tensors by name, and its metadata (a JSON object).
#[derive(Debug)]
pub struct Fixture {
    /// Float tensors: shape and row-major data.
    pub floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// Integer tensors (I64 or I32 in the file), as i32: shape and row-major data.
    pub ints: BTreeMap<String, (Vec<usize>, Vec<i32>)>,
    /// The configuration that made the fixture.
    pub config: serde_json::Value,
}

impl Fixture {
    /// Reads `fixtures/NAME.safetensors`; its metadata key `config` holds JSON.
    #[must_use]
    pub fn load(name: &str) -> Self {
        let path = fixtures().join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let config = header
            .metadata()
            .as_ref()
            .and_then(|m| m.get("config"))
            .map_or(serde_json::Value::Null, |c| serde_json::from_str(c).unwrap_or_default());
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (mut floats, mut ints) = (BTreeMap::new(), BTreeMap::new());
        for (key, view) in tensors.iter() {
            let shape = view.shape().to_vec();
            let data = view.data();
            match view.dtype() {
                safetensors::Dtype::F32 => {
                    floats.insert(key.to_owned(), (shape, bytemuck::pod_collect_to_vec(data)));
                }
                safetensors::Dtype::I32 => {
                    ints.insert(key.to_owned(), (shape, bytemuck::pod_collect_to_vec(data)));
                }
                safetensors::Dtype::I64 => {
                    let wide: Vec<i64> = bytemuck::pod_collect_to_vec(data);
                    ints.insert(key.to_owned(), (shape, wide.into_iter().map(|v| v as i32).collect()));
                }
                other => panic!("{name}: {key} has unexpected type {other:?}"),
            }
        }
        Self { floats, ints, config }
    }
}
