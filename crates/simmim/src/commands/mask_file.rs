//! Masks given as an array file.

use crate::diagnostics::Failure;
use crate::npy::Array;
use simmim_data::MaskSpec;
use simmim_models::{Mode, SimMimConfig};
use std::path::Path;

/// Reads a 0/1 array `[images, rows, columns]` in mask units; every image hides the same number of cells.
///
/// # Errors
/// A file that is missing or no such array.
pub(crate) fn read(path: &Path, spec: &MaskSpec, images: usize) -> Result<Vec<Vec<bool>>, Failure> {
    let help = format!("use a 0/1 array of shape [{images}, {}, {}] written by numpy.save", spec.rows, spec.cols);
    let fail = |what: String| Failure::input(format!("{}: {what}", path.display()), help.clone());
    let bytes =
        std::fs::read(path).map_err(|e| Failure::input(format!("{}: {e}", path.display()), "check the path"))?;
    let Array { shape, values } = Array::parse(&bytes).map_err(|e| fail(format!("not a .npy file of numbers: {e}")))?;
    if shape != [images, spec.rows, spec.cols] {
        return Err(fail(format!("its shape is {shape:?}")));
    }
    if let Some(bad) = values.iter().find(|v| ![0.0, 1.0].contains(*v)) {
        return Err(fail(format!("it contains {bad}, which is neither 0 nor 1")));
    }
    let masks: Vec<Vec<bool>> =
        values.chunks(spec.cells().max(1)).map(|cells| cells.iter().map(|&v| v == 1.0).collect()).collect();
    let counts: Vec<usize> = masks.iter().map(|m| m.iter().filter(|&&v| v).count()).collect();
    match counts.iter().position(|&c| c != counts[0]) {
        Some(i) => {
            let what = format!("the mask of image {i} hides {} cells, that of image 0 hides {}", counts[i], counts[0]);
            Err(Failure::input(
                format!("{}: {what}", path.display()),
                "hide the same number of cells in every image, or reconstruct the images one at a time",
            ))
        }
        None => Ok(masks),
    }
}

/// Makes the model hide as many cells as given masks do.
///
/// # Errors
/// Masks that hide nothing or everything.
pub(crate) fn fit(config: &mut SimMimConfig, masks: &[Vec<bool>]) -> Result<(), Failure> {
    let Some(mask) = masks.first() else { return Ok(()) };
    let hidden = mask.iter().filter(|&&v| v).count() as f64;
    // The middle of what is rounded to this count: down in the tutorial's mode, up in the official one.
    let middle = if config.mode == Mode::Tutorial { hidden + 0.5 } else { hidden - 0.5 };
    config.mask_ratio = middle / mask.len() as f64;
    if config.masked_cells() == 0 || config.masked_cells() >= mask.len() {
        return Err(Failure::input(
            format!("the masks hide {hidden} of {} cells", mask.len()),
            "hide at least one cell and leave at least one visible",
        ));
    }
    Ok(config.validate()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_data::MaskKind;
    use simmim_models::VitConfig;

    fn spec() -> MaskSpec {
        MaskSpec { rows: 2, cols: 3, ratio: 0.5, kind: MaskKind::Random }
    }

    fn write(path: &Path, values: &[f32]) {
        let mut bytes = crate::npy::header(2, &[2, 3]);
        values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn an_array_becomes_masks_and_what_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.npy");
        write(&path, &[1., 0., 0., 0., 1., 0., 0., 0., 1., 1., 0., 0.]);
        let masks = read(&path, &spec(), 2).unwrap();
        assert_eq!(masks, [[true, false, false, false, true, false], [false, false, true, true, false, false]]);
        assert!(format!("{:?}", read(&path, &spec(), 3).unwrap_err()).contains("its shape is [2, 2, 3]"));
        write(&path, &[2., 0., 0., 0., 1., 0., 0., 0., 1., 1., 0., 0.]);
        assert!(format!("{:?}", read(&path, &spec(), 2).unwrap_err()).contains("it contains 2"));
        write(&path, &[0., 0., 0., 0., 1., 0., 0., 0., 1., 1., 0., 0.]);
        assert!(format!("{:?}", read(&path, &spec(), 2).unwrap_err()).contains("image 1 hides 2 cells"));
        assert!(format!("{:?}", read(&folder.path().join("no.npy"), &spec(), 2).unwrap_err()).contains("no.npy"));
        std::fs::write(&path, "text").unwrap();
        assert!(format!("{:?}", read(&path, &spec(), 2).unwrap_err()).contains("does not begin"));
    }

    #[test]
    fn any_number_of_hidden_cells_fits_in_both_modes() {
        let vit = VitConfig::preset("vit_tiny_patch4_28").unwrap();
        for mut config in [SimMimConfig::tutorial(vit.clone(), 0.5), SimMimConfig::official(vit, (4, 4), 0.6)] {
            for hidden in 1..49 {
                fit(&mut config, &[(0..49).map(|i| i < hidden).collect()]).unwrap();
                assert_eq!(config.masked_cells(), hidden);
            }
            assert!(fit(&mut config, &[vec![true; 49]]).is_err() && fit(&mut config, &[vec![false; 49]]).is_err());
        }
    }
}
