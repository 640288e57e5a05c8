//! timm's names.

use super::{Position, PositionInit, QkvBias, VitConfig, WeightInit};
use crate::error::ModelError;

/// Name, width, blocks, heads (Dosovitskiy et al., arXiv 2010.11929, table 1; Touvron et al., arXiv 2012.12877, table 1).
const SIZES: [(&str, usize, usize, usize); 4] =
    [("tiny", 192, 12, 3), ("small", 384, 12, 6), ("base", 768, 12, 12), ("large", 1024, 24, 16)];
const PATCHES: [usize; 5] = [4, 8, 14, 16, 32];

pub(super) fn parse(name: &str) -> Result<VitConfig, ModelError> {
    let unknown = || ModelError::UnknownModel { name: name.to_owned(), nearest: nearest(name) };
    let mut parts = name.strip_prefix("vit_").ok_or_else(unknown)?.split('_');
    let (size, patch, image) = (parts.next(), parts.next(), parts.next());
    let (_, embed_dim, depth, num_heads) =
        *SIZES.iter().find(|(known, ..)| Some(*known) == size).ok_or_else(unknown)?;
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<usize>().ok());
    let patch =
        number(patch.and_then(|p| p.strip_prefix("patch"))).filter(|p| PATCHES.contains(p)).ok_or_else(unknown)?;
    let image = number(image).filter(|&n| n > 0).ok_or_else(unknown)?;
    if parts.next().is_some() {
        return Err(unknown());
    }
    let config = VitConfig {
        image_size: (image, image),
        patch_size: (patch, patch),
        channels: 3,
        embed_dim,
        depth,
        num_heads,
        mlp_ratio: 4.0,
        class_token: true,
        registers: 0,
        position: Position::Absolute,
        position_init: PositionInit::Normal,
        weight_init: WeightInit::Normal,
        layer_scale: None,
        drop_path: 0.0,
        qkv_bias: QkvBias::Full,
        final_norm: true,
        eps: 1e-6,
    };
    config.validate()?;
    Ok(config)
}

/// The three names that share most with the one asked for.
fn nearest(name: &str) -> String {
    let mut known: Vec<String> =
        SIZES.iter().flat_map(|(size, ..)| PATCHES.iter().map(move |p| format!("vit_{size}_patch{p}_224"))).collect();
    known.sort_by_key(|k| (distance(k, name), k.clone()));
    known.truncate(3);
    known.join(", ")
}

/// Levenshtein distance.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_timms_sizes() {
        let s = parse("vit_small_patch32_224").unwrap();
        assert_eq!((s.embed_dim, s.depth, s.num_heads, s.patch_size, s.tokens()), (384, 12, 6, (32, 32), 50));
        assert_eq!(parse("vit_large_patch14_518").unwrap().grid(), (37, 37));
        assert_eq!(parse("vit_tiny_patch4_28").unwrap().patches(), 49);
    }

    #[test]
    fn unknown_names_are_answered_with_known_ones() {
        for bad in ["vit_smal_patch32_224", "resnet50", "vit_small_patch32_224_in21k", "vit_small_patch7_224", "vit_"] {
            let error = parse(bad).unwrap_err();
            assert!(matches!(error, ModelError::UnknownModel { .. }), "{bad}: {error}");
        }
        assert!(parse("vit_smal_patch32_224").unwrap_err().help().unwrap().contains("vit_small_patch32_224"));
        assert!(parse("vit_base_patch16_100").unwrap_err().to_string().contains("do not divide"));
    }
}
